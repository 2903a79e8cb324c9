"""YAML text to plain values, with the place at which each of them was written.

Scalars follow the core schema of YAML 1.2 (`yamlscalar.py`). Only what JSON could hold as well is accepted: no tags,
no merge keys, no keys other than text, no infinities. PyYAML does the parsing; the values are built here, from its
events, so that hostile input is refused early: deep nesting, aliases that multiply, aliases of themselves.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from launcher.document import Document, Finding, Path, Place
from launcher.yamlscalar import NotPlain, checked, is_text, quoted, resolved

MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_CHARACTERS = MAX_BYTES
MAX_DEPTH = 50


class Unreadable(Exception):
    """The file cannot be taken for a YAML text; the message says why."""


class _Fatal(Exception):
    def __init__(self, line: int, message: str) -> None:
        self.line, self.message = line, message


def read(path: FilePath) -> bytes:
    """The content of a file of reasonable size. Raises Unreadable."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"this is {'a directory' if stat.S_ISDIR(status.st_mode) else 'no regular file'}")
        if status.st_size > MAX_BYTES:
            raise Unreadable(f"a job spec is a few KB; this file has {status.st_size:,} bytes")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:  # files in /proc have no size
            raise Unreadable(f"a job spec is a few KB; this file has more than {MAX_BYTES:,} bytes")
        return content
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str | bytes, place: Callable[[int], Place]) -> Document:
    """Build the values of a single document. What is wrong stands in the findings, with None in its stead.

    Args:
        text: bytes are UTF-8.
        place: where a line, counted from 1, is written.
    """
    builder = _Builder(place)
    try:
        value = builder.build(_decoded(text))
    except _Fatal as fatal:
        value = None
        builder.findings.append(Finding(place(fatal.line), (), fatal.message))
    return Document(value, builder.places, builder.findings)


def _decoded(text: str | bytes) -> str:
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _Fatal(line, f"not a text in UTF-8: byte 0x{error.object[error.start]:02x}") from None
    if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(decoded):
        line = decoded.count("\n", 0, unprintable.start()) + 1
        code = ord(unprintable.group())
        raise _Fatal(line, f"contains {'a NUL byte' if code == 0 else f'the unprintable character U+{code:04X}'}")
    return decoded


@dataclass(slots=True)
class _Anchored:
    value: Any = None
    values: int = 0
    characters: int = 0
    height: int = 0
    open: bool = True
    """Its end has not been read yet."""


