"""Errors of the API: google.rpc.Status, in the body of an answer and in operations."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

# The name, its number in google.rpc.Code, and the HTTP status that Google's front end gives it.
_CODES = {
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "UNAUTHENTICATED": (16, 401),
}
CODES = tuple(_CODES)


class ApiError(Exception):
    """What a call comes to. `code` is one of CODES."""

    def __init__(self, code: str, message: str, details: Sequence[Json] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = list(details)

    @property
    def http(self) -> int:
        return _CODES[self.code][1]

    @property
    def body(self) -> Json:
        """Of the answer to a call that failed."""
        details = {"details": self.details} if self.details else {}
        return {"error": {"code": self.http, "message": self.message, "status": self.code, **details}}

    @property
    def status(self) -> Json:
        """In an operation, or a queued resource, that failed."""
        details = {"details": self.details} if self.details else {}
        return {"code": _CODES[self.code][0], "message": self.message, **details}


def not_found(name: str) -> ApiError:
    return ApiError("NOT_FOUND", f"Resource '{name}' was not found")


def exists(name: str) -> ApiError:
    return ApiError("ALREADY_EXISTS", f"Resource '{name}' already exists")


def invalid(field: str, message: str) -> ApiError:
    """A request that is not well-formed; an empty field is the request itself."""
    violation = {"description": message, **({"field": field} if field else {})}
    details = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
    return ApiError("INVALID_ARGUMENT", message, [details])


def error_info(reason: str, **metadata: str) -> Json:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "tpu.googleapis.com", **metadata},
    }
