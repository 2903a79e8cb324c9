"""What stands between a call and its effect: credentials, permissions, rate, and faults that a test has ordered."""

import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from tpu.cloud.catalogue import ZONES
from tpu.cloud.schema import Call
from tpu.cloud.status import ApiError, error_info
from tpu.cloud.timers import Timers

How = Literal["refuse", "lose-answer", "lose-call", "fail"]
"""refuse: answer with the error and do nothing. lose-answer: do it, then cut the connection instead of answering.
lose-call: cut the connection and do nothing. fail: accept the call, and let what it began come to the error."""

_EXPECTED = (
    "Expected OAuth 2 access token, login cookie or other valid authentication credential. "
    "See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


@dataclass
class Fault:
    """Ordered by a test."""

    on: str
    """The id of a method, as "nodes.create", or "*"."""
    how: How
    error: ApiError
    times: int


@dataclass
class Gate:
    timers: Timers
    project: str
    token_seconds: float
    """For so long is a token good."""
    rate_per_minute: int
    """Calls; 0: as many as one likes."""
    denied: set[str] = field(default_factory=set)
    """Permissions that the caller lacks, as "tpu.nodes.create"."""
    faults: list[Fault] = field(default_factory=list)
    _tokens: dict[str, float] = field(default_factory=dict)
    _calls: deque[float] = field(default_factory=deque)

    # Tokens

    def token(self) -> str:
        """A new one, as an OAuth server gives it."""
        token = f"ya29.fake-{secrets.token_hex(12)}"
        self._tokens[token] = self.timers.now() + self.token_seconds
        return token

    def expire_tokens(self) -> None:
        self._tokens = dict.fromkeys(self._tokens, self.timers.now())

    def check_token(self, authorization: str | None) -> None:
        """Raises ApiError where it is none that is good."""
        if not authorization:
            raise ApiError(
                "UNAUTHENTICATED",
                f"Request is missing required authentication credential. {_EXPECTED}",
                [error_info("CREDENTIALS_MISSING")],
            )
        ends = self._tokens.get(authorization.removeprefix("Bearer "), 0.0)
        if ends <= self.timers.now():
            reason = "ACCESS_TOKEN_EXPIRED" if ends else "ACCESS_TOKEN_TYPE_UNSUPPORTED"
            raise ApiError(
                "UNAUTHENTICATED",
                f"Request had invalid authentication credentials. {_EXPECTED}",
                [error_info(reason)],
            )

    # Calls

    def check(self, call: Call) -> None:
        """Raises ApiError for one that may not go on."""
        self._check_rate()
        permission = permission_of(call)
        resource = f"projects/{call.project}/locations/{call.location}"
        if call.project != self.project or permission in self.denied:
            raise ApiError(
                "PERMISSION_DENIED",
                f"Permission '{permission}' denied on '{resource}' (or it may not exist).",
                [error_info("IAM_PERMISSION_DENIED", permission=permission, resource=resource)],
            )
        if call.location not in ZONES and call.location != "-":
            raise ApiError("PERMISSION_DENIED", f"Location {call.location} is not found or access is unauthorized.")

    def fault(self, call: Call) -> Fault | None:
        """One that is ordered for this call: it is used up by that."""
        for fault in self.faults:
            if fault.on in (call.method.id, "*"):
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _check_rate(self) -> None:
        now = self.timers.now()
        while self._calls and self._calls[0] <= now - 60:
            self._calls.popleft()
        if self.rate_per_minute and len(self._calls) >= self.rate_per_minute:
            raise ApiError(
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'TPU API requests' and limit 'TPU API requests per minute' of service "
                f"'tpu.googleapis.com' for consumer 'project:{self.project}'.",
                [error_info("RATE_LIMIT_EXCEEDED", quota_limit_value=str(self.rate_per_minute))],
            )
        self._calls.append(now)


def permission_of(call: Call) -> str:
    """That the call takes, as "tpu.nodes.update"."""
    resource, _, verb = call.method.id.rpartition(".")
    return f"tpu.{resource or 'locations'}.{'update' if verb == 'patch' else verb}"
