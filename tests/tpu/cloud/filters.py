"""Lists: filters (https://google.aip.dev/160, comparisons joined by AND), order, pages."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpu.cloud.status import ApiError, Json

_TERM = re.compile(r'\s*(?P<field>[\w.]+)\s*(?P<operator>!=|=|:)\s*(?:"(?P<quoted>[^"]*)"|(?P<word>[^\s"()]+))\s*')
_PAGE = 500
"""Entries of a page where the caller does not say. The caller of the real one gets no more than 1000 either."""


def page(entries: Sequence[Json], query: Mapping[str, Any], key: str) -> Json:
    """A part of a list, as the call asks for it. Raises ApiError for a filter, an order or a token that is none."""
    found = [entry for entry in entries if matches(entry, query.get("filter", ""))]
    if order := query.get("orderBy"):
        field, _, direction = order.partition(" ")
        found.sort(key=lambda entry: str(_look_up(entry, field)), reverse=direction == "desc")
    start = _start(query.get("pageToken", ""))
    size = min(query.get("pageSize") or _PAGE, 1000)
    if size < 0:
        raise ApiError("INVALID_ARGUMENT", "Page size must not be negative.")
    answer: Json = {key: found[start : start + size]} if found[start:] else {}
    if found[start + size :]:
        answer["nextPageToken"] = base64.urlsafe_b64encode(str(start + size).encode()).decode()
    return answer


def matches(entry: Json, expression: str) -> bool:
    """Raises ApiError where it cannot be read."""
    for term in re.split(r"\s+AND\s+", expression) if expression.strip() else ():
        read = _TERM.fullmatch(term)
        if read is None:
            raise ApiError("INVALID_ARGUMENT", f"Invalid list filter: {expression}")
        value = _look_up(entry, read["field"])
        wanted = read["quoted"] if read["quoted"] is not None else read["word"]
        if isinstance(value, bool):
            value = str(value).lower()
        same = wanted in str(value or "") if read["operator"] == ":" else str(value or "") == wanted
        if same == (read["operator"] == "!="):
            return False
    return True


def _look_up(entry: object, path: str) -> object:
    for part in path.split("."):
        entry = entry.get(part) if isinstance(entry, dict) else None
    return entry


def _start(token: str) -> int:
    try:
        return int(base64.urlsafe_b64decode(token)) if token else 0
    except ValueError as error:
        raise ApiError("INVALID_ARGUMENT", "Invalid page token.") from error
