"""The values of a document, where each of them was written, and what is wrong with them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the document."""


class Place(NamedTuple):
    """Where something was written; sorts in reading order."""

    line: int
    text: str
    """For people, such as `jobs/mnist.yaml:12`."""


class Finding(NamedTuple):
    """Something wrong at a place; sorts in reading order."""

    place: Place
    path: Path
    message: str


@dataclass(slots=True)
class Document:
    """What a YAML text says, and what is wrong with it."""

    value: Any
    """None also where nothing can be said, because the text is no YAML; then there is a finding."""
    places: dict[Path, Place]
    findings: list[Finding]

    def place(self, path: Path) -> Place:
        """Of the value, or else of the nearest one around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]
