"""Checkpoints on storage, seen without torch: their folders, their manifests, whether they are whole.

    checkpoints/step-00001200-a001/checkpoint.ckpt    what Lightning writes and reads
    checkpoints/step-00001200-a001/manifest.json      written after it: size, checksum, step, world size

The folder carries the attempt, so that two attempts never write to the same place. A checkpoint counts once
an event of the ledger names it.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, BinaryIO, Protocol, TypeVar

import xxhash

from launcher.errors import Fenced, FormatTooNew, UsageError
from launcher.events import FORMAT, CheckpointSaved, CheckpointsDropped
from launcher.run import Run
from launcher.state import RunState
from launcher.storage import Storage, Unreachable

FOLDER = "checkpoints"
FILE = "checkpoint.ckpt"
_CHUNK = 1 << 18  # stays in a core's own cache between reading and summing up
T = TypeVar("T")
Reading = Callable[[BinaryIO, Callable[[memoryview], object]], T]
"""Reads a stream and hands on each part of it, in order."""
_OURS = re.compile(r"step-\d{8,}-a(\d{3,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint must look like to be taken."""

    step: int
    epoch: int
    attempt: int
    world_size: int
    precision: str
    complete: bool
    """Training has reached its end with this checkpoint."""
    bytes: int = 0
    checksum: str = ""
    """As `Checksum.text` gives it; this and the size are known once it has been written."""
    curves: dict[str, Any] | None = None
    """How far the loggers' files reached: what stands beyond is written again."""
    monitored: dict[str, Any] | None = None
    """Name, mode and value of checkpoint.monitor, if there was a validation of just this step."""
    format: int = FORMAT


class Checksum:
    """Over the whole file; tells damage, not malice.

    XXH3 with 128 bits (https://xxhash.com) is as fast as memory: a gigabyte is verified in about the time that it
    takes to read it, which SHA-256 would multiply.
    """

    def __init__(self) -> None:
        self._sum = xxhash.xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        self._sum.update(data)

    @property
    def text(self) -> str:
        return f"xxh3-128:{self._sum.hexdigest()}"


class Retention(Protocol):
    """What is kept; of the checkpoint section of a job spec."""

    @property
    def keep_last(self) -> int: ...
    @property
    def keep_every(self) -> int | None: ...
    @property
    def monitor(self) -> str | None: ...
    @property
    def mode(self) -> str: ...
    @property
    def keep_best(self) -> int: ...


class BadCheckpoint(Exception):
    """A checkpoint is not what its manifest says; the message tells the difference."""


def checkpoint_path(step: int, attempt: int) -> str:
    """The .ckpt file, relative to the run directory."""
    return f"{FOLDER}/step-{step:08d}-a{attempt:03d}/{FILE}"


def write_manifest(storage: Storage, path: str, manifest: Manifest) -> None:
    storage.replace(_manifest_path(path), (json.dumps(asdict(manifest), indent=1) + "\n").encode())


def read_manifest(storage: Storage, path: str) -> Manifest:
    """Keys that this launcher does not know are passed over: the format says whether they matter.

    Raises:
        BadCheckpoint: there is none that can be read.
        FormatTooNew: a newer launcher wrote it.
    """
    try:
        body: dict[str, Any] = json.loads(storage.read(_manifest_path(path)))
        manifest = Manifest(**{one.name: body[one.name] for one in fields(Manifest) if one.name in body})
    except Unreachable:  # that says nothing about the checkpoint
        raise
    except (OSError, ValueError, TypeError) as error:
        raise BadCheckpoint(f"no readable manifest.json ({error})") from None
    if manifest.format > FORMAT:
        raise FormatTooNew(f"{storage.root}/{path}: written by a newer launcher; update this one")
    return manifest


def verify(storage: Storage, path: str) -> Manifest:
    """Read the whole checkpoint and compare it with its manifest.

    Raises:
        BadCheckpoint: it is missing, truncated or altered.
        FormatTooNew: a newer launcher wrote it.
    """
    return verified(storage, path, _read_through)[0]


