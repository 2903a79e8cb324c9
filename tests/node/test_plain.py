"""What is saved can be loaded again under weights_only=True, and what cannot is refused by name, at once."""

import argparse
import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Training, last_checkpoint, log_of
from test_exact import interrupted, spec
from toys import Full

from launcher.node.plain import NotRepresentable, plain


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Inner:
    path: Path
    sizes: list[np.int64] = field(default_factory=list)


class Text(str):
    """Not a str itself."""


@pytest.mark.parametrize(
    ("value", "made"),
    [
        (Path("/data/x"), "/data/x"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (np.float64(0.5), 0.5),
        (np.int32(7), 7),
        (np.bool_(True), True),
        (Inner(Path("a"), [np.int64(1)]), {"path": "a", "sizes": [1]}),
        (Text("t"), "t"),
        ({Colour.RED: (Path("p"), {1, 2})}, {"red": ("p", {1, 2})}),
        (torch.float16, torch.float16),
        (None, None),
    ],
    ids=repr,
)
def test_common_values_become_plain(value: Any, made: Any) -> None:
    assert plain(value) == made
    assert type(plain(value)) is type(made)


def test_a_state_dict_keeps_its_order_and_its_versions() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()

    assert isinstance(plain(state), OrderedDict)
    assert plain(state)._metadata == state._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [len, argparse.Namespace(a=1), np.zeros(2), object(), torch.nn.ReLU, {1: [object()]}])
def test_what_nobody_could_load_is_refused_with_its_key(value: Any) -> None:
    with pytest.raises(NotRepresentable, match=r"hyper_parameters\.x.* cannot be saved such that"):
        plain({"hyper_parameters": {"x": value}})


class Configured(Full):
    """Hyperparameters of many kinds."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                "folder": Path("/data"),
                "colour": Colour.RED,
                "inner": Inner(Path("b")),
                "lr": np.float32(0.5),
                **({"loss_fn": torch.nn.functional.mse_loss} if bad else {}),
            }
        )


def test_hyperparameters_of_many_kinds_are_saved_and_resumed(launch: Training) -> None:
    body = {**spec(max_epochs=2), "model": {"class_path": "test_plain.Configured"}}
    run = launch.run(interrupted(body, "mid-epoch", "SIGTERM"))

    assert len(run.ledger.refresh().attempts) == 2, log_of(run)
    saved = last_checkpoint(run)["hyper_parameters"]
    assert (saved["folder"], saved["colour"], saved["inner"]["path"], saved["lr"]) == ("/data", "red", "b", 0.5)


def test_a_hyperparameter_that_cannot_be_saved_is_refused_before_the_first_step(launch: Training) -> None:
    body = {**spec(max_epochs=1), "model": {"class_path": "test_plain.Configured", "init_args": {"bad": True}}}
    run = launch.create(body)
    ended = launch.drive(run)

    assert ended.state == "failed"
    assert "hyper_parameters.loss_fn: a builtins.function cannot be saved" in ended.reason
    assert not run.ledger.refresh().checkpoints
    assert "Traceback" not in log_of(run)
