"""Whatever a training uses, and wherever it is interrupted, it ends as if it had not been."""

import csv
from pathlib import Path
from typing import Any

import pytest
from forked import Training, last_checkpoint, log_of, same

from launcher.policy import Cause
from launcher.run import Run
from launcher.state import Attempt

SPEC: dict[str, Any] = {
    "model": {"class_path": "toys.Full"},
    "data": {"class_path": "toys.NoisyData", "init_args": {"size": 92}},
    "trainer": {
        "max_epochs": 3,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger"},
        "log_every_n_steps": 1,
        "enable_model_summary": False,
    },
    "checkpoint": {"every_n_steps": 3},
}
"""Three epochs of 12 batches on one rank, the last of them smaller than the others."""


def spec(model: dict[str, Any] | None = None, ranks: int = 1, workers: int = 0, **trainer: Any) -> dict[str, Any]:
    return {
        **SPEC,
        "model": {"class_path": "toys.Full", "init_args": model or {}},
        "data": {"class_path": "toys.NoisyData", "init_args": {"size": 92 * ranks, "num_workers": workers}},
        "trainer": {**SPEC["trainer"], **trainer},
        "resources": {"tasks_per_node": ranks},
    }


def interrupted(body: dict[str, Any], place: str, number: str, ranks: list[int] | None = None) -> dict[str, Any]:
    callbacks = body["trainer"].get("callbacks", [])
    interrupt = {"class_path": "toys.Interrupt", "init_args": {"place": place, "number": number, "ranks": ranks}}
    return {**body, "trainer": {**body["trainer"], "callbacks": [interrupt, *callbacks]}}