def verified(storage: Storage, path: str, read: Reading[T]) -> tuple[Manifest, T]:
    """As `verify`, with what is made of the checkpoint while it is read.

    Args:
        read: goes through the whole stream once.
    """
    manifest, checksum = read_manifest(storage, path), Checksum()
    try:
        with storage.open(path) as stream:
            if (size := stream.seek(0, os.SEEK_END)) != manifest.bytes:
                raise BadCheckpoint(f"{size} bytes instead of {manifest.bytes}")
            stream.seek(0)
            found = read(stream, checksum.update)
    except Unreachable:
        raise
    except OSError as error:
        raise BadCheckpoint(f"cannot be read ({error.strerror or error})") from None
    if checksum.text != manifest.checksum:
        raise BadCheckpoint("its checksum differs from the manifest's")
    return manifest, found


def _read_through(stream: BinaryIO, seen: Callable[[memoryview], object]) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]  # BinaryIO has it, its stub not
        seen(buffer[:count])


def set_aside(run: Run, attempt: int, path: str, why: str) -> None:
    """Take a bad checkpoint out of the way without losing it."""
    dropped = CheckpointsDropped(attempt=attempt, paths=(path,), reason=why)
    run.ledger.append_while(newest_attempt(attempt), dropped)
    folder = path.removesuffix(f"/{FILE}")
    with suppress(OSError):  # nothing of it may be left to be moved
        run.storage.move(folder, folder.replace(FOLDER, f"{FOLDER}/bad", 1))


def best(checkpoints: Iterable[CheckpointSaved], mode: str, count: int) -> list[CheckpointSaved]:
    """Those with the best metric, the best first; of equal ones the earlier. Pure."""
    sign = 1 if mode == "min" else -1
    measured = [(sign * saved.metric, saved.step, saved) for saved in checkpoints if saved.metric is not None]
    return [saved for _, _, saved in sorted(measured, key=lambda one: one[:2])[:count]]


def surplus(checkpoints: list[CheckpointSaved], rules: Retention) -> list[CheckpointSaved]:
    """Those that no rule keeps. Pure.

    Args:
        checkpoints: in order.
    """
    kept = {saved.path for saved in checkpoints[-rules.keep_last :]}
    if rules.keep_every:
        first: dict[int, str] = {}
        for saved in checkpoints:
            first.setdefault(saved.step // rules.keep_every, saved.path)
        kept.update(first.values())
    if rules.monitor:
        kept.update(saved.path for saved in best(checkpoints, rules.mode, rules.keep_best))
    return [saved for saved in checkpoints if saved.path not in kept]


def prune(run: Run, attempt: int, rules: Retention) -> None:
    """Delete what no rule keeps. First the event, then the files: a crash leaves litter, not holes.

    Raises:
        Fenced: a newer attempt has begun; only the newest one prunes.
    """
    paths = tuple(saved.path for saved in surplus(in_order(run.ledger.refresh()), rules))
    if not paths:
        return
    dropped = CheckpointsDropped(attempt=attempt, paths=paths, reason=rules_in_words(rules))
    run.ledger.append_while(newest_attempt(attempt), dropped)
    for path in paths:
        run.storage.delete(path.removesuffix(f"/{FILE}"))


def rules_in_words(rules: Retention) -> str:
    words = [f"keep_last: {rules.keep_last}"]
    words += [f"keep_every: {rules.keep_every}"] if rules.keep_every else []
    words += [f"keep_best: {rules.keep_best} by {rules.monitor}"] if rules.monitor else []
    return ", ".join(words)


def litter(names: Iterable[str], state: RunState, attempt: int) -> list[str]:
    """Folders that earlier attempts have left behind: half written, or dropped and not deleted. Pure.

    Args:
        names: what lies in the folder of checkpoints; a callback of the user's may save there too. Listed before the
            ledger was read, which then knows all of them that count.
        attempt: it and later ones may still write.
    """
    counting = {saved.path.removesuffix(f"/{FILE}") for saved in state.checkpoints}
    found = [f"{FOLDER}/{name}" for name in names if _is_before(name, attempt)]
    return [folder for folder in found if folder not in counting]


def _is_before(folder: str, attempt: int) -> bool:
    named = _OURS.fullmatch(folder)
    return named is not None and int(named[1]) < attempt


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
    write_manifest(run.storage, path, replace(manifest, attempt=0, complete=False, curves=None, monitored=None))
    event = replace(saved, attempt=0, path=path, complete=False, metric=None)
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
