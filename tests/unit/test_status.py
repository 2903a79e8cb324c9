"""A glance at a run says what its status says."""

from collections.abc import Callable

import pytest

from launcher.driver import this_process
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    CheckpointSaved,
    Driving,
    Event,
    ResumeRequested,
    RunEnded,
    Submitted,
    Submitting,
)
from launcher.layout import finished_path, progress_path
from launcher.run import Run
from launcher.status import glance, status

_QUEUED: tuple[Event, ...] = (Submitting(submission=1, target="slurm"), Submitted(submission=1, job="7"))
_RUNNING: tuple[Event, ...] = (
    *_QUEUED,
    Driving(driver=this_process("7")),
    AttemptStarting(attempt=1, target="slurm"),
    AttemptStarted(attempt=1, hosts=("n1",), handle={}),
)
_SAVED = CheckpointSaved(attempt=1, step=30, epoch=2, path="checkpoints/a/checkpoint.ckpt", bytes=1, complete=False)
_ENDED = AttemptEnded(attempt=1, cause="finished", reason="", step=40)
_FINISHED = RunEnded(state="finished", reason="")
_AGAIN = (Driving(driver=this_process()), AttemptStarting(attempt=2, target="slurm"))


@pytest.mark.parametrize(
    ("events", "files", "state", "step"),
    [
        ((), (), "queued", 0),
        (_QUEUED, (), "queued", 0),
        (_RUNNING, (), "running", 0),
        (_RUNNING, ("progress",), "running", 20),
        ((*_RUNNING, _SAVED), ("progress",), "running", 30),
        ((*_RUNNING, _SAVED), ("progress", "finished"), "finished", 40),
        ((*_RUNNING, _SAVED, _ENDED, _FINISHED), ("progress", "finished"), "finished", 40),
        ((*_RUNNING, _SAVED, _ENDED, RunEnded(state="failed", reason="no")), ("progress",), "failed", 30),
        ((*_RUNNING, _SAVED, _ENDED, _FINISHED, ResumeRequested(by="me")), ("progress", "finished"), "queued", 30),
        ((*_RUNNING, _ENDED, _FINISHED, ResumeRequested(by="me"), *_AGAIN), ("progress", "finished"), "running", 20),
    ],
)
def test_a_glance_sees_what_the_status_says(
    make_run: Callable[..., Run], events: tuple[Event, ...], files: tuple[str, ...], state: str, step: int
) -> None:
    run = make_run()
    for number, event in enumerate(events):
        run.ledger.append(event, after=number)
    if "progress" in files:
        run.write_json(progress_path(1), {"step": 20, "epoch": 1, "metrics": {"loss": 2.0}})
    if "finished" in files:
        run.write_json(finished_path(1), {"step": 40, "epoch": 3, "metrics": {"loss": 2.0, "test_acc": 1.0}})

    seen, full = glance(Run(run.storage)), status(Run(run.storage))

    assert (seen["state"], seen["step"]) == (state, step)
    keys = ("state", "reason", "step", "epoch", "metrics")
    assert {key: seen[key] for key in keys} == {key: full[key] for key in keys}
    assert seen["attempts"] == len(full["attempts"])
    assert seen["job"] == (None if events[-1:] == (_FINISHED,) else full["job"])
