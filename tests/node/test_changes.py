"""A run goes on with another spec: more epochs, fewer ranks."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Training, last_checkpoint, log_of, same, same_weights
from test_exact import differences, interrupted, spec

from launcher.checkpoints import adopt, newest_whole
from launcher.events import ResumeRequested
from launcher.node.instantiate import CannotInstantiate
from launcher.node.trainer import build_model_and_data
from launcher.run import Run
from launcher.spec import JobSpec


def change(launch: Training, run: Run, body: dict[str, Any]) -> None:
    """What `launcher resume --set ...` does."""
    resolved = JobSpec.model_validate({"name": "test", **body}).model_dump(mode="json", exclude_unset=True)
    state = run.ledger.refresh()
    run.ledger.append(ResumeRequested(by="test", overrides=("...",), spec=resolved), after=state.version)
    ended = launch.drive(run)
    assert ended.state == "finished", log_of(run)


def test_more_epochs_for_a_finished_run_end_as_if_it_had_had_them_from_the_beginning(launch: Training) -> None:
    longer = launch.run(spec(ranks=2, max_epochs=5), "longer")
    run = launch.run(spec(ranks=2, max_epochs=3))
    change(launch, run, spec(ranks=2, max_epochs=5))

    assert run.ledger.refresh().attempts[-1].first_step == 36
    assert differences(longer, run) == []


def test_each_attempt_keeps_its_own_spec(launch: Training) -> None:
    run = launch.run(spec(max_epochs=1))
    change(launch, run, spec(max_epochs=2))

    epochs = [run.read_json(f"attempts/{number:03d}/spec.json")["trainer"]["max_epochs"] for number in (1, 2)]
    assert epochs == [1, 2]


def test_a_run_that_stopped_early_goes_on_when_it_is_changed(launch: Training) -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val_loss", "stopping_threshold": 100.0},
    }
    run = launch.run(spec(max_epochs=9, callbacks=[stopping]))
    assert last_checkpoint(run)["global_step"] == 12
    change(launch, run, spec(max_epochs=2))

    assert last_checkpoint(run)["global_step"] == 24


def test_with_fewer_ranks_each_sample_is_still_seen_once_an_epoch(launch: Training, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def traced(ranks: int) -> dict[str, Any]:
        body = spec(ranks=2, max_epochs=2)
        model = {"class_path": "toys.Classifier", "init_args": {"trace": str(trace)}}
        data = {"class_path": "toys.NoisyData", "init_args": {"size": 192}}
        few = {"tasks_per_node": ranks}
        return {**body, "model": model, "data": data, "resources": few, "checkpoint": {"every_n_steps": 2}}

    run = launch.create(interrupted({**traced(2), "retry": {"infra": 0}}, "mid-epoch", "SIGKILL"))
    assert launch.drive(run).state == "failed"
    before = len(trace.read_text().splitlines())
    change(launch, run, traced(1))

    begun = run.ledger.refresh().attempts[-1].first_step
    assert begun in (14, 16), "the save at 16 may still have been under way when the ranks were killed"
    seen = [json.loads(line) for line in trace.read_text().splitlines()]
    kept = [one for one in seen[:before] if 12 <= one["step"] < begun] + seen[before:]
    assert Counter(sample for one in kept for sample in one["samples"]) == Counter(range(192))


def test_a_change_after_a_crash_between_two_attempts_is_not_lost(launch: Training) -> None:
    run = launch.run(spec(max_epochs=1))
    change(launch, run, spec(max_epochs=2))
    again = launch.run(spec(max_epochs=2), "again")

    assert same_weights(run, again)


def test_a_run_that_begins_with_another_run_s_checkpoint_is_its_continuation(launch: Training) -> None:
    longer = launch.run(spec(max_epochs=3), "longer")
    source = launch.run(spec(max_epochs=2), "source")
    run = launch.create(spec(max_epochs=3))
    adopt(run, source, *newest_whole(source, 21))
    assert launch.drive(run).state == "finished"

    assert run.ledger.refresh().attempts[0].first_step == 21
    assert differences(longer, run) == ["curves"]  # they begin where the run does


def test_pretrained_weights_are_where_training_begins_and_not_where_it_resumes(
    launch: Training, tmp_path: Path
) -> None:
    source = launch.run(spec(max_epochs=1), "source")
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": last_checkpoint(source)["state_dict"]}, path)
    body = {**spec(max_epochs=2), "model": {"class_path": "toys.Full", "weights": str(path)}}
    warm = launch.run(body, "warm")
    torn = launch.run(interrupted(body, "mid-epoch", "SIGTERM"), "torn")

    assert len(torn.ledger.refresh().attempts) == 2
    assert not same_weights(source, warm)
    assert same_weights(warm, torn)
    model, _ = build_model_and_data(JobSpec.model_validate({"name": "test", **body}))
    assert same(dict(model.state_dict()), dict(last_checkpoint(source)["state_dict"]))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_text("nonsense"), "does not fit Full"),
        (lambda path: torch.save({"net.0.weight": torch.zeros(3)}, path), "does not fit Full"),
    ],
    ids=["missing", "rubbish", "another model"],
)
def test_weights_that_do_not_fit_are_named(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    body = {"name": "test", "model": {"class_path": "toys.Full", "weights": str(path)}}

    with pytest.raises(CannotInstantiate, match=f"model.weights: .*{message}"):
        build_model_and_data(JobSpec.model_validate(body))
