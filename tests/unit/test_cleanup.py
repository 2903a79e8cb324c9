"""Checkpoints that are deleted by hand: what goes, what must never go, and that a crash leaves no hole."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_checkpoints import counting, on_disk, save, start, write

from launcher import cleanup
from launcher.checkpoints import checkpoint_path, set_aside, verify
from launcher.driver import this_process
from launcher.errors import LauncherError
from launcher.events import AttemptEnded, AttemptStarting, CheckpointSaved, Driving, Event
from launcher.run import Run
from launcher.spec import Checkpoint
from launcher.storage import PosixStorage

MakeRun = Callable[..., Run]
GONE = Driving(driver=replace(this_process(), started=1))


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """Attempt 1 has saved at steps 10, 20 and 30 and ended; its driver is gone."""
    run = make_run("run", GONE, AttemptStarting(attempt=1, target="local"))
    for step in (10, 20, 30):
        save(run, step)
    append(run, AttemptEnded(attempt=1, cause="infra", reason="", step=30))
    return run


def append(run: Run, event: Event) -> None:
    run.ledger.append(event, after=run.ledger.refresh().version)


def spoil(run: Run, *steps: int) -> None:
    for step in steps:
        Path(run.storage.root, checkpoint_path(step, 1)).write_bytes(b"WEIGHTS")


def clean(run: Run, keep_last: int) -> cleanup.Cleanup:
    rules = Checkpoint(keep_last=keep_last)
    found = cleanup.plan(run, rules)
    cleanup.delete(run, found, rules)
    return found


def gone(found: cleanup.Cleanup) -> list[str]:
    return [one.path.removeprefix("checkpoints/") for one in found.removals]


class TestSurplus:
    @pytest.mark.parametrize(("keep", "kept"), [(1, [30]), (2, [20, 30]), (3, [10, 20, 30]), (9, [10, 20, 30])])
    def test_the_newest_are_kept(self, run: Run, keep: int, kept: list[int]) -> None:
        found = clean(run, keep)

        assert counting(run) == [saved.step for saved in found.kept] == kept
        assert on_disk(run) == [f"step-{step:08d}-a001" for step in kept]

    def test_the_other_rules_of_the_spec_keep_theirs(self, run: Run) -> None:
        found = cleanup.plan(run, Checkpoint(keep_last=1, keep_every=20))

        assert [saved.step for saved in found.kept] == [10, 20, 30]

    def test_the_last_that_is_whole_is_kept_though_newer_ones_are_bad(self, run: Run) -> None:
        spoil(run, 20, 30)

        clean(run, 1)

        assert counting(run) == [10, 30]
        verify(run.storage, checkpoint_path(10, 1))

    def test_where_none_is_whole_nothing_is_deleted(self, run: Run) -> None:
        spoil(run, 10, 20, 30)

        with pytest.raises(LauncherError, match=r"none of its 3 checkpoints is whole.*checkpoints verify run"):
            clean(run, 1)

        assert counting(run) == [10, 20, 30]
        assert len(on_disk(run)) == 3

    def test_nothing_is_read_where_nothing_is_deleted(self, run: Run) -> None:
        spoil(run, 10, 20, 30)

        assert gone(clean(run, 3)) == []

    def test_a_plan_deletes_nothing(self, run: Run) -> None:
        version = run.ledger.refresh().version

        assert gone(cleanup.plan(run, Checkpoint(keep_last=1))) == ["step-00000010-a001", "step-00000020-a001"]
        assert (counting(run), run.ledger.refresh().version) == ([10, 20, 30], version)
        assert len(on_disk(run)) == 3

    def test_a_run_that_is_driven_is_left_alone(self, run: Run) -> None:
        append(run, Driving(driver=this_process()))

        with pytest.raises(LauncherError, match=f"process {os.getpid()} on .* drives this run"):
            clean(run, 1)

        assert len(on_disk(run)) == 3

    def test_a_driver_that_came_in_the_meantime_is_not_disturbed(self, run: Run) -> None:
        found = cleanup.plan(run, Checkpoint(keep_last=1))
        append(run, Driving(driver=this_process()))

        with pytest.raises(LauncherError, match="nothing was deleted; look again"):
            cleanup.delete(run, found, Checkpoint(keep_last=1))

        assert counting(run) == [10, 20, 30]
        assert len(on_disk(run)) == 3

    def test_what_a_crash_has_left_goes_the_next_time(self, run: Run, runs_root: Path) -> None:
        storage = _FailsAtDelete(runs_root / "run")
        with pytest.raises(OSError, match="pulled"):
            clean(Run(storage), 1)
        assert counting(run) == [30]
        assert len(on_disk(run)) == 3

        found = clean(run, 1)

        assert gone(found) == ["step-00000010-a001", "step-00000020-a001"]
        assert all(one.litter for one in found.removals)
        assert on_disk(run) == ["step-00000030-a001"]


class TestLitter:
    def test_a_save_that_was_interrupted_goes_with_all_its_bytes(self, run: Run) -> None:
        folder = Path(run.storage.root, "checkpoints/step-00000040-a001")
        folder.mkdir()
        (folder / ".checkpoint.ckpt.host.1.0").write_bytes(bytes(1000))

        (litter,) = clean(run, 3).removals

        assert (litter.step, litter.bytes, litter.litter) == (40, 1000, True)
        assert not folder.exists()
        assert counting(run) == [10, 20, 30]

    def test_one_that_never_came_to_count_goes(self, run: Run) -> None:
        write(run, 40)

        assert gone(clean(run, 3)) == ["step-00000040-a001"]

    def test_an_attempt_that_may_still_live_keeps_what_it_writes(self, run: Run) -> None:
        start(run, 2)
        save(run, 40, attempt=2)
        write(run, 60, attempt=2)

        assert gone(clean(run, 1)) == ["step-00000010-a001", "step-00000020-a001", "step-00000030-a001"]
        assert on_disk(run) == ["step-00000040-a002", "step-00000060-a002"]

    def test_an_attempt_that_begins_just_now_keeps_what_it_writes(self, run: Run, runs_root: Path) -> None:
        with pytest.raises(LauncherError, match="drives this run"):
            clean(Run(_BeginsAtList(runs_root / "run")), 3)

        assert on_disk(run)[-1] == "step-00000040-a002"

    def test_what_others_have_put_there_stays(self, run: Run) -> None:
        for name in ("epoch=3-step=30.ckpt", "last.ckpt", "step-4-a1", "step-00000040-a001.bak"):
            Path(run.storage.root, "checkpoints", name).write_bytes(b"theirs")

        assert gone(clean(run, 3)) == []

    def test_what_was_set_aside_stays(self, run: Run) -> None:
        set_aside(run, 1, checkpoint_path(30, 1), "its checksum differs")

        assert gone(clean(run, 3)) == []
        assert run.storage.size("checkpoints/bad") > 0

    def test_a_run_that_is_just_being_created_is_left_alone(self, make_run: MakeRun) -> None:
        """`run --from` copies a checkpoint; its event, then a driver, come later."""
        created = make_run("created")
        write(created, 10, attempt=0)

        assert gone(clean(created, 1)) == []

    def test_alone_it_needs_no_event(self, run: Run) -> None:
        write(run, 40)
        version = run.ledger.refresh().version

        clean(run, 3)

        assert run.ledger.refresh().version == version


def test_a_run_with_nothing_but_a_copied_checkpoint_keeps_it(make_run: MakeRun) -> None:
    created = make_run("created", GONE)
    path = write(created, 10, attempt=0)
    append(created, CheckpointSaved(attempt=0, step=10, epoch=0, path=path, bytes=7, complete=False))

    assert gone(clean(created, 1)) == []


class _FailsAtDelete(PosixStorage):
    def delete(self, path: str) -> None:
        raise OSError("pulled the plug")


class _BeginsAtList(PosixStorage):
    """Another process begins an attempt just before the checkpoints are listed."""

    def list(self, folder: str) -> list[str]:
        if folder == "checkpoints":
            other = Run(PosixStorage(Path(self.root)))
            append(other, Driving(driver=this_process()))
            start(other, 2)
            write(other, 40, attempt=2)
        return super().list(folder)