@dataclass(slots=True)
class _Builder:
    place: Callable[[int], Place]
    places: dict[Path, Place] = field(init=False)
    findings: list[Finding] = field(default_factory=list)
    _anchors: dict[str, _Anchored] = field(default_factory=dict)
    _values: int = 0
    _characters: int = 0
    _loader: Any = None

    def __post_init__(self) -> None:
        self.places = {(): self.place(1)}

    def build(self, text: str) -> Any:
        self._loader = yaml.SafeLoader(text)
        try:
            self._loader.get_event()  # the stream starts
            if self._loader.check_event(yaml.StreamEndEvent):
                return None
            self._loader.get_event()  # the document starts
            value = self._value(())
            self._loader.get_event()  # and ends
            if not self._loader.check_event(yaml.StreamEndEvent):
                raise _Fatal(self._line(), "a second document begins here; a file holds one")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _Fatal(mark.line + 1 if mark else 1, _in_words(error)) from None
        except (ValueError, OverflowError):  # PyYAML does not guard its chr() and int()
            raise _Fatal(self._loader.line + 1, "not valid YAML: a number or an escape is out of range") from None
        return value

    def _line(self) -> int:
        line: int = self._loader.peek_event().start_mark.line
        return line + 1

    def _found(self, line: int, path: Path, message: str) -> None:
        self.findings.append(Finding(self.place(line), path, message))

    def _count(self, line: int, path: Path, characters: int, values: int = 1, height: int = 0) -> None:
        self._values += values
        self._characters += characters
        if self._values > MAX_VALUES:
            raise _Fatal(line, f"more than {MAX_VALUES:,} values, aliases expanded; a job spec has a few dozen")
        if self._characters > MAX_CHARACTERS:
            raise _Fatal(
                line, f"more than {MAX_CHARACTERS:,} characters, aliases expanded; a job spec has a few hundred"
            )
        if len(path) + height > MAX_DEPTH:
            raise _Fatal(line, f"nested deeper than {MAX_DEPTH} levels")

    def _value(self, path: Path) -> Any:
        line = self._line()
        event = self._loader.get_event()
        self.places.setdefault(path, self.place(line))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), line, path)
        values, characters = self._values, self._characters
        self._count(line, path, len(event.value) if isinstance(event, yaml.ScalarEvent) else 0)
        anchored = _Anchored()
        if event.anchor:
            self._anchors[event.anchor] = anchored
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, line, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._mapping(path)
        if event.tag is not None:
            tag = quoted(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._found(line, path, f"the tag {tag} is not supported; write plain values")
            value = None
        anchored.value, anchored.open = value, False
        anchored.values, anchored.characters = self._values - values, self._characters - characters
        anchored.height = _height(value) if event.anchor else 0
        return value

    def _alias(self, name: str, line: int, path: Path) -> Any:
        anchored = self._anchors.get(name)
        if anchored is None or anchored.open:
            reason = "stands inside the value that it names" if anchored else "names no anchor above it"
            self._found(line, path, f"the alias {quoted('*' + name)} {reason}")
            return None
        self._count(line, path, anchored.characters, anchored.values, anchored.height)
        return anchored.value

    def _scalar(self, event: yaml.ScalarEvent, line: int, path: Path) -> Any:
        try:
            return checked(event.value) if event.style else resolved(event.value)
        except NotPlain as error:
            self._found(line, path, str(error))
            return None

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            items.append(self._value((*path, len(items))))
        self._loader.get_event()
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            line = self._line()
            key = self._key(line, path)
            if key in mapping:
                first, here = self.places[*path, key].text, self.place(line).text
                also = f"; the first is at {first}" if first != here else ""
                self._found(line, (*path, key), f"duplicate key {quoted(key)}{also}")
            if key is None or key in mapping:
                self._value((*path, "?"))
            else:
                self.places[*path, key] = self.place(line)
                mapping[key] = self._value((*path, key))
        self._loader.get_event()
        return mapping

    def _key(self, line: int, path: Path) -> str | None:
        if not self._loader.check_event(yaml.ScalarEvent):
            self._value((*path, "?"))
            self._found(line, path, "a key must be text, not a list, a mapping or an alias")
            return None
        event = self._loader.get_event()
        self._count(line, path, len(event.value))
        if event.anchor:
            self._found(line, path, f"the key {quoted(event.value)} has an anchor; only values may have one")
        if event.tag or (not event.style and not is_text(event.value)):
            self._found(line, path, f"the key {quoted(event.value)} is not text; put it in quotes")
        elif event.value == "<<":
            self._found(line, path, "merge keys ('<<') are not supported; write the keys out")
        else:
            try:
                return checked(event.value)
            except NotPlain as error:
                self._found(line, path, str(error))
        return None


def _height(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + _height(child) for child in children), default=0)


_REASONS = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": (
        "a value with ': ' in it needs quotes, the indentation is wrong, or the line above lacks its ':'"
    ),
    "expected <block end>": "the indentation does not fit the lines above",
    "could not find expected ':'": "a key without ': ' after it",
    "cannot start any token": "text that begins with this character needs quotes",
}


def _in_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    reason = next((words for part, words in _REASONS.items() if part in problem), "")
    begun = f"; {error.context}, begun on line {error.context_mark.line + 1}" if error.context_mark else ""
    return f"{reason} (not valid YAML: {problem})" if reason else f"not valid YAML: {problem}{begun}"
