"""The table of Trainer arguments is what the installed Lightning says."""

import inspect
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import ValidationError

from launcher.trainer_args import TrainerArgs

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def generator() -> Any:
    """scripts/generate-trainer-args, not run."""
    loader = SourceFileLoader("generate_trainer_args", str(REPOSITORY / "scripts" / "generate-trainer-args"))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_table_is_generated_from_the_installed_lightning(generator: Any) -> None:
    table = REPOSITORY / "launcher" / "trainer_args.py"

    assert table == generator.TARGET
    assert generator.render() == table.read_text(), "run scripts/generate-trainer-args and read the difference"


def test_every_argument_is_in_the_table_or_the_launchers_own() -> None:
    arguments = inspect.signature(Trainer.__init__).parameters.keys() - {"self"}

    assert TrainerArgs.model_fields.keys() | TrainerArgs.elsewhere.keys() == arguments
    assert not TrainerArgs.model_fields.keys() & TrainerArgs.elsewhere.keys()


def test_defaults_are_those_of_lightning() -> None:
    parameters = inspect.signature(Trainer.__init__).parameters

    assert TrainerArgs().model_dump() == {name: parameters[name].default for name in TrainerArgs.model_fields}


def test_the_generator_stops_at_an_argument_that_is_gone(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generator.OWNED, "gone", "use something else")

    with pytest.raises(SystemExit, match="Trainer has no argument gone"):
        generator.render()


def test_the_generator_stops_at_a_type_it_has_no_rule_for(generator: Any) -> None:
    assert generator.type_of("new", int | None) == "int | None"
    with pytest.raises(SystemExit, match="no rule for"):
        generator.type_of("new", complex | None)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("limit_train_batches", 0.5, True),
        ("limit_train_batches", 0, True),
        ("limit_train_batches", 1.0, True),
        ("limit_train_batches", 7, True),
        ("limit_train_batches", 7.0, True),
        ("limit_train_batches", 1.5, False),
        ("limit_train_batches", -1, False),
        ("overfit_batches", 0.5, True),
        ("overfit_batches", 1.5, False),
        ("val_check_interval", 0.5, True),
        ("val_check_interval", 100, True),
        ("val_check_interval", 1.5, False),
        ("val_check_interval", "00:00:30:00", True),
        ("val_check_interval", {"minutes": 30}, True),
        ("max_time", "00:12:00:00", True),
        ("max_time", {"hours": 12, "minutes": 0.5}, True),
        ("max_time", "12:00:00", False),
        ("max_time", 30, False),
        ("max_epochs", -1, True),
        ("max_epochs", -2, False),
        ("max_steps", -2, False),
        ("num_sanity_val_steps", -1, True),
        ("log_every_n_steps", 0, True),
        ("gradient_clip_algorithm", "norm", True),
        ("gradient_clip_algorithm", "max", False),
        ("precision", "bf16-mixed", True),
        ("precision", 32, True),
        ("precision", "fp8", False),
        ("profiler", "simple", True),
        ("profiler", "none", False),
        ("deterministic", "warn", True),
        ("reload_dataloaders_every_n_epochs", -1, False),
        ("check_val_every_n_epoch", None, True),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_value_that_the_table_refuses_lightning_refuses_too(
    name: str, value: object, right: bool, tmp_path: Path
) -> None:
    def table() -> None:
        TrainerArgs.model_validate({name: value})

    def lightning() -> None:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet, **{name: value})  # type: ignore[arg-type]

    if right:
        table()
        lightning()
    else:
        with pytest.raises(ValidationError):
            table()
        with pytest.raises((MisconfigurationException, ValueError, AttributeError)):
            lightning()
