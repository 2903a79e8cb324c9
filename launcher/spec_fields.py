"""What the sections of a job spec are made of: their base, class specs, and values of a certain form."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Section(BaseModel):
    """A mapping of the job spec: no unknown keys, no conversions (neither "3" nor true is a number), no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    elsewhere: ClassVar[dict[str, str]] = {}
    """Keys that people look for here, and where to put them instead."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the docstrings of the keys. Pydantic's use_attribute_docstrings would look for them at each start."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for section in reversed(cls.__mro__[: cls.__mro__.index(Section)]):
            for key, description in _docstrings(section):
                if key in properties:
                    properties[key]["description"] = description
        return schema


def _docstrings(section: type) -> Iterator[tuple[str, str]]:
    """Of a class's own attributes, as its source has them."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    for pair in pairwise(tree.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str() as text)):
                yield key, inspect.cleandoc(text)


@dataclass(frozen=True, slots=True)
class Form:
    """Annotates a type: only values that fit; any other gives the problem `expected <wanted>, got ...`."""

    wanted: str
    fits: Callable[[Any], bool]
    pattern: str | None = None
    """The same for editors, as a regular expression over the whole text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | ({"pattern": f"^(?:{self.pattern})$"} if self.pattern else {})

    def _check(self, value: Any) -> Any:
        if not self.fits(value):
            raise PydanticCustomError("form", "expected {wanted}", {"wanted": self.wanted})
        return value


def text(pattern: str, wanted: str) -> Form:
    """The form of a text that the pattern matches as a whole."""
    return Form(wanted, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)), pattern)


_N = "[0-9]{1,9}"
_AMOUNT = rf"{_N}(?:\.{_N})?"
_DURATION = "|".join(
    (
        rf"(?=[0-9])(?:{_AMOUNT}d)?(?:{_AMOUNT}h)?(?:{_AMOUNT}m)?(?:{_AMOUNT}s)?",
        rf"(?:{_N}-)?{_N}:[0-5][0-9]:[0-5][0-9]",
        rf"{_N}-{_N}(?::[0-5][0-9])?",
    )
)
_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(duration: str) -> float:
    """Seconds of a duration such as "90s", "10m", "1h30m", "24:00:00", "1-12" or "1-12:00:00".

    Raises:
        ValueError: it has another form.
    """
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"{duration!r} is not a duration")
    if not {"-", ":"} & set(duration):
        return sum(float(amount) * _UNIT_S[unit] for amount, unit in re.findall("([0-9.]+)([dhms])", duration))
    days, _, clock = duration.rpartition("-")
    parts = zip(clock.split(":"), "hms", strict=False)
    return float(days or 0) * _UNIT_S["d"] + sum(float(part) * _UNIT_S[unit] for part, unit in parts)


Duration = Annotated[
    str,
    Form(
        "a duration such as '90s', '10m', '1h30m', '24:00:00' or '1-12:00:00' (a bare 30 or 10:00 could mean minutes "
        "or seconds)",
        lambda value: isinstance(value, str) and bool(re.fullmatch(_DURATION, value)) and seconds(value) > 0,
        _DURATION,
    ),
]

Batches = Annotated[
    int | float,
    Form(
        "a share from 0.0 to 1.0 or a whole number of batches",
        lambda value: type(value) in (int, float) and value >= 0 and (value <= 1 or value % 1 == 0),
    ),
]
"""1.0 is all batches, 1 is one batch."""

ElapsedTime = (
    Annotated[str, text("[0-9]{1,6}:[0-9]{2}:[0-9]{2}:[0-9]{2}", "a time such as '01:12:00:00' (DD:HH:MM:SS)")]
    | Annotated[
        dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Annotated[float, Field(ge=0)]],
        Form("a mapping such as {hours: 12}", lambda value: isinstance(value, dict)),
    ]
)
"""As Lightning's Timer takes it."""


Name = Annotated[
    str, text("[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "1 to 63 letters, digits, '.', '_' and '-', a letter or digit first")
]
Memory = Annotated[
    str, text("[1-9][0-9]{0,8}[KMGT]|0", "an amount with its unit, such as '16G' or '512M', or \"0\" for all of a node")
]

_RANGE = "([1-9][0-9]{0,8})-([1-9][0-9]{0,8})"


def _is_range(value: Any) -> bool:
    found = re.fullmatch(_RANGE, value) if isinstance(value, str) else None
    return found is not None and int(found[1]) <= int(found[2])


Range = Annotated[str, Form("a range such as '2-4'", _is_range, _RANGE)]
"""The least and the most, as sbatch has them."""
VariableName = Annotated[str, text("[A-Za-z_][A-Za-z0-9_]*", "letters, digits and '_', no digit first")]
OneOrMany = BeforeValidator(
    lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
)
"""Of a list of texts: a single one needs no list."""


class ClassSpec(Section):
    """A class and the arguments to make an object with, as LightningCLI has them."""

    class_path: Annotated[
        str, text(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+", "an importable name such as 'package.module.Class'")
    ]
    """Where to import the class from."""
    init_args: dict[str, Any] = Field(default_factory=dict)
    """Its arguments; mappings with a class_path become objects, however deep they are."""
