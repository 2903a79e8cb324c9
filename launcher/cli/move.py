"""A run that goes on elsewhere: on another target, and where that does not see the run's directory, at another address.

Nobody drives a run while it moves. What was brought to another address becomes a run there in the last step, and the
event before it, `Moved`, is the last of the old ledger: so there is never a moment with two runs that could go on.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.address import absolute, below, is_local, split, storage_at
from launcher.backend import Plan
from launcher.cli.place import backend_of, kind_of
from launcher.cli.terminal import Terminal
from launcher.elastic import global_batch
from launcher.errors import LauncherError, UsageError
from launcher.events import AttemptEnded, Moved
from launcher.exactness import Layout, consequences, guarantee, of_moving
from launcher.layout import attempt_folder
from launcher.policy import Cause, Phase
from launcher.record import SWEEP, Record
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import RunState
from launcher.status import last_step
from launcher.transfer import arrived, carry, reveal
from launcher.tree import in_words

_MEMORY = ("tmpfs", "ramfs")
_DISKS = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs", "zfs")
_SHARED = "FOLDER, with one that all nodes see"


def check_alone(run: Run) -> None:
    """Raises UsageError when it is a run of a sweep, whose runs share their code and whoever drives them."""
    if SWEEP in storage_at(split(run.storage.root)[0]).list(""):
        raise UsageError(
            f"{run.id} is a run of a sweep, and they stay together; begin one of its own with its checkpoint: "
            f"launcher run SPEC --from {run.id} --on TARGET"
        )


def followed(run: Run) -> Run:
    """The run itself, or where it was being moved to when whoever did it was killed.

    Raises:
        UsageError: it has been moved away; says where to.
    """
    address = run.ledger.refresh().moved_to
    if address is None:
        return run
    target = storage_at(address)
    if not arrived(run, target):
        return reveal(run, target)
    root, name = split(address)
    raise UsageError(f"{run.id} goes on at {address}: launcher resume {name} --runs-root {shlex.quote(root)}")


def address_for(run: Run, record: Record, to: str | None) -> str:
    """That of the run's directory from now on.

    Args:
        record: with the target that it is to go on on.
        to: the folder of runs to bring it to; None: it stays where it is.

    Raises:
        UsageError: the target does not see it there.
    """
    address = below(absolute(to), run.id) if to else run.storage.root
    if kind_of(record) == "tpu" and is_local(address):
        raise _unseen(run, record, address, "hosts of Cloud TPU do not see", "gs://BUCKET/FOLDER")
    if kind_of(record) == "slurm":
        if not is_local(address):
            raise _unseen(run, record, address, "jobs of Slurm do not run in", _SHARED)
        if (kind := _filesystem(address)) in _MEMORY:
            raise _unseen(run, record, address, f"is in the memory of this machine ({kind})", _SHARED)
    return address


def _unseen(run: Run, record: Record, address: str, which: str, to: str) -> UsageError:
    return UsageError(
        f"{run.id}: its directory would be {address}, which {which}; have it brought to where it is seen: "
        f"launcher resume {run.id} --on {record.target} --to {to}"
    )


def _filesystem(path: str) -> str:
    """The kind that a path is on, or will be; "" where the system does not say."""
    real, found = os.path.realpath(path), ("", "")
    for mounted, kind in _mounts():
        if f"{real}/".startswith(f"{mounted.rstrip('/')}/") and len(mounted) >= len(found[0]):  # the last one is on top
            found = mounted, kind
    return found[1]


def _mounts() -> Iterator[tuple[str, str]]:
    """Where, and what kind. Source: proc(5), /proc/pid/mountinfo; a space is \\040 there."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        about, _, source = line.partition(" - ")
        yield about.split()[4].replace("\\040", " "), source.split()[0]


def differences(run: Run, record: Record, spec: JobSpec, plan: Plan) -> list[str]:
    """What will be different from now on, a sentence each.

    Args:
        record: with the target that it is to go on on.
        spec: with which it is to go on.
        plan: of its next attempt.
    """
    now, layout = run.now, _layout(plan.as_json())
    said = [f"target: {now.target} -> {record.target}"] if now.target != record.target else []
    if before := _newest_layout(run):
        batches = global_batch(spec, record.ranks, layout.ranks).micro_batches
        said += of_moving(before, layout, batches, exact=spec.exact)
    resolved = spec.model_dump(mode="json", exclude_unset=True)
    said += consequences(now.spec, resolved, moving=True)
    deterministic = bool(spec.trainer.deterministic)
    if kind_of(record) == "slurm" and (kind := _filesystem(plan.run_dir)) in _DISKS:
        said.append(f"directory: {plan.run_dir} is on a disk of this machine ({kind}): all nodes have to see that")
    kept = guarantee(plan.device, layout.ranks, deterministic=deterministic, exact=spec.exact)
    return [*said, f"resumed there: {kept}"]


def _newest_layout(run: Run) -> Layout | None:
    """That of the newest attempt; None if there was none."""
    for attempt in reversed(run.ledger.refresh().attempts):
        if plan := run.read_json(f"{attempt_folder(attempt.number)}/plan.json"):
            return _layout(plan)
    return None


def _layout(plan: Mapping[str, Any]) -> Layout:
    threads = plan["env"].get("OMP_NUM_THREADS")
    return Layout(
        accelerator=plan["accelerator"], ranks=len(plan["ranks"]), threads=None if threads is None else int(threads)
    )


def settled(run: Run, state: RunState) -> RunState:
    """The run without an attempt whose end nobody has written down: another target knows nothing of it.

    Raises:
        LauncherError: its ranks still run.
        LedgerConflict: somebody else acts on the run.
    """
    attempt = state.open_attempt
    if attempt is None:
        return state
    backend = backend_of(run.now)
    handle = attempt.handle or backend.find(run.storage.root, attempt.number)
    seen = backend.poll(run, attempt.number, handle) if handle else None
    if seen and seen.phase != Phase.ENDED:
        raise LauncherError(
            f"{run.id}: ranks of attempt {attempt.number} still run on {attempt.target}; end them first: "
            f"launcher cancel --checkpoint {run.id}"
        )
    ended = AttemptEnded(
        attempt=attempt.number,
        cause=(seen and seen.cause) or Cause.INFRA,
        reason=seen.reason if seen else "the launcher died while it started this attempt",
        step=last_step(run, state, attempt) or 0,
        lost=seen.lost if seen else (),
    )
    return run.ledger.append(ended, after=state.version)


def brought(run: Run, state: RunState, address: str, terminal: Terminal) -> Run:
    """The run at another address; it is no longer one where it was.

    Raises:
        UsageError: another run is there.
        LauncherError, OSError: it cannot be copied; it stays where it is.
        LedgerConflict: somebody else acts on the run.
    """
    if address == run.storage.root:
        return run
    target = storage_at(address)
    terminal.line(f"copying {in_words(run.storage.size(''))} to {address}")
    carry(run, target)
    run.ledger.append(Moved(to=address), after=state.version)
    moved = reveal(run, target)
    terminal.line(f"from here on it is found with --runs-root {shlex.quote(split(address)[0])}, or LAUNCHER_RUNS")
    return moved
