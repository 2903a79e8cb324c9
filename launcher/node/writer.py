"""Writes checkpoints in the background and commits them to the run. Of rank 0."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from launcher.checkpoints import FILE, Manifest, Retention, checkpoint_path, newest_attempt, prune, write_manifest
from launcher.events import CheckpointSaved
from launcher.node.checkpoint import write
from launcher.node.staging import Staging
from launcher.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that has been committed."""

    step: int
    stall_s: float
    """How long training stood still for it."""
    write_s: float
    """How long it took from then on until it was durable, and counted."""


class Writer:
    """One thread, one checkpoint at a time: the next save waits for the one before, so that no queue can grow."""

    def __init__(self, run: Run, rules: Retention, sync_curves: Callable[[dict[str, Any]], None]) -> None:
        """
        Args:
            rules: what is kept.
            sync_curves: makes durable what a mark of the curves counts; called in the thread.
        """
        self._run = Run(run.storage)  # a ledger of this thread's own
        self._rules, self._sync_curves = rules, sync_curves
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None

    def save(self, checkpoint: dict[str, Any], manifest: Manifest) -> None:
        """Copy the checkpoint and have it written. Returns when it has been copied.

        Args:
            manifest: without size and checksum, which are not known yet.

        Raises:
            RuntimeError: the save before has not been taken note of (`wait`).
            NotRepresentable: it holds a value that cannot be written.
        """
        if self._pending is not None:
            raise RuntimeError("a checkpoint is still being written")
        begun = time.monotonic()
        staged = self._staging.copy(checkpoint)
        stall_s = time.monotonic() - begun
        self._pending = self._thread.submit(self._write, staged, manifest, stall_s)

    @property
    def is_idle(self) -> bool:
        return self._pending is None

    def poll(self) -> Saved | None:
        """The checkpoint that has been written meanwhile, once; None if there is none. Raises as `wait`."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> Saved | None:
        """Wait for the checkpoint that is being written; None if there is none.

        Raises:
            OSError: it could not be written, and does not count. The next one can be tried.
            Fenced: a newer attempt has begun; it does not count.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending else None

    def close(self) -> None:
        """Let what is being written come to its end. Its errors are only logged: there is another one already."""
        try:
            self.wait()
        except Exception as error:
            log.warning("the last checkpoint was not written: %s", error)
        self._thread.shutdown()

    def _write(self, staged: Any, manifest: Manifest, stall_s: float) -> Saved:
        begun = time.monotonic()
        path = checkpoint_path(manifest.step, manifest.attempt)
        try:
            written = write(self._run.storage, path, staged)
            if manifest.curves:
                self._sync_curves(manifest.curves)
            manifest = replace(manifest, bytes=written.bytes, checksum=written.checksum)
            write_manifest(self._run.storage, path, manifest)
        except OSError:
            with suppress(OSError):
                self._tidy(path, manifest.attempt)
            raise
        saved = Saved(step=manifest.step, stall_s=stall_s, write_s=time.monotonic() - begun)
        commit(self._run, path, manifest, saved)
        try:
            prune(self._run, manifest.attempt, self._rules)
        except OSError as error:  # it counts all the same; the next attempt clears up
            log.warning("older checkpoints could not be deleted: %s", error)
        return saved

    def _tidy(self, path: str, attempt: int) -> None:
        """After a save that failed. Raises Fenced: a newer attempt has taken the folder away."""
        state = self._run.ledger.refresh()
        newest_attempt(attempt)(state)
        if all(saved.path != path for saved in state.checkpoints):
            self._run.storage.delete(path.removesuffix(f"/{FILE}"))


def commit(run: Run, path: str, manifest: Manifest, saved: Saved) -> None:
    """Make a written checkpoint count: append its event, unless there is a newer attempt.

    Raises:
        Fenced: there is one.
    """
    event = CheckpointSaved(
        attempt=manifest.attempt,
        step=manifest.step,
        epoch=manifest.epoch,
        path=path,
        bytes=manifest.bytes,
        complete=manifest.complete,
        metric=manifest.monitored["value"] if manifest.monitored else None,
        stall_s=saved.stall_s,
        write_s=saved.write_s,
    )
    run.ledger.append_while(newest_attempt(manifest.attempt), event)
