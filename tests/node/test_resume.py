"""An interrupted run ends with the weights of one that was never touched, bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import Training, last_checkpoint, log_of, same_weights

from launcher.checkpoints import in_order
from launcher.events import CheckpointsDropped, ResumeRequested
from launcher.policy import Cause
from launcher.status import status

SPEC: dict[str, Any] = {
    "model": {"class_path": "toys.Classifier"},
    "data": {"class_path": "toys.NoisyData"},
    "trainer": {"max_epochs": 2, "logger": False, "enable_model_summary": False},
    "resources": {"tasks_per_node": 2},
    "checkpoint": {"every_n_steps": 5},
}
"""Two epochs of 12 steps, with dropout and noise that is drawn anew for every sample."""


def trainer(spec: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    return {**spec, "trainer": {**spec["trainer"], **arguments}}


def calling(spec: Mapping[str, Any], name: str, **init_args: Any) -> dict[str, Any]:
    return trainer(spec, callbacks=[{"class_path": f"toys.{name}", "init_args": init_args}])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that was never touched."""
    return Training(tmp_path_factory.mktemp("whole")).run(SPEC)


@pytest.mark.parametrize(
    ("number", "ranks"),
    [("SIGKILL", [1]), ("SIGKILL", [0, 1]), ("SIGTERM", [0]), ("SIGUSR2", [1]), ("SIGTERM", [0, 1])],
)
def test_two_ranks_interrupted_several_times_end_with_the_same_bits(
    launch: Training, whole: Any, number: str, ranks: list[int]
) -> None:
    torn = launch.run(calling(SPEC, "Signal", at=[3, 12, 17], number=number, ranks=ranks))

    assert len(torn.ledger.refresh().attempts) >= 3, log_of(torn)
    assert last_checkpoint(torn)["global_step"] == 24
    assert same_weights(whole, torn)


def test_a_signal_loses_no_step(launch: Training, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    spec = {**SPEC, "model": {"class_path": "toys.Classifier", "init_args": {"trace": str(trace)}}}
    launch.run(calling(spec, "Signal", at=[3, 17], number="SIGTERM", ranks=[1]))

    steps = [seen["step"] for seen in map(json.loads, trace.read_text().splitlines()) if seen["rank"] == 0]
    assert steps == list(range(24))


def test_each_sample_is_seen_once_an_epoch_by_one_rank(launch: Training, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    spec = {**SPEC, "model": {"class_path": "toys.Classifier", "init_args": {"trace": str(trace)}}}
    launch.run(calling(spec, "Signal", at=[3, 17], number="SIGUSR2", ranks=[0]))

    seen = [json.loads(line) for line in trace.read_text().splitlines()]
    first = [sample for one in seen if one["step"] < 12 for sample in one["samples"]]
    second = [sample for one in seen if one["step"] >= 12 for sample in one["samples"]]
    assert sorted(first) == sorted(second) == list(range(192))
    assert first != second


def test_dataloader_workers_change_nothing(launch: Training, whole: Any) -> None:
    spec = {**SPEC, "data": {"class_path": "toys.NoisyData", "init_args": {"num_workers": 2}}}
    torn = launch.run(calling(spec, "Signal", at=[3, 17], number="SIGKILL", ranks=[0]))

    assert same_weights(whole, torn)


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 5},
        {"val_check_interval": 0.25, "limit_train_batches": 8},
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
    ],
    ids=str,
)
def test_one_rank_with_other_trainer_arguments(launch: Training, arguments: dict[str, Any]) -> None:
    spec = trainer({**SPEC, "resources": {"tasks_per_node": 1}, "checkpoint": {"every_n_steps": 2}}, **arguments)
    untouched = launch.run(spec, "untouched")
    torn = launch.run(calling(spec, "Signal", at=[2, 5, 11], number="SIGTERM"), "torn")

    assert len(torn.ledger.refresh().attempts) >= 3
    assert last_checkpoint(torn)["global_step"] == last_checkpoint(untouched)["global_step"]
    assert same_weights(untouched, torn)


