"""Precision means what it says."""

import sys
from typing import Any

import pytest
import torch
from forked import Training, log_of
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision

from launcher.node.precision import UnsupportedPrecision, computed_type, precision_arguments
from launcher.status import status


def trainer(precision: str) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, **quiet, **precision_arguments(precision, "cpu"))


@pytest.mark.parametrize(
    ("precision", "computes"),
    [
        ("32-true", "float32"),
        ("64-true", "float64"),
        ("bf16-mixed", "bfloat16"),
        ("bf16-true", "bfloat16"),
        ("16-mixed", "float16"),
    ],
)
def test_the_named_type_really_computes(precision: str, computes: str) -> None:
    made = trainer(precision)

    assert made.precision == precision
    assert computed_type(made) == computes


def test_fp16_on_the_cpu_has_a_gradient_scaler() -> None:
    assert isinstance(trainer("16-mixed").scaler, torch.amp.GradScaler)


def test_a_plugin_that_computes_in_another_type_than_it_says_is_refused() -> None:
    lying = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    lying.autocast_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)  # type: ignore[method-assign]
    made = Trainer(accelerator="cpu", devices=1, plugins=[lying], logger=False, enable_checkpointing=False)

    with pytest.raises(UnsupportedPrecision, match=r"16-mixed, but cpu computes in torch\.bfloat16"):
        computed_type(made)


@pytest.mark.parametrize(("precision", "word"), [("16-mixed", "bf16-mixed"), ("16-true", "bf16-true")])
def test_float16_on_xla_is_refused_on_the_node_too(precision: str, word: str) -> None:
    with pytest.raises(UnsupportedPrecision, match=f"{precision} does not run .*use '{word}'"):
        precision_arguments(precision, "xla")


def test_xla_without_torch_xla_says_what_to_install(launch: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    run = launch.create({"model": {"class_path": "toys.Classifier"}, "trainer": {"strategy": "xla"}})

    assert launch.drive(run).state == "failed"
    assert "needs torch-xla" in log_of(run)
    assert "'launcher[tpu]' into an environment of its own" in log_of(run)


@pytest.mark.parametrize(("precision", "computes"), [("16-mixed", "float16"), ("bf16-mixed", "bfloat16")])
def test_status_says_what_ran(launch: Training, precision: str, computes: str) -> None:
    spec: dict[str, Any] = {
        "model": {"class_path": "toys.Classifier"},
        "data": {"class_path": "toys.NoisyData"},
        "trainer": {"max_steps": 3, "precision": precision, "logger": False},
    }
    run = launch.run(spec)

    shown = status(run)
    assert (shown["precision"], shown["compute"]) == (precision, computes), log_of(run)
