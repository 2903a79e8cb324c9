"""Checkpoints on storage: bad ones are told, good ones are kept, an overtaken attempt cannot touch them."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoints import (
    FOLDER,
    BadCheckpoint,
    Checksum,
    Manifest,
    best,
    checkpoint_path,
    in_order,
    litter,
    newest_attempt,
    prune,
    read_manifest,
    set_aside,
    surplus,
    verify,
    write_manifest,
)
from launcher.errors import Fenced, FormatTooNew
from launcher.events import AttemptStarting, CheckpointSaved
from launcher.run import Run
from launcher.spec import Checkpoint
from launcher.storage import PosixStorage, Unreachable

MakeRun = Callable[..., Run]
CONTENT = random.Random(0).randbytes(3_000_000)


def write(run: Run, step: int, attempt: int = 1, content: bytes = b"weights") -> str:
    """A checkpoint as a rank writes it, short of its event."""
    path = checkpoint_path(step, attempt)
    with run.storage.writer(path) as stream:
        stream.write(content)
    checksum = Checksum()
    checksum.update(content)
    manifest = Manifest(
        step=step,
        epoch=0,
        attempt=attempt,
        world_size=1,
        precision="32-true",
        bytes=len(content),
        checksum=checksum.text,
        complete=False,
    )
    write_manifest(run.storage, path, manifest)
    return path


def save(run: Run, step: int, attempt: int = 1) -> str:
    """The same, with its event: it counts."""
    path = write(run, step, attempt)
    event = CheckpointSaved(attempt=attempt, step=step, epoch=0, path=path, bytes=7, complete=False)
    run.ledger.append_while(newest_attempt(attempt), event)
    return path


def start(run: Run, attempt: int) -> None:
    run.ledger.append(AttemptStarting(attempt=attempt, target="local"), after=run.ledger.refresh().version)


def counting(run: Run) -> list[int]:
    return [saved.step for saved in in_order(run.ledger.refresh())]


def on_disk(run: Run) -> list[str]:
    return run.storage.list("checkpoints")


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    return make_run("run", AttemptStarting(attempt=1, target="local"))


@pytest.fixture
def file(run: Run) -> Path:
    return Path(run.storage.root, write(run, 1200, content=CONTENT))


class TestVerify:
    def test_a_whole_checkpoint_is_verified(self, run: Run, file: Path) -> None:
        manifest = verify(run.storage, checkpoint_path(1200, 1))

        assert (manifest.step, manifest.bytes) == (1200, len(CONTENT))
        assert file.parent.name == "step-00001200-a001"

    @pytest.mark.parametrize("size", [0, 1, 1_000_000, len(CONTENT) - 1])
    def test_a_truncated_one_is_bad(self, run: Run, file: Path, size: int) -> None:
        os.truncate(file, size)

        with pytest.raises(BadCheckpoint, match=f"{size} bytes instead of {len(CONTENT)}"):
            verify(run.storage, checkpoint_path(1200, 1))

    def test_a_longer_one_is_bad(self, run: Run, file: Path) -> None:
        file.write_bytes(CONTENT + b"\0")

        with pytest.raises(BadCheckpoint, match="bytes instead of"):
            verify(run.storage, checkpoint_path(1200, 1))

    @pytest.mark.parametrize("at", [0, 1 << 20, len(CONTENT) - 1])
    def test_a_flipped_bit_makes_it_bad(self, run: Run, file: Path, at: int) -> None:
        flipped = bytearray(CONTENT)
        flipped[at] ^= 1
        file.write_bytes(flipped)

        with pytest.raises(BadCheckpoint, match="checksum"):
            verify(run.storage, checkpoint_path(1200, 1))

    def test_a_missing_file_is_bad(self, run: Run, file: Path) -> None:
        file.unlink()

        with pytest.raises(BadCheckpoint, match="cannot be read"):
            verify(run.storage, checkpoint_path(1200, 1))

    def test_a_missing_manifest_is_bad(self, run: Run, file: Path) -> None:
        (file.parent / "manifest.json").unlink()

        with pytest.raises(BadCheckpoint, match=r"no readable manifest\.json"):
            verify(run.storage, checkpoint_path(1200, 1))

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe", b'{"step": 1}', b'"text"'])
    def test_a_manifest_that_is_none_is_bad(self, run: Run, file: Path, content: bytes) -> None:
        (file.parent / "manifest.json").write_bytes(content)

        with pytest.raises(BadCheckpoint, match=r"no readable manifest\.json"):
            verify(run.storage, checkpoint_path(1200, 1))

    def test_a_manifest_of_a_newer_launcher_is_not_bad_but_too_new(self, run: Run, file: Path) -> None:
        manifest = json.loads((file.parent / "manifest.json").read_text())
        (file.parent / "manifest.json").write_text(json.dumps({**manifest, "format": 2, "added": 1}))

        with pytest.raises(FormatTooNew, match="update this one"):
            verify(run.storage, checkpoint_path(1200, 1))

    def test_a_manifest_is_read_back_as_written(self, run: Run) -> None:
        path = write(run, 7, attempt=2)

        manifest = read_manifest(run.storage, path)

        assert (manifest.step, manifest.attempt, manifest.complete, manifest.format) == (7, 2, False, 1)


class TestWhatCounts:
    def test_without_its_event_a_checkpoint_does_not_count(self, run: Run) -> None:
        save(run, 10)
        write(run, 20)

        assert counting(run) == [10]

    def test_of_the_same_step_the_later_attempt_s_is_the_newest(self, run: Run) -> None:
        save(run, 20, attempt=1)
        start(run, 2)
        newest = save(run, 20, attempt=2)
        save(run, 10, attempt=2)

        assert in_order(run.ledger.refresh())[-1].path == newest
        assert counting(run) == [10, 20, 20]


class TestPrune:
    @pytest.mark.parametrize(("keep", "kept"), [(1, [40]), (2, [30, 40]), (4, [10, 20, 30, 40]), (9, [10, 20, 30, 40])])
    def test_the_newest_are_kept(self, run: Run, keep: int, kept: list[int]) -> None:
        for step in (10, 20, 30, 40):
            save(run, step)

        prune(run, 1, Checkpoint(keep_last=keep))

        assert counting(run) == kept
        assert on_disk(run) == [f"step-{step:08d}-a001" for step in kept]

    def test_newest_is_furthest_and_not_last_written(self, run: Run) -> None:
        save(run, 40)
        start(run, 2)
        save(run, 10, attempt=2)  # 40 was lost in the meantime and is here again

        prune(run, 2, Checkpoint(keep_last=1))

        assert counting(run) == [40]

    def test_the_last_good_one_stays_when_newer_ones_were_bad(self, run: Run) -> None:
        for step in (10, 20, 30):
            save(run, step)
        for step in (20, 30):
            set_aside(run, 1, checkpoint_path(step, 1), "its checksum differs")

        prune(run, 1, Checkpoint(keep_last=1))

        assert counting(run) == [10]
        verify(run.storage, checkpoint_path(10, 1))

    def test_what_does_not_count_is_not_touched(self, run: Run) -> None:
        being_written = write(run, 5)
        save(run, 10)
        save(run, 20)

        prune(run, 1, Checkpoint(keep_last=1))

        verify(run.storage, being_written)
        assert counting(run) == [20]

    def test_pruning_twice_writes_one_event(self, run: Run) -> None:
        for step in (10, 20):
            save(run, step)

        prune(run, 1, Checkpoint(keep_last=1))
        version = run.ledger.refresh().version
        prune(run, 1, Checkpoint(keep_last=1))

        assert run.ledger.refresh().version == version

    def test_a_crash_between_the_event_and_the_deletion_leaves_litter_and_no_hole(
        self, run: Run, runs_root: Path
    ) -> None:
        for step in (10, 20, 30):
            save(run, step)

        pid = os.fork()
        if pid == 0:
            try:
                prune(Run(_KilledAtDelete(runs_root / "run")), 1, Checkpoint(keep_last=1))
            finally:
                os._exit(9)
        _, status = os.waitpid(pid, 0)

        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        assert counting(run) == [30]
        assert len(on_disk(run)) == 3
        verify(run.storage, checkpoint_path(30, 1))
        prune(run, 1, Checkpoint(keep_last=1))  # whoever comes next is not disturbed
        assert counting(run) == [30]

    def test_every_checkpoint_that_counts_is_whole_wherever_a_prune_crashes(self, run: Run, runs_root: Path) -> None:
        for step in (10, 20, 30, 40):
            save(run, step)

        for deletions in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    prune(Run(_KilledAtDelete(runs_root / "run", deletions)), 1, Checkpoint(keep_last=3 - deletions))
                finally:
                    os._exit(9)
            os.waitpid(pid, 0)

            for saved in in_order(run.ledger.refresh()):
                verify(run.storage, saved.path)


def saved(step: int, metric: float | None = None) -> CheckpointSaved:
    return CheckpointSaved(attempt=1, step=step, epoch=0, path=f"{step}", bytes=0, complete=False, metric=metric)


def left(checkpoints: list[CheckpointSaved], **rules: Any) -> list[int]:
    gone = surplus(checkpoints, Checkpoint(**rules))
    return [one.step for one in checkpoints if one not in gone]


class TestRetention:
    def test_of_each_stretch_of_steps_the_first_is_kept(self) -> None:
        many = [saved(step) for step in (30, 60, 90, 120, 150, 180, 210, 240)]

        assert left(many, keep_last=1, keep_every=100) == [30, 120, 210, 240]

    def test_the_first_of_a_stretch_stays_the_first_when_pruned_again_and_again(self) -> None:
        kept: list[CheckpointSaved] = []
        for step in range(10, 401, 10):
            kept.append(saved(step))
            gone = surplus(kept, Checkpoint(keep_last=2, keep_every=100))
            kept = [one for one in kept if one not in gone]

        assert [one.step for one in kept] == [10, 100, 200, 300, 390, 400]

    @pytest.mark.parametrize(("mode", "kept"), [("min", [20, 40, 60]), ("max", [10, 50, 60])])
    def test_the_best_by_the_metric_are_kept(self, mode: str, kept: list[int]) -> None:
        values = {10: 0.9, 20: 0.1, 30: 0.5, 40: 0.2, 50: 0.8}
        many = [*(saved(step, metric) for step, metric in values.items()), saved(60)]

        assert left(many, keep_last=1, monitor="val_loss", mode=mode, keep_best=2) == kept

    def test_of_equals_the_earlier_is_the_best(self) -> None:
        assert [one.step for one in best([saved(20, 0.5), saved(10, 0.5), saved(5)], "max", 3)] == [10, 20]

    def test_without_a_monitor_metrics_keep_nothing(self) -> None:
        assert left([saved(10, 0.1), saved(20, 0.9)], keep_last=1) == [20]

    def test_one_rule_keeps_what_another_would_not(self, run: Run) -> None:
        for step in (10, 20, 110, 120):
            save(run, step)

        prune(run, 1, Checkpoint(keep_last=1, keep_every=100))

        assert counting(run) == [10, 110, 120]
        assert on_disk(run) == [f"step-{step:08d}-a001" for step in (10, 110, 120)]


class TestLitter:
    def test_is_what_earlier_attempts_have_left_that_does_not_count(self, run: Run) -> None:
        counts = save(run, 10)
        half = write(run, 20)
        run.storage.create("checkpoints/step-00000030-a001/.half", b"written")
        start(run, 2)
        own = write(run, 20, attempt=2)
        run.storage.create("checkpoints/notes", b"of the user")

        found = litter(run.storage.list(FOLDER), run.ledger.refresh(), 2)

        assert found == [half.removesuffix("/checkpoint.ckpt"), "checkpoints/step-00000030-a001"]
        verify(run.storage, counts)
        verify(run.storage, own)


class _KilledAtDelete(PosixStorage):
    def __init__(self, root: Path, after: int = 0) -> None:
        super().__init__(root)
        self._left = after

    def delete(self, path: str) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        super().delete(path)


class TestSetAside:
    def test_a_bad_checkpoint_no_longer_counts_and_is_not_lost(self, run: Run) -> None:
        save(run, 10)
        bad = save(run, 20)

        set_aside(run, 1, bad, "its checksum differs")

        assert counting(run) == [10]
        assert run.storage.read("checkpoints/bad/step-00000020-a001/checkpoint.ckpt") == b"weights"
        assert not run.storage.list("checkpoints/step-00000020-a001")

    def test_one_of_which_nothing_is_left_is_set_aside_too(self, run: Run) -> None:
        bad = save(run, 20)
        run.storage.delete("checkpoints/step-00000020-a001")

        set_aside(run, 1, bad, "cannot be read")

        assert counting(run) == []


class TestFencing:
    def test_an_overtaken_attempt_cannot_make_a_checkpoint_count(self, run: Run) -> None:
        save(run, 10)
        start(run, 2)

        with pytest.raises(Fenced, match="attempt 1 was overtaken by attempt 2"):
            save(run, 20, attempt=1)

        assert counting(run) == [10]

    def test_an_overtaken_attempt_deletes_nothing(self, run: Run) -> None:
        for step in (10, 20):
            save(run, step)
        start(run, 2)

        with pytest.raises(Fenced):
            prune(run, 1, Checkpoint(keep_last=1))
        with pytest.raises(Fenced):
            set_aside(run, 1, checkpoint_path(20, 1), "bad")

        assert counting(run) == [10, 20]
        assert len(on_disk(run)) == 2

    def test_the_newest_attempt_may_prune_those_of_older_ones(self, run: Run) -> None:
        save(run, 10)
        start(run, 2)
        save(run, 20, attempt=2)

        prune(run, 2, Checkpoint(keep_last=1))

        assert on_disk(run) == ["step-00000020-a002"]

    def test_a_run_without_attempts_fences_nobody(self, make_run: MakeRun) -> None:
        newest_attempt(1)(make_run("new").ledger.refresh())


def test_a_checkpoint_is_not_bad_because_its_storage_does_not_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(run, 1200, content=CONTENT)

    def silent(path: str) -> None:
        raise Unreachable(110, "no answer")

    for operation in ("open", "read"):
        with monkeypatch.context() as failing:
            failing.setattr(run.storage, operation, silent)
            with pytest.raises(Unreachable):
                verify(run.storage, path)
    assert verify(run.storage, path).step == 1200
