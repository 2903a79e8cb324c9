"""Scalars by the core schema of YAML 1.2, as far as JSON could hold them as well.

1e-3 is a number, yes and off are text, 1:30:00 is text, 017 is seventeen, 0o17 is fifteen; PyYAML, which follows
YAML 1.1, reads each of these differently.
"""

import math
import re
from collections.abc import Callable
from typing import Any


class NotPlain(Exception):
    """A scalar that JSON, or a program's environment, could not hold; the message says why."""


def resolved(plain: str) -> Any:
    """What a scalar without quotes stands for. Raises NotPlain."""
    convert = _conversion(plain)
    return convert(plain) if convert else checked(plain)


def is_text(plain: str) -> bool:
    """Whether a scalar without quotes stands for itself."""
    return _conversion(plain) is None


def checked(text: str) -> str:
    """The text itself. Raises NotPlain."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise NotPlain("the text contains a NUL or half a surrogate pair")
    return text


def quoted(text: str) -> str:
    """On one line, printable, and not too long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    value = int(digits, base) * (-1 if text.startswith("-") else 1) if len(digits) <= 64 else None
    if value is None or not -(2**63) <= value < 2**63:
        raise NotPlain(f"the number {quoted(text)} does not fit into 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotPlain(f"the number {quoted(text)} is too large")
    return value


def _not_finite(text: str) -> None:
    raise NotPlain(f"{text} is no finite number")


_CONVERSIONS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile("null|Null|NULL|~|"), lambda text: None),
    (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _integer),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), _float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), _not_finite),
)


def _conversion(plain: str) -> Callable[[str], Any] | None:
    return next((convert for pattern, convert in _CONVERSIONS if pattern.fullmatch(plain)), None)
