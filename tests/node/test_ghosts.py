"""Two attempts at once: the older one was only stopped, and continues when the newer one has trained on."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ForkBackend, Training, log_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_exact import differences, interrupted, spec

from launcher.checkpoints import Manifest, in_order, verify
from launcher.errors import Fenced
from launcher.events import AttemptEnded, AttemptStarted, AttemptStarting, CheckpointSaved
from launcher.node.start import choose_start
from launcher.node.writer import Writer
from launcher.run import Run
from launcher.spec import Checkpoint, JobSpec
from launcher.storage import Storage

WRITES = ("create", "replace", "writer", "move", "delete")
FENCED, CONTINUED = 3, 4
MakeRun = Callable[..., Run]


class StoppingStorage:
    """Stops its process (SIGSTOP) at its k-th write: before it takes effect, or just after."""

    def __init__(self, storage: Storage, k: int, when: str) -> None:
        self._storage, self._left, self._when = storage, k, when

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._storage, name)
        if name not in WRITES:
            return operation

        def stopping(*args: Any) -> Any:
            self._left -= 1
            stops = self._left == 0
            if stops and self._when == "before":
                stop_here()
            if name == "writer":
                return self._stopping_writer(operation(*args), stops)
            done = operation(*args)
            if stops and self._when == "after":
                stop_here()
            return done

        return stopping

    @contextmanager
    def _stopping_writer(self, writer: Any, stops: bool) -> Iterator[Any]:
        with writer as stream:
            yield stream
            if stops and self._when == "within":  # all is written, under another name
                stop_here()
        if stops and self._when == "after":
            stop_here()


def save(writer: Writer, step: int, attempt: int) -> None:
    manifest = Manifest(step=step, epoch=0, attempt=attempt, world_size=1, precision="32-true", complete=False)
    writer.save({"global_step": step, "weights": torch.full((1000,), float(step))}, manifest)
    writer.wait()


def writer_of(run: Run) -> Writer:
    return Writer(run, Checkpoint(keep_last=2), lambda mark: None)


def ghost(run: Run, k: int, when: str) -> None:
    """Attempt 1 saves step 30, and with it drops step 10; then it trains on."""
    code = 1
    try:
        writer = writer_of(Run(StoppingStorage(run.storage, k, when)))  # type: ignore[arg-type]
        with suppress(Fenced):
            save(writer, 30, attempt=1)
            code = CONTINUED  # its save came through before it was stopped
            save(writer, 40, attempt=1)
            os._exit(1)  # that one must not
        code = FENCED if code == 1 else code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def seen(run: Run) -> dict[str, Any]:
    """All that any reader goes by, and each file of it verified."""
    state = Run(run.storage).ledger.refresh()
    return {"version": state.version, "checkpoints": [(one, verify(run.storage, one.path)) for one in in_order(state)]}


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop_here() -> None:
    """Not os.kill: another thread may take that signal, while this one goes on for a while."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def is_stopped(pid: int) -> bool:
    """All of its threads are."""
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


CASES = [("before", k) for k in range(1, 7)] + [("after", k) for k in range(1, 7)] + [("within", 1)]
"""The writes of a commit: the file, its manifest, its event, the event that drops, the deletion; and one more save."""


@pytest.mark.parametrize(("when", "k"), CASES)
def test_a_ghost_that_was_stopped_at_any_write_of_a_commit_changes_nothing(
    make_run: MakeRun, when: str, k: int
) -> None:
    run = make_run("run", AttemptStarting(attempt=1, target="local"))
    first = writer_of(run)
    save(first, 10, attempt=1)
    save(first, 20, attempt=1)
    first.close()
    pid = os.fork()
    if pid == 0:
        ghost(run, k, when)
    wait_until(lambda: is_stopped(pid))

    state = run.ledger.refresh()
    run.ledger.append(AttemptStarting(attempt=2, target="local"), after=state.version)
    choose_start(run, 2)
    newer = writer_of(run)
    for step in (25, 30, 40):
        save(newer, step, attempt=2)
    before = seen(run)
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) in (FENCED, CONTINUED)
    assert seen(run) == before
    assert [(one.step, one.attempt) for one, _ in before["checkpoints"]] == [(30, 2), (40, 2)]
    save(newer, 50, attempt=2)
    newer.close()


def test_the_cases_reach_every_write_of_a_commit(make_run: MakeRun) -> None:
    run = make_run("run", AttemptStarting(attempt=1, target="local"))
    calls: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name in WRITES:
                calls.append(name)
            return getattr(run.storage, name)

    writer = writer_of(Run(Counting()))  # type: ignore[arg-type]
    for step in (10, 20, 30):
        calls.clear()
        save(writer, step, attempt=1)
    writer.close()

    assert calls == ["writer", "replace", "create", "create", "delete"]


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows; values that were logged twice at the same step, once."""
    board = EventAccumulator(f"{run.storage.root}/tensorboard")
    board.Reload()
    return {tag: sorted({(one.step, one.value) for one in board.Scalars(tag)}) for tag in board.Tags()["scalars"]}


def test_a_rank_that_was_stopped_leaves_when_it_continues(launch: Training, tmp_path: Path) -> None:
    loggers = [{"class_path": f"lightning.pytorch.loggers.{name}"} for name in ("CSVLogger", "TensorBoardLogger")]
    body = interrupted(spec(logger=loggers), "mid-epoch", "SIGSTOP")
    undisturbed = Training(tmp_path / "undisturbed").run(spec(logger=loggers))
    run = launch.create(body)
    backend = ForkBackend()
    plan = backend.plan(run.storage.root, run.record, JobSpec.model_validate(run.record.spec), 1)
    run.ledger.append(AttemptStarting(attempt=1, target="local"), after=0)
    run.write_json("attempts/001/spec.json", run.record.spec)
    handle = backend.start(plan)
    began = AttemptStarted(attempt=1, hosts=("cut off",), handle=handle)
    run.ledger.append_while(lambda state: None, began)
    (pid, _), *_ = handle["pids"].values()
    wait_until(lambda: is_stopped(pid))
    lost = AttemptEnded(attempt=1, cause="infra", reason="the node does not answer", step=0)
    run.ledger.append_while(lambda state: None, lost)

    ended = launch.drive(run)
    assert ended.state == "finished", log_of(run)
    version = run.ledger.refresh().version
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 1
    assert "attempt 1 was overtaken by attempt 2" in log_of(run)
    assert run.ledger.refresh().version == version
    events = [record.event for record in run.ledger.records()]
    newer = events.index(AttemptStarting(attempt=2, target="local"))
    assert all(one.attempt == 2 for one in events[newer:] if isinstance(one, CheckpointSaved))
    assert differences(undisturbed, run) == []
    assert scalars(undisturbed) == scalars(run)
