"""`--set key=value`: a value, in YAML, put at a dotted key of a document."""

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.document import Document, Finding, Path, Place
from launcher.yamlfile import MAX_DEPTH, parse
from launcher.yamlscalar import NotPlain, checked, quoted

_AFTER_ALL_LINES = 10**9
_SHOWN = 120
"""Longer assignments are cut short where they are named."""


class CannotSet(Exception):
    """The key leads nowhere; the message says why."""


def override(document: Document, assignment: str) -> Document:
    """The document with one assignment made; if that cannot be done, unchanged but for a finding."""
    short = assignment.isprintable() and len(assignment) <= _SHOWN
    place = Place(_AFTER_ALL_LINES, f"--set {assignment if short else quoted(assignment)}")
    key, equals, text = assignment.partition("=")
    given = parse(text, lambda line: place)
    try:
        if not equals:
            raise CannotSet("expected key=value, such as trainer.max_epochs=3")
        value, path = assign(document.value, checked(key), given.value)
    except (CannotSet, NotPlain) as error:
        return Document(document.value, document.places, [*document.findings, Finding(place, (), str(error))])
    around = {path[:length]: place for length in range(len(path))}
    kept = {known: where for known, where in document.places.items() if known[: len(path)] != path}
    found = [Finding(place, (*path, *finding.path), finding.message) for finding in given.findings]
    return Document(value, around | kept | {path: place}, [*document.findings, *found])


def assign(tree: Any, key: str, value: Any) -> tuple[Any, Path]:
    """A copy of the tree in which the value stands at the dotted key, and the key as a path.

    Mappings on the way are made where nothing is; items of lists go by their index.

    Raises:
        CannotSet: an item does not exist, or the way leads through a text or a number.
    """
    keys = key.split(".")
    if not all(keys):
        raise CannotSet(f"{quoted(key)} is no dotted key such as trainer.max_epochs")
    if len(keys) > MAX_DEPTH:
        raise CannotSet(f"nested deeper than {MAX_DEPTH} levels")
    return _assign(tree, (), keys, value)


def vary(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a spec with those of one run of its sweep in their places, and without the sweep.

    Raises:
        CannotSet: a key leads nowhere.
    """
    tree: Any = {key: value for key, value in values.items() if key != "sweep"}
    for key, value in changes.items():
        tree, _ = assign(tree, key, value)
    varied: dict[str, Any] = tree
    return varied


def _assign(node: Any, above: Path, keys: Sequence[str], value: Any) -> tuple[Any, Path]:
    if not keys:
        return value, above
    key, *below = keys
    if isinstance(node, list):
        indices = {str(index): index for index in range(len(node))}
        if key not in indices:
            raise CannotSet(f"{_dotted(above)} is a list of {len(node)}, counted from 0; it has no item {quoted(key)}")
        index = indices[key]
        child, path = _assign(node[index], (*above, index), below, value)
        return [*node[:index], child, *node[index + 1 :]], path
    if not isinstance(node, dict | None):
        raise CannotSet(f"{_dotted(above)} is no mapping; it cannot have a key {quoted(key)}")
    mapping = node or {}
    child, path = _assign(mapping.get(key), (*above, key), below, value)
    return {**mapping, key: child}, path


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
