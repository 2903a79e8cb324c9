"""A run that goes on elsewhere: brought there whole, never in two places, and with no attempt that nobody saw end."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fake_slurm import FakeSlurm

from launcher import snapshot, tree
from launcher.backends.local import LocalBackend
from launcher.cli import move
from launcher.cli.place import kind_of
from launcher.cli.terminal import Terminal
from launcher.driver import renew_lease, this_machine, this_process
from launcher.errors import LauncherError, LedgerConflict, NotTheDriver, UsageError
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    Moved,
    ResumeRequested,
    RunEnded,
)
from launcher.layout import code_home
from launcher.run import Run
from launcher.runs import open_run
from launcher.spec import JobSpec
from launcher.status import status
from launcher.storage import PosixStorage, Storage
from launcher.supervise import Supervisor
from launcher.transfer import carry, reveal

MakeRun = Callable[..., Run]
STARTING = AttemptStarting(attempt=1, target="local")


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    """With code of its own, and what runs leave."""
    live = tmp_path / "live"
    (live / "package").mkdir(parents=True)
    (live / "package/tool").write_text("#!/bin/sh\n")
    (live / "package/tool").chmod(0o755)
    (live / "package/link").symlink_to("tool")
    run = make_run("mine", STARTING, AttemptEnded(attempt=1, cause="stopped", reason="", step=3))
    sources = tree.survey([live], exclude=(), max_bytes=1 << 20, run_dir=run.storage.root)
    with snapshot.staged(sources, run.storage.root, (str(live),), str(live)) as staged:
        staged.publish()
    run.ledger.append(
        ResumeRequested(by="me", code={**vars(staged.code), "trees": [vars(one) for one in staged.code.trees]}),
        after=2,
    )
    run.ledger.append(RunEnded(state="stopped", reason=""), after=3)
    renew_lease(run.storage, this_process())
    for name in ("attempts/001/logs/rank-00000.log", "checkpoints/step-00000003-a001/checkpoint.ckpt", "empty"):
        run.storage.replace(name, b"" if name == "empty" else name.encode() * 1000)
    return run


def test_a_run_is_brought_whole_its_code_with_links_and_modes(run: Run, tmp_path: Path) -> None:
    there = PosixStorage(tmp_path / "there/mine")

    carry(run, there)
    moved = reveal(run, there)

    assert moved.now == run.now
    files = {name for name in run.storage.files("") if not name.startswith("code/")} - {"lease.json"}
    assert {name for name in there.files("") if not name.startswith("code/")} == files
    assert all(there.read(name) == run.storage.read(name) for name in files)
    code = moved.now.code
    assert code
    folder = Path(code_home(there.root, code), code.trees[0].folder)
    assert os.access(folder / "package/tool", os.X_OK)
    assert (folder / "package/link").readlink() == Path("tool")


def test_it_is_no_run_there_before_all_of_it_has_arrived(run: Run, tmp_path: Path) -> None:
    carry(run, PosixStorage(tmp_path / "there/mine"))

    with pytest.raises(UsageError, match="there is no run here"):
        open_run(tmp_path / "there", "mine")


def test_another_run_of_its_name_is_not_touched(run: Run, tmp_path: Path) -> None:
    there = PosixStorage(tmp_path / "there/mine")
    there.create("run.json", b"{}")

    with pytest.raises(UsageError, match="there is a run already"):
        move.brought(run, run.ledger.refresh(), there.root, Terminal())

    assert there.files("").keys() == {"run.json"}
    assert run.ledger.refresh().moved_to is None


class Killed(BaseException):
    """As by kill -9: nobody catches it."""


class Writes:
    """Of several storages; the k-th is the last, before it takes effect or just after."""

    def __init__(self, k: int, when: str) -> None:
        self._left, self._when, self._lock = k, when, threading.Lock()

    @property
    def over(self) -> bool:
        return self._left <= 0

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last and self._when == "before":
            raise Killed
        yield
        if last:
            raise Killed


class CrashingStorage:
    def __init__(self, storage: Storage, writes: Writes) -> None:
        self._storage, self._writes = storage, writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create(self, path: str, data: bytes) -> None:
        with self._writes.one():
            self._storage.create(path, data)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        with self._writes.one(), self._storage.writer(path) as stream:
            yield stream


@pytest.mark.parametrize("when", ["before", "after"])
def test_whoever_moves_it_dies_at_any_write_and_there_is_always_one_place_where_it_goes_on(
    run: Run, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "there/mine")
    version = run.ledger.refresh().version

    def moved(old: Run) -> Run:
        found = move.followed(old)
        return move.brought(found, found.ledger.refresh(), address, Terminal())

    def goes_on(storage: Storage) -> bool:
        try:
            return Run(storage).ledger.refresh().moved_to is None
        except UsageError:
            return False

    for k in range(1, 100):
        here, there = PosixStorage(tmp_path / f"{k}/mine"), PosixStorage(Path(address))
        there.delete("")
        carry(run, here)
        old = reveal(run, here)
        writes = Writes(k, when)
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(
                move, "storage_at", lambda _, writes=writes: CrashingStorage(PosixStorage(Path(address)), writes)
            )
            moved(Run(CrashingStorage(here, writes)))
        assert goes_on(here) + goes_on(there) <= 1
        if not writes.over:
            assert k > 10, "seven files, code; then what says that it has gone, and the record"
            break
        if not goes_on(there):
            assert moved(old).storage.root == address
        assert goes_on(there)
        assert not goes_on(here)
        assert Run(there).ledger.refresh().version == version, "what says that it has gone is not there"
        with pytest.raises(UsageError, match=f"mine goes on at {address}: launcher resume mine --runs-root"):
            moved(old)
    else:
        pytest.fail("there is no end to its writes")


def test_what_happens_to_it_meanwhile_keeps_it_where_it_is(run: Run, tmp_path: Path) -> None:
    state = run.ledger.refresh()
    Run(run.storage).ledger.append(ResumeRequested(by="somebody"), after=state.version)

    with pytest.raises(LedgerConflict):
        move.brought(run, state, str(tmp_path / "there/mine"), Terminal())

    assert run.ledger.refresh().moved_to is None
    with pytest.raises(UsageError, match="there is no run here"):
        open_run(tmp_path / "there", "mine")


def test_a_run_that_has_gone_says_where_to(run: Run) -> None:
    run.ledger.append(Moved(to="gs://bucket/my runs/mine"), after=run.ledger.refresh().version)

    shown = status(run)

    assert (shown["state"], shown["reason"]) == ("moved", "it goes on at gs://bucket/my runs/mine")


def test_a_run_is_where_it_was_resumed_last(run: Run) -> None:
    site = {"kind": "slurm", "python": "/shared/python"}
    run.ledger.append(ResumeRequested(by="me", target="lab", site=site), after=run.ledger.refresh().version)

    assert (kind_of(run.record), kind_of(run.now), run.now.target) == ("local", "slurm", "lab")
    shown = status(run)
    assert (shown["target"], [one["target"] for one in shown["attempts"]]) == ("lab", ["local"])


def test_a_driver_that_was_only_taken_for_dead_starts_nothing_where_the_run_no_longer_is(make_run: MakeRun) -> None:
    run = make_run()
    supervisor = Supervisor(run, JobSpec.model_validate(run.record.spec), LocalBackend())
    supervisor.take_over()
    state = run.ledger.refresh()
    run.ledger.append(ResumeRequested(by="me", target="lab", site={"kind": "slurm"}), after=state.version)

    with pytest.raises(NotTheDriver, match="run: resumed by somebody else"):
        supervisor.step()

    assert run.ledger.refresh().attempts == ()


class TestSettled:
    """An attempt whose end nobody has written down, because its launcher was killed."""

    def started(self, make_run: MakeRun, handle: dict[str, Any], *before: Any) -> Run:
        return make_run("run", *before, STARTING, AttemptStarted(attempt=1, hosts=("n1",), handle=handle))

    def settled(self, run: Run) -> tuple[str | None, str | None]:
        attempt = move.settled(run, run.ledger.refresh()).attempts[-1]
        return attempt.cause, attempt.reason

    def test_is_over_when_its_processes_are(self, make_run: MakeRun) -> None:
        run = self.started(make_run, {"machine": this_machine(), "pids": {"0": [1, 7]}})

        assert self.settled(run) == ("infra", "the launcher that had started it died")

    def test_keeps_the_run_where_it_is_while_they_live(self, make_run: MakeRun) -> None:
        me = this_process()
        run = self.started(make_run, {"machine": this_machine(), "pids": {"0": [me.pid, me.started]}})

        with pytest.raises(LauncherError, match="ranks of attempt 1 still run on local; end them first"):
            self.settled(run)

    def test_is_over_on_slurm_with_its_job(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        there = ResumeRequested(by="me", target="lab", site={"kind": "slurm"})
        run = self.started(make_run, {"job": "7", "restarts": 0, "step": "attempt-001"}, there)

        cause, reason = self.settled(run)
        assert (cause, "job 7 was ended by Slurm" in str(reason)) == ("infra", True)

    def test_was_perhaps_never_begun(self, make_run: MakeRun) -> None:
        assert self.settled(make_run("run", STARTING)) == ("infra", "the launcher died while it started this attempt")

    def test_there_is_none(self, make_run: MakeRun) -> None:
        run = make_run("run", CancelRequested(by="me"))

        assert move.settled(run, run.ledger.refresh()).version == 1