def test_no_rank_reads_a_checkpoint_twice(launch: Training, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(address: str) -> Any:
        raise AssertionError(f"{address} has been read already")

    monkeypatch.setattr("launcher.node.checkpoint_io.load", again)

    torn = launch.run(calling(SPEC, "Signal", at=[17], number="SIGKILL", ranks=[1]))

    assert len(torn.ledger.refresh().attempts) == 2, log_of(torn)
    assert same_weights(whole, torn)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_taken(
    launch: Training, whole: Any, damage: str
) -> None:
    run = launch.create(calling(SPEC, "Raise", at=13))
    launch.drive(run)
    before, newest = in_order(run.ledger.refresh())[-2:]
    file = Path(run.storage.root) / newest.path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flipped" else data[:-100])

    state = run.ledger.refresh()
    run.ledger.append(ResumeRequested(by="test"), after=state.version)
    ended = launch.drive(run)  # raises once more, but it has resumed before

    assert ended.state == "failed"
    assert run.ledger.refresh().attempts[1].first_step == before.step
    assert f"checkpoint of step {newest.step} is bad and was set aside" in log_of(run)
    dropped = [one.event for one in run.ledger.records() if isinstance(one.event, CheckpointsDropped)]
    assert (newest.path,) in [event.paths for event in dropped]
    if damage != "gone":
        assert list(Path(run.storage.root, "checkpoints/bad").glob("*/checkpoint.ckpt"))


def test_early_stopping_is_not_forgotten(launch: Training) -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val_loss", "stopping_threshold": 100.0},
    }
    spec = trainer(SPEC, callbacks=[stopping], max_epochs=9)
    untouched = launch.run(spec, "untouched")
    kill = {"class_path": "toys.Signal", "init_args": {"at": [7], "number": "SIGKILL", "ranks": [0]}}
    torn = launch.run(trainer(spec, callbacks=[stopping, kill]), "torn")

    assert last_checkpoint(torn)["global_step"] == last_checkpoint(untouched)["global_step"] == 12
    assert same_weights(untouched, torn)


def test_a_run_killed_after_its_last_step_only_tests_again(launch: Training) -> None:
    spec = {
        **SPEC,
        "model": {"class_path": "toys.DiesInTest"},
        "data": {"class_path": "toys.NoisyData"},
    }
    run = launch.run(spec)

    first, second = run.ledger.refresh().attempts
    assert (first.cause, second.cause) == (Cause.INFRA, Cause.FINISHED)
    assert second.first_step == 24
    assert set(status(run)["metrics"]) >= {"test_loss", "val_loss"}


def test_the_users_own_error_ends_the_run_and_names_rank_and_exception(launch: Training) -> None:
    run = launch.create(calling(SPEC, "Raise", at=4, rank=1))
    ended = launch.drive(run)

    assert ended.state == "failed"
    assert ended.reason == "attempt 1: rank 1: ValueError: no such luck"
    assert len(run.ledger.refresh().attempts) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(launch: Training, workers: int) -> None:
    data = {"class_path": "toys.StreamData", "init_args": {"num_workers": workers}}
    spec = {**SPEC, "data": data, "resources": {"tasks_per_node": 1}}
    untouched = launch.run(spec, "untouched")
    torn = launch.run(calling(spec, "Signal", at=[3, 7, 15], number="SIGTERM"), "torn")
    killed = launch.run(calling(spec, "Signal", at=[3, 11, 12], number="SIGKILL"), "killed")

    assert last_checkpoint(untouched)["global_step"] == 24
    assert same_weights(untouched, torn)
    assert same_weights(untouched, killed)


def test_a_stream_that_does_not_say_where_it_stands_is_refused_with_what_to_add(launch: Training) -> None:
    run = launch.create({**SPEC, "data": {"class_path": "toys.BlindData"}})
    ended = launch.drive(run)

    assert ended.state == "failed"
    assert "train_dataloader: the position of the IterableDataset Blind cannot be saved. Add `state_" in ended.reason