def differences(one: Run, other: Run) -> list[str]:
    """Parts of the end of two runs that are not the same to the last bit."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    parts = ["global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision"]
    found = [part for part in parts if not same(a.get(part), b.get(part))]
    theirs = {name: state for name, state in b["callbacks"].items() if not name.startswith("Interrupt")}
    found += [] if same(a["callbacks"], theirs) else ["callbacks"]
    assert one.finished
    assert other.finished
    found += [] if one.finished["metrics"] == other.finished["metrics"] else ["metrics"]
    found += [] if curves(one) == curves(other) else ["curves"]
    return found


def curves(run: Run) -> list[dict[str, str]]:
    """All that was logged, in order: each step's row, each validation's, each epoch end's."""
    with Path(run.storage.root, "csv/metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def attempts(run: Run) -> tuple[Attempt, ...]:
    return run.ledger.refresh().attempts


RANKS = [1, 2, 3]
PLACES = ["first step", "mid-epoch", "last batch", "epoch end", "validation", "save"]
NUMBERS = ["SIGKILL", "SIGTERM", "SIGUSR2"]
MATRIX = [(ranks, place, number) for ranks in RANKS for place in PLACES for number in NUMBERS]
"""`scripts/exactness` runs all of it, and plain Lightning beside it; here every fourth."""
CALLBACKS = "lightning.pytorch.callbacks"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that were never touched, by their specs: many tests compare with the same one."""
    made: dict[str, Run] = {}

    def make(body: dict[str, Any]) -> Run:
        key = repr(body)
        if key not in made:
            made[key] = Training(tmp_path_factory.mktemp("whole")).run(body)
        return made[key]

    return make


def matrix_spec(ranks: int) -> dict[str, Any]:
    """Dropout, batch norm, augmentation in two workers, a scheduler, metrics of the epoch."""
    return spec({"scheduler": "plateau"}, ranks, workers=2)


def test_a_quarter_of_the_matrix_has_something_of_everything() -> None:
    for column, values in enumerate((RANKS, PLACES, NUMBERS)):
        assert {case[column] for case in MATRIX[::4]} == set(values)


@pytest.mark.parametrize(("ranks", "place", "number"), MATRIX[::4])
def test_interrupted_anywhere(launch: Training, whole: Any, ranks: int, place: str, number: str) -> None:
    body = matrix_spec(ranks)
    torn = launch.run(interrupted(body, place, number, ranks=[ranks - 1]))

    assert len(attempts(torn)) == 2, log_of(torn)
    assert differences(whole(body), torn) == []


def test_with_loader_workers(launch: Training, whole: Any) -> None:
    torn = launch.run(interrupted(spec(ranks=2, workers=2), "mid-epoch", "SIGTERM"))

    assert differences(whole(spec(ranks=2, workers=2)), torn) == []
    assert differences(whole(spec(ranks=2)), torn) == []


CASES = {
    "scheduler by step": spec({"scheduler": "step"}),
    "scheduler by epoch": spec({"scheduler": "epoch"}),
    "plateau on the epoch's own loss": spec({"scheduler": "plateau on loss_epoch"}),
    "accumulation": spec(accumulate_grad_batches=5),
    "accumulation by schedule": spec(
        callbacks=[{"class_path": "toys.Schedule", "init_args": {"scheduling": {"0": 1, "1": 3}}}],
    ),
    "manual": spec({"manual": True}),
    "manual, two optimizers, accumulation by hand": spec({"manual": True, "optimizers": 2, "every": 4}),
    "limited batches": spec(limit_train_batches=7, limit_val_batches=2),
    "validation within the epoch": spec({"scheduler": "plateau"}, val_check_interval=5),
    "validation by a share of the epoch": spec(val_check_interval=0.25),
    "validation across epochs": spec(val_check_interval=7, check_val_every_n_epoch=None),
    "validation in every second epoch": spec(check_val_every_n_epoch=2),
    "no sanity check": spec(num_sanity_val_steps=0),
    "fp16 with a scaler": spec(precision="16-mixed"),
    "gradient clipping": spec(gradient_clip_val=0.1),
    "early stopping": spec(
        max_epochs=9,
        callbacks=[
            {"class_path": f"{CALLBACKS}.EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 1}},
        ],
    ),
    "steps, not epochs": spec(max_epochs=None, max_steps=29),
    "weight averaging": spec(
        callbacks=[{"class_path": f"{CALLBACKS}.EMAWeightAveraging", "init_args": {"decay": 0.9}}],
    ),
    "stochastic weight averaging": spec(
        {"scheduler": "epoch"},
        max_epochs=4,
        callbacks=[
            {
                "class_path": f"{CALLBACKS}.StochasticWeightAveraging",
                "init_args": {"swa_lrs": 0.005, "swa_epoch_start": 2, "annealing_epochs": 2},
            }
        ],
    ),
    "loaders made anew in each epoch": spec(reload_dataloaders_every_n_epochs=1),
}


@pytest.mark.parametrize(
    ("case", "place"), [(case, ("epoch end", "validation")[number % 2]) for number, case in enumerate(CASES)]
)
def test_one_rank_whatever_it_uses(launch: Training, whole: Any, case: str, place: str) -> None:
    torn = launch.run(interrupted(CASES[case], place, "SIGTERM"))

    assert len(attempts(torn)) == 2, log_of(torn)
    assert differences(whole(CASES[case]), torn) == []


@pytest.mark.parametrize("case", CASES)
def test_one_rank_killed(launch: Training, whole: Any, case: str) -> None:
    torn = launch.run(interrupted(CASES[case], "mid-epoch", "SIGKILL"))

    assert len(attempts(torn)) == 2, log_of(torn)
    assert differences(whole(CASES[case]), torn) == []


def test_an_interrupted_validation_is_left_at_once_and_run_again_in_full(launch: Training) -> None:
    run = launch.run(interrupted(spec(), "validation", "SIGTERM"))

    first, second = attempts(run)
    assert (first.cause, first.last_step, second.first_step) == (Cause.PREEMPTED, 12, 12)


def test_a_signal_during_the_test_leaves_it_and_trains_nothing_again(launch: Training, whole: Any) -> None:
    run = launch.run(interrupted(spec(), "test", "SIGUSR2"))

    first, second = attempts(run)
    assert (first.cause, second.first_step) == (Cause.PREEMPTED, 36)
    assert differences(whole(spec()), run) == []
