"""Saves that are killed on their way or find the disk full, and what is left of the checkpoints then."""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from toys import Classifier

from launcher.checkpoints import FILE, FOLDER, Manifest, in_order, newest_whole
from launcher.events import AttemptStarting, CheckpointSaved
from launcher.node.start import choose_start
from launcher.node.writer import Writer
from launcher.record import Record
from launcher.run import Run, create_run
from launcher.spec import Checkpoint
from launcher.storage import PosixStorage

SHARED_MEMORY = Path("/dev/shm")
"""A filesystem that is another one than that of most folders."""
KEPT = 2


class State:
    """A checkpoint of a given size whose every number says of which step it is."""

    def __init__(self, megabytes: int) -> None:
        self._tensors = [torch.empty(megabytes << 16) for _ in range(4)]

    def at(self, step: int) -> dict[str, Any]:
        """Overwrites the one before."""
        for tensor in self._tensors:
            tensor.fill_(step)
        names = (f"{number}.weight" for number in range(len(self._tensors)))
        return {"global_step": step, "state_dict": dict(zip(names, self._tensors, strict=True))}


def step_of(path: Path) -> int | None:
    """The step of a file that holds a State; None if it cannot be loaded, or holds numbers of several steps."""
    try:
        loaded = torch.load(path, weights_only=True)
    except Exception:  # whatever torch makes of half a file
        return None
    step = int(loaded["global_step"])
    return step if all(bool((tensor == step).all()) for tensor in loaded["state_dict"].values()) else None


# -- killing


def seconds(save: Callable[[], object]) -> float:
    """How long it takes in a process of its own."""
    begun = time.monotonic()
    assert not killed(save, after_s=None), "the save itself has failed"
    return time.monotonic() - begun


def killed(save: Callable[[], object], after_s: float | None) -> bool:
    """Fork a process that saves, and kill it so long after it has begun; None: let it end.

    Returns:
        Whether it had not ended by itself.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writer, b".")
            save()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code <= 0, "the save itself has failed"
    return code < 0


# -- through the launcher


def manifest(step: int, attempt: int = 1) -> Manifest:
    """As rank 0 fills it in before the checkpoint is written."""
    return Manifest(step=step, epoch=0, attempt=attempt, world_size=1, precision="32-true", complete=False)


def writer_of(run: Run) -> Writer:
    return Writer(run, Checkpoint(keep_last=KEPT), lambda curves: None)


def save(run: Run, state: State, attempt: int) -> None:
    """All that rank 0 does for one checkpoint. Each attempt saves the step of its own number."""
    writer = writer_of(run)
    writer.save(state.at(attempt), manifest(attempt, attempt))
    writer.wait()


class Attempts:
    """A run each of whose attempts saves once; some are killed meanwhile."""

    def __init__(self, root: Path, state: State) -> None:
        record = Record(
            id="run", name="test", created=0.0, target="local", spec={"name": "test"}, spec_file="", spec_text=""
        )
        self.run, self._state = create_run(root, record), state
        self.begin()

    def save(self) -> None:
        """The step of the attempt's own number."""
        save(self.run, self._state, len(self.run.ledger.refresh().attempts))

    def begin(self) -> list[str]:
        """A new attempt, up to where its ranks load what it has chosen; all that is wrong with that."""
        run = self.run = Run(self.run.storage)  # a process that has seen nothing yet
        before = run.ledger.refresh()
        number = len(before.attempts) + 1
        run.ledger.append(AttemptStarting(attempt=number, target="local"), after=before.version)
        choose_start(run, number)
        chosen = run.ledger.refresh().attempts[-1].resumes_from
        wrong = [f"left behind: {path}" for path in leftovers(run)]
        ever = sum(isinstance(record.event, CheckpointSaved) for record in run.ledger.records())
        if len(before.checkpoints) < min(KEPT, ever):
            wrong.append(f"{ever} checkpoints were committed, {len(before.checkpoints)} are left")
        if not ever:
            return wrong
        newest = in_order(before)[-1]
        if chosen != newest.path or newest_whole(run, None)[0] != newest:
            wrong.append(f"begins with {chosen}, though {newest.path} is the newest that was committed")
        if (loaded := step_of(Path(run.storage.root, newest.path))) != newest.step:
            wrong.append(f"{newest.path} holds step {loaded}")
        return wrong


def leftovers(run: Run) -> list[str]:
    """What lies among the checkpoints though it does not count, half-written files included."""
    counting = {saved.path.removesuffix(f"/{FILE}") for saved in run.ledger.refresh().checkpoints}
    folders = {f"{FOLDER}/{name}" for name in run.storage.list(FOLDER)}
    hidden = [str(path.relative_to(run.storage.root)) for path in Path(run.storage.root, FOLDER).rglob(".*")]
    return sorted(folders - counting) + hidden


# -- the disk is full


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A filesystem of its own with so much room.

    Raises:
        OSError: none can be mounted: that takes root.
    """
    folder.mkdir(parents=True)
    options = f"size={megabytes}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        raise OSError(f"no small filesystem can be mounted here, which takes root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all room of its filesystem but for so many bytes. Returns the file that holds it."""
    filler = folder / "filler"
    room = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)
    return filler


class Full(Callback):
    """From one step on, the run directory's filesystem has no room for another checkpoint; until another step."""

    def __init__(self, at: int, until: int, leave: int) -> None:
        self._at, self._until, self._leave = at, until, leave

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        folder = Path(os.environ["LAUNCHER_RUN_DIR"]).parent
        if trainer.global_step == self._at:
            ledger = Run(PosixStorage(Path(os.environ["LAUNCHER_RUN_DIR"]))).ledger
            while ledger.refresh().best_step < self._at - 1:  # the step before is still being written
                time.sleep(0.01)
            fill(folder, self._leave)
        if trainer.global_step == self._until:
            (folder / "filler").unlink()


class Large(Classifier):
    """Weights of many megabytes."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.zeros(megabytes << 18))


def full_spec(megabytes: int, until: int) -> dict[str, Any]:
    """24 steps, saved every 4; from step 9 on half of a checkpoint has room."""
    callback = {"class_path": "killed.Full", "init_args": {"at": 9, "until": until, "leave": megabytes << 19}}
    return {
        "model": {"class_path": "killed.Large", "init_args": {"megabytes": megabytes}},
        "data": {"class_path": "toys.NoisyData"},
        "trainer": {"max_epochs": 1, "logger": False, "enable_model_summary": False, "callbacks": [callback]},
        "checkpoint": {"every_n_steps": 4, "every": None, "keep_last": KEPT},
        "retry": {"infra": 0},
    }
