"""What the Cloud TPU API's errors mean, by name. Pure.

An error is a google.rpc.Status, in the body of an answer (with the name of its code) or in a queued resource that has
failed (with the code's number): https://cloud.google.com/apis/design/errors. The API has no codes of its own for a zone
that is sold out or a reservation that is full: these are told by the wording, as SkyPilot and xpk have it.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from launcher.errors import LauncherError

Json = dict[str, Any]


class Trouble(StrEnum):
    """What is wrong."""

    STOCK_OUT = "stock-out"  # the zone has no such machines now
    QUOTA = "quota"  # the project may not have more
    RATE = "rate"  # too many calls
    RESERVATION = "reservation"  # it is used up, or there is none
    EXPIRED = "expired"  # nothing came of a request within the time that it was good for
    PREEMPTED = "preempted"  # while it was being created
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"  # the account may not, or there is no such project
    DISABLED = "disabled"  # the API, in this project
    ZONE = "zone"  # there is none of this name, or not for this project
    INVALID = "invalid"  # no such type, version, network
    EXISTS = "exists"
    BUSY = "busy"  # something else is being done to it
    GONE = "gone"
    UNAVAILABLE = "unavailable"  # no answer, or none that says anything
    OTHER = "other"


PASSING = (Trouble.RATE, Trouble.BUSY, Trouble.UNAVAILABLE)
"""Says nothing about what was asked: to be asked again."""
ELSEWHERE = (Trouble.STOCK_OUT, Trouble.QUOTA, Trouble.EXPIRED, Trouble.RESERVATION)
"""Another zone may have what this one has not."""


class TpuError(LauncherError):
    """The API did not do what it was asked; carries what it said, and what to do about it."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


_NAMES = {
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}
"""google.rpc.Code: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto."""
_SIMPLE = {
    "DEADLINE_EXCEEDED": Trouble.EXPIRED,
    "NOT_FOUND": Trouble.GONE,
    "ALREADY_EXISTS": Trouble.EXISTS,
    "ABORTED": Trouble.BUSY,
    "INTERNAL": Trouble.UNAVAILABLE,
    "UNAVAILABLE": Trouble.UNAVAILABLE,
    "UNKNOWN": Trouble.UNAVAILABLE,
    "UNAUTHENTICATED": Trouble.UNAUTHENTICATED,
}
_ADVICE = {
    Trouble.STOCK_OUT: "name further zones in tpu.zone, or try again later",
    Trouble.QUOTA: "delete what is not used (`launcher gc`), name another zone in tpu.zone, or ask for a higher quota "
    "(https://console.cloud.google.com/iam-admin/quotas)",
    Trouble.RATE: "others of this project call the API too often; try again in a minute",
    Trouble.RESERVATION: "see what the reservation holds, or set tpu.reserved: false",
    Trouble.EXPIRED: "name further zones in tpu.zone, or give tpu.valid_until_duration a longer time",
    Trouble.UNAUTHENTICATED: "log in: gcloud auth application-default login (`gcloud auth login` is another login)",
    Trouble.DENIED: "see whether this is the right project (tpu.project) and account; it needs the role roles/tpu.admin"
    " there, and roles/iam.serviceAccountUser for tpu.service_account",
    Trouble.DISABLED: "enable it: gcloud services enable tpu.googleapis.com",
    Trouble.ZONE: "correct tpu.zone; there are those of: gcloud compute tpus locations list",
    Trouble.INVALID: "correct what it names: tpu.accelerator_type and tpu.runtime_version must be had in the zone",
}


def error_of(status: Mapping[str, Any], doing: str) -> TpuError:
    """The error of an answer's body, or of what has failed.

    Args:
        status: a google.rpc.Status, whose code is a number; in an answer its name stands beside it, as `status`.
        doing: what was asked, in words.
    """
    name = str(status.get("status") or _NAMES.get(int(status.get("code", 2)), "UNKNOWN"))
    said = " ".join(str(status.get("message", "")).split())
    trouble = _trouble(name, said, list(_reasons(status.get("details", []))))
    return explained(trouble, f"{doing}: {said or name}")


def explained(trouble: Trouble, said: str) -> TpuError:
    """With what to do about it."""
    advice = _ADVICE.get(trouble)
    return TpuError(trouble, f"{said}; {advice}" if advice else said)


def _trouble(name: str, said: str, reasons: list[str]) -> Trouble:
    if simple := _SIMPLE.get(name):
        return simple
    lower = said.lower()
    if name == "RESOURCE_EXHAUSTED":
        if "QuotaFailure" in reasons:
            return Trouble.QUOTA
        if "no more capacity" in lower or "stockout" in lower:
            return Trouble.STOCK_OUT
        # A quota of calls is one a minute; any other is of machines.
        return Trouble.RATE if "RATE_LIMIT_EXCEEDED" in reasons or "per minute" in lower else Trouble.QUOTA
    if name == "PERMISSION_DENIED":
        if "SERVICE_DISABLED" in reasons or "it is disabled" in lower:
            return Trouble.DISABLED
        return Trouble.ZONE if re.search(r"\blocation \S+ is not found", lower) else Trouble.DENIED
    if name == "FAILED_PRECONDITION":
        return Trouble.RESERVATION if "reserv" in lower else Trouble.OTHER
    if name == "INVALID_ARGUMENT":
        return Trouble.PREEMPTED if "while in state preempted" in lower else Trouble.INVALID
    return Trouble.OTHER


def _reasons(details: list[Json]) -> Iterator[str]:
    """Kinds of details, and what an ErrorInfo calls the reason."""
    for one in details:
        yield str(one.get("@type", "")).rpartition(".")[2]
        if reason := one.get("reason"):
            yield str(reason)
