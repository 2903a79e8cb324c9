"""The `sweep` section of a job spec: what its runs differ in. Pure."""

import itertools
import math
import random as generator
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from launcher.document import Path
from launcher.spec_fields import Form, Section

MAX_RUNS = 10_000
_EXACT = 2**53
"""Whole numbers up to here are floats as well."""

Values = dict[str, Any]
"""What one run of a sweep has in place of the spec's own: by dotted key."""


def _bounds(wanted: str, fits: Callable[[float, float], bool], kinds: tuple[type, ...] = (int, float)) -> Form:
    def right(value: Any) -> bool:
        numbers = isinstance(value, list) and len(value) == 2 and all(type(one) in kinds for one in value)
        return numbers and max(map(abs, value)) <= _EXACT and value[0] < value[1] and fits(*value)

    return Form(wanted, right)


_Choices = Annotated[list[Any], Field(min_length=1)]
_Bounds = Annotated[list[float], _bounds("two numbers, the smaller first", lambda low, high: True)]
_Positive = Annotated[list[float], _bounds("two numbers above 0, the smaller first", lambda low, high: low > 0)]
_Whole = Annotated[list[int], _bounds("two whole numbers, the smaller first", lambda low, high: True, (int,))]


class Distribution(Section):
    """What a value is drawn from; exactly one of these."""

    uniform: _Bounds | None = None
    """[lowest, highest], each number between them as likely."""
    log_uniform: _Positive | None = None
    """[lowest, highest], each order of magnitude as likely: for learning rates."""
    int_uniform: _Whole | None = None
    """[lowest, highest], whole numbers, both included."""
    choice: _Choices | None = None
    """Any of these values."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(_given(self, "uniform", "log_uniform", "int_uniform", "choice")) != 1:
            raise ValueError("give one of uniform, log_uniform, int_uniform and choice")
        return self

    def at(self, share: float) -> Any:
        """The value that stands at this share, from 0 to 1, of the distribution."""
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.int_uniform is not None:
            first, last = self.int_uniform
            return min(last, first + math.floor(share * (last - first + 1)))
        bounds = self.uniform or self.log_uniform
        assert bounds
        low, high = bounds
        value = low + share * (high - low) if self.uniform else low * (high / low) ** share
        # Six digits read well, and hide in which last bit the mathematics of two machines differ.
        return min(high, max(low, float(f"{value:.6g}")))


class Random(Section):
    """Runs whose values are drawn."""

    n: Annotated[int, Field(ge=1, le=MAX_RUNS)]
    """How many runs. More of them leave the first ones as they are."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed draws the same values."""
    space: Annotated[dict[str, Distribution], Field(min_length=1)]
    """Dotted keys, as for --set, each with what its values are drawn from."""


_Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
_List = Annotated[list[Annotated[dict[str, Any], Field(min_length=1)]], Field(min_length=1, max_length=MAX_RUNS)]


class Sweep(Section):
    """Several runs of one spec; exactly one of grid, list and random says which."""

    metric: str | None = None
    """What the runs are compared by: a logged metric, such as val_loss. By default checkpoint.monitor."""
    mode: Literal["min", "max"] = "min"
    """Which values of the metric are better: small ones or large ones."""
    max_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """How many runs this machine does at the same time; each has its share of the GPUs and of the cores."""
    random: Random | None = None
    grid: _Grid | None = None
    """Dotted keys, as for --set, each with a list of values; every combination is a run."""
    list: _List | None = None
    """One mapping a run, of dotted keys to values."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(_given(self, "grid", "list", "random")) != 1:
            raise ValueError("give one of grid, list and random")
        if self.metric is None and "mode" in self.model_fields_set:
            raise ValueError("mode needs a metric: add metric, such as metric: val_loss")
        runs = math.prod(len(values) for values in (self.grid or {}).values())
        if runs > MAX_RUNS:
            raise ValueError(f"the combinations of the grid make {runs:,} runs; at most {MAX_RUNS:,} are possible")
        return self


def cells(sweep: Sweep) -> tuple[Values, ...]:
    """The values of each run, in an order that never changes: in a grid, the last key changes first."""
    if sweep.grid is not None:
        return tuple(dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values()))
    if sweep.list is not None:
        return tuple(sweep.list)
    drawn = sweep.random
    assert drawn
    return tuple(
        {key: space.at(_share(drawn.seed, index, key)) for key, space in drawn.space.items()}
        for index in range(drawn.n)
    )


class Written(NamedTuple):
    """A key that a sweep varies, as it stands in the file."""

    place: Path
    key: str
    values: tuple[tuple[Path, Any], ...]
    """Each with its place."""


def written(sweep: Any) -> Iterator[Written]:
    """What a sweep says that it varies, be the section right or not. Of a range, its bounds."""
    for key, values in _mapping(sweep, "grid").items():
        yield _written(("sweep", "grid", key), key, values)
    runs = sweep.get("list") if isinstance(sweep, dict) else None
    for index, run in enumerate(runs) if isinstance(runs, list) else ():
        for key, value in run.items() if isinstance(run, dict) else ():
            place: Path = ("sweep", "list", index, key)
            yield Written(place, key, ((place, value),))
    for key, distribution in _mapping(_mapping(sweep, "random"), "space").items():
        for kind, values in distribution.items() if isinstance(distribution, dict) else ():
            yield _written(("sweep", "random", "space", key, kind), key, values)


def _written(place: Path, key: str, values: Any) -> Written:
    listed = values if isinstance(values, list) else []
    return Written(place, key, tuple(((*place, index), value) for index, value in enumerate(listed)))


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, dict) else {}


def _given(section: Section, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if getattr(section, name) is not None)


def _share(seed: int, index: int, key: str) -> float:
    """From 0 to 1, without 1; another key or another run draws for itself. `random()` is the one method whose numbers
    Python promises to keep."""
    return generator.Random(f"{seed}/{index}/{key}").random()
