"""Checkpoints on storage, seen without torch: their folders, their manifests, whether they are whole.

    checkpoints/step-00001200-a001/checkpoint.ckpt    what Lightning writes and reads
    checkpoints/step-00001200-a001/manifest.json      written after it: size, checksum, step, world size

The folder carries the attempt, so that two attempts never write to the same place. A checkpoint counts once
an event of the ledger names it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.errors import Fenced, UsageError
from launcher.ledger import FORMAT, CheckpointSaved, CheckpointsDropped, RunState
from launcher.run import Run
from launcher.storage import Storage, Unreachable

FOLDER = "checkpoints"
FILE = "checkpoint.ckpt"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint must look like to be taken."""

    step: int
    epoch: int
    attempt: int
    world_size: int
    precision: str
    bytes: int
    sha256: str
    complete: bool
    """Training has reached its end with this checkpoint."""
    curves: dict[str, Any] | None = None
    """How far the loggers' files reached: what stands beyond is written again."""
    format: int = FORMAT


class BadCheckpoint(Exception):
    """A checkpoint is not what its manifest says; the message tells the difference."""


def checkpoint_path(step: int, attempt: int) -> str:
    """The .ckpt file, relative to the run directory."""
    return f"{FOLDER}/step-{step:08d}-a{attempt:03d}/{FILE}"


def write_manifest(storage: Storage, path: str, manifest: Manifest) -> None:
    storage.replace(_manifest_path(path), (json.dumps(asdict(manifest), indent=1) + "\n").encode())


def read_manifest(storage: Storage, path: str) -> Manifest:
    """Raises BadCheckpoint."""
    try:
        body: dict[str, Any] = json.loads(storage.read(_manifest_path(path)))
        return Manifest(**body)
    except Unreachable:  # that says nothing about the checkpoint
        raise
    except (OSError, ValueError, TypeError) as error:
        raise BadCheckpoint(f"no readable manifest.json ({error})") from None


def verify(storage: Storage, path: str) -> Manifest:
    """Read the whole checkpoint and compare it with its manifest.

    Raises:
        BadCheckpoint: it is missing, truncated or altered.
    """
    manifest = read_manifest(storage, path)
    digest, size = hashlib.sha256(), 0
    try:
        with storage.open(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except Unreachable:
        raise
    except OSError as error:
        raise BadCheckpoint(f"cannot be read ({error.strerror})") from None
    if size != manifest.bytes:
        raise BadCheckpoint(f"{size} bytes instead of {manifest.bytes}")
    if digest.hexdigest() != manifest.sha256:
        raise BadCheckpoint("its checksum differs from the manifest's")
    return manifest


def set_aside(run: Run, attempt: int, path: str, why: str) -> None:
    """Take a bad checkpoint out of the way without losing it."""
    dropped = CheckpointsDropped(attempt=attempt, paths=(path,), reason=why)
    run.ledger.append_while(newest_attempt(attempt), dropped)
    folder = path.removesuffix(f"/{FILE}")
    with suppress(OSError):  # nothing of it may be left to be moved
        run.storage.move(folder, folder.replace(FOLDER, f"{FOLDER}/bad", 1))


def prune(run: Run, attempt: int, keep_last: int) -> None:
    """Delete all but the newest checkpoints. First the event, then the files: a crash leaves litter, not holes."""
    state = run.ledger.refresh()
    surplus = tuple(saved.path for saved in in_order(state)[:-keep_last])
    if not surplus:
        return
    dropped = CheckpointsDropped(attempt=attempt, paths=surplus, reason=f"keep_last: {keep_last}")
    run.ledger.append_while(newest_attempt(attempt), dropped)
    for path in surplus:
        run.storage.delete(path.removesuffix(f"/{FILE}"))


def newest_whole(run: Run, step: int | None) -> tuple[CheckpointSaved, Manifest]:
    """The checkpoint of this step; None: the newest that is whole.

    Raises:
        UsageError: there is none that is whole.
    """
    bad = []
    for saved in reversed(in_order(run.ledger.refresh())):
        if step is None or saved.step == step:
            try:
                return saved, verify(run.storage, saved.path)
            except BadCheckpoint as problem:
                bad.append(f"; step {saved.step}: {problem}")
    steps = ", ".join(str(saved.step) for saved in in_order(run.ledger.refresh())) or "none"
    wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise UsageError(f"{run.id} has {wanted} that is whole; there are: {steps}{''.join(bad)}")


def adopt(run: Run, source: Run, saved: CheckpointSaved, manifest: Manifest) -> None:
    """Have a new run begin with a copy of another run's checkpoint."""
    path = checkpoint_path(saved.step, 0)
    with source.storage.open(saved.path) as given, run.storage.writer(path) as taken:
        shutil.copyfileobj(given, taken, _CHUNK)
    write_manifest(run.storage, path, replace(manifest, attempt=0, complete=False, curves=None))
    event = replace(saved, attempt=0, path=path, complete=False)
    run.ledger.append(event, after=run.ledger.refresh().version)


def in_order(state: RunState) -> list[CheckpointSaved]:
    """Those that count: the furthest last, and of the same step the later attempt's."""
    return sorted(state.checkpoints, key=lambda saved: (saved.step, saved.attempt))


def newest_attempt(attempt: int) -> Callable[[RunState], None]:
    """Condition for Ledger.append_while: raises Fenced once a newer attempt has begun."""

    def check(state: RunState) -> None:
        newest = state.attempts[-1].number if state.attempts else 0
        if newest > attempt:
            raise Fenced(f"attempt {attempt} was overtaken by attempt {newest}; it leaves")

    return check


def _manifest_path(path: str) -> str:
    return path.removesuffix(FILE) + "manifest.json"
