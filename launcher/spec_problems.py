"""What is wrong with a job spec, in the words of the people who write one."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.document import Document, Finding, Path
from launcher.errors import Problem
from launcher.spec_fields import Section
from launcher.yamlscalar import is_text, quoted

_EXPECTED = {
    "bool_type": ("true", "false"),
    "dict_type": ("a mapping",),
    "float_type": ("a number",),
    "int_type": ("a whole number",),
    "list_type": ("a list",),
    "string_type": ("text",),
}
_NUMBERS = {"a number", "a whole number"}
_LISTED = 16
"""Known keys are listed where they are no more than this."""


def in_words(error: ValidationError, document: Document, root: type[Section]) -> list[Finding]:
    """One finding for each value that is wrong; nothing about values that already have one."""
    known = {finding.path for finding in document.findings}
    by_path: dict[Path, list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        by_path[_path(detail, document.value)].append(detail)
    # Of a value that could be one of several things, pydantic reports why it is none of them. What it says about
    # the inside comes from the alternative that was meant: the others failed at the value itself.
    outsides = {path[:length] for path in by_path for length in range(len(path))}
    return [
        Finding(document.place(path), path, _message(path, details, document.value, root))
        for path, details in by_path.items()
        if path not in outsides and path not in known
    ]


def as_problems(findings: Iterable[Finding]) -> Iterator[Problem]:
    """In the order in which a reader of the file meets them."""
    for finding in sorted(findings, key=lambda one: one.place.line):
        yield Problem(finding.place.text, dotted(finding.path), finding.message)


def dotted(path: Path) -> str:
    """The path as people write it."""
    return ".".join(str(key) if re.fullmatch(r"[\w.-]{1,60}", str(key)) else quoted(str(key)) for key in path)


def given(value: Any) -> str:
    """What stands in the file, named by what YAML makes of it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {quoted(value)}"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "a mapping"


@lru_cache
def nearest(word: str, candidates: tuple[str, ...]) -> str | None:
    """The candidate that was probably meant."""
    if len(word) > 60:
        return None  # difflib would take long over it
    begun = [candidate for candidate in candidates if len(word) > 2 and candidate.startswith(word)]
    return next(iter(begun or difflib.get_close_matches(word, candidates, n=1)), None)


def _path(detail: ErrorDetails, value: Any) -> Path:
    """Where it is in the document: pydantic's location without the names of the alternatives that it tried."""
    path: Path = ()
    for key in detail["loc"]:
        if _holds(value, key):
            path, value = (*path, key), value[key]
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else path


def _message(path: Path, details: list[ErrorDetails], document: Any, root: type[Section]) -> str:
    value = _at(document, path)
    if of_key := [detail for detail in details if detail["loc"][-1:] == ("[key]",)]:
        value, details = path[-1], of_key
    for detail in details:
        context = detail.get("ctx", {})
        match detail["type"]:
            case "missing":
                return "required, but missing"
            case "extra_forbidden":
                return _unknown_key(path, root)
            case "greater_than_equal":
                return f"expected {context['ge']:g} or more, got {value}"
            case "greater_than":
                return f"expected more than {context['gt']:g}, got {value}"
            case "less_than_equal":
                return f"expected {context['le']} or less, got {value}"
            case "too_short":
                return f"expected at least one value, got an empty {'list' if isinstance(value, list) else 'mapping'}"
            case "value_error":
                return str(context["error"])
    expected = list(dict.fromkeys(word for detail in details for word in _expected(detail)))
    listed = " or ".join(filter(None, (", ".join(expected[:-1]), expected[-1])))
    return f"expected {listed}, got {given(value)}{_hint(expected, value, _required(path, root))}"


def _expected(detail: ErrorDetails) -> tuple[str, ...]:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "form":
        return (context["wanted"],)
    if kind == "literal_error":
        return tuple(re.findall(r"'[^']*'|\b(?!or\b)\w+", context["expected"]))
    if kind == "model_type":
        of_class = context["class_name"] in ("ClassSpec", "Model")
        return ("a mapping with class_path and init_args" if of_class else "a mapping",)
    return _EXPECTED.get(kind, ("something else",))


def _hint(expected: list[str], value: Any, required: bool) -> str:
    if value is None:
        return "; give it a value" if required else "; give it a value or leave it out"
    if isinstance(value, str):
        literals = tuple(word.strip("'") for word in expected if word.startswith("'"))
        if near := nearest(value, literals):
            return f"; did you mean '{near}'?"
        if _NUMBERS & {*expected} and not is_text(value):
            return "; remove the quotes"
        if "true" in expected and value.lower() in ("yes", "on", "no", "off"):
            return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    elif "text" in expected and isinstance(value, int | float):
        return f'; put it in quotes: "{str(value).lower()}"'
    return ""


def _unknown_key(path: Path, root: type[Section]) -> str:
    key, section = str(path[-1]), _section(root, path[:-1])
    if key in section.elsewhere:
        return f"cannot be set here; {section.elsewhere[key]}"
    message = f"unknown key {quoted(key)}"
    names = tuple(section.model_fields)
    if near := nearest(key, names):
        return f"{message}; did you mean '{near}'?"
    for name, field in root.model_fields.items():
        if any(key in one.model_fields for one in _sections_in(field.annotation)):
            return f"{message}; did you mean '{name}.{key}'?"
    return f"{message}; known here: {', '.join(names)}" if 0 < len(names) <= _LISTED else message


def _required(path: Path, root: type[Section]) -> bool:
    field = _section(root, path[:-1]).model_fields.get(str(path[-1]))
    return field is not None and field.is_required()


def _section(root: type[Section], path: Path) -> type[Section]:
    """The section whose keys stand at the path; where there is none, one without any keys."""
    section = root
    for key in path:
        if isinstance(key, str):
            field = section.model_fields.get(key)
            section = next(iter(_sections_in(field.annotation)), Section) if field else Section
    return section


def _sections_in(annotation: Any) -> set[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}
    return {section for argument in get_args(annotation) for section in _sections_in(argument)}


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key] if _holds(value, key) else None
    return value


def _holds(value: Any, key: str | int) -> bool:
    return key in value if isinstance(value, dict) else isinstance(value, list) and isinstance(key, int)
