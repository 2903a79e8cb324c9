"""What can be chosen about a lab: written down when it comes up, and an option each on the command line."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from machines.errors import MachineError

_Settings = TypeVar("_Settings", bound="Chosen")


@dataclass(frozen=True)
class Chosen:
    """Numbers, words, truths, and tuples of words."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises MachineError where another version of this file wrote it."""
        given: dict[str, Any] = json.loads(text)
        if given.keys() != {field.name for field in fields(cls)}:
            raise MachineError("its settings are of another version; remove it with `down --wipe`, then `up`")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    def differences(self, other: Self) -> list[str]:
        return [
            f"{field.name}: {getattr(self, field.name)} -> {getattr(other, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def add_options(parser: argparse.ArgumentParser, settings: type[Chosen], meaning: Mapping[str, str]) -> None:
    """An option for each setting, which is set only where it is given. That of a tuple may be repeated."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        option, hint = "--" + field.name.replace("_", "-"), hints[field.name]
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": meaning[field.name]}
        if field.default != ():
            options["help"] += f" (default: {field.default})"
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is tuple:
            option = option.removesuffix("d")  # shared: --share
            options |= {"action": "append", "metavar": "DIR"}
        elif get_origin(hint) is Literal:
            options["choices"] = get_args(hint)
        elif hint in (int, float):
            options |= {"type": hint, "metavar": "N"}
        parser.add_argument(option, **options)


def chosen(arguments: argparse.Namespace, settings: type[_Settings]) -> _Settings | None:
    """None when nothing was."""
    found = {field.name: getattr(arguments, field.name) for field in fields(settings) if field.name in arguments}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return settings(**found) if found else None
