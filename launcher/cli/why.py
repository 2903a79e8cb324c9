"""why: the first cause of a failure, its rank and traceback, what became of the other ranks, what to do next."""

import argparse
import shlex
import shutil
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from launcher.address import is_local
from launcher.cli.common import print_json, wanted_run
from launcher.cli.terminal import Terminal, clock
from launcher.diagnosis import ended, kind_of
from launcher.errors import UsageError
from launcher.kinds import Kind
from launcher.layout import attempt_folder, log_path
from launcher.output import end, last_written
from launcher.policy import Cause
from launcher.run import Run, failures
from launcher.state import Attempt
from launcher.status import host_of, status

_LAST_LINES = 5
_READ = 1 << 14


class _Answer(NamedTuple):
    what: str
    """Of a rank: it ..."""
    next: str
    """Placeholders: run, again (the command that launched it), disk (the filesystem of the run directory)."""


_AGAIN = "then: launcher resume {run}"
_MENDED = f"{_AGAIN} --code"
"""A run imports from the code as it was, unless it is told to take it as it is."""
_CHANGE = "launcher resume {run} --set"
_FINE = "nothing is wrong: launcher resume {run}"
_ANSWERS = {
    Kind.ERROR: _Answer("raised an exception", f"mend the code, {_MENDED}"),
    Kind.SPEC: _Answer(
        "found the spec not to fit", f"correct the spec: {_CHANGE} KEY=VALUE; or mend the code, {_MENDED}"
    ),
    Kind.IMPORT: _Answer(
        "could not import a module",
        f"install the module in this environment or mend the import, {_MENDED}; "
        "or correct class_path or code.path in the spec and begin anew: {again}",
    ),
    Kind.MEMORY: _Answer(
        "ran out of host memory",
        "ask for more with resources.mem, or lower data.init_args.num_workers or batch_size: "
        f"{_CHANGE} data.init_args.num_workers=N; if other programs had taken it: launcher resume {{run}}",
    ),
    Kind.GPU_MEMORY: _Answer(
        "ran out of GPU memory",
        "lower data.init_args.batch_size and raise trainer.accumulate_grad_batches by as much, or set "
        f"trainer.precision to 16-mixed: {_CHANGE} data.init_args.batch_size=N; if other programs had taken it: "
        "launcher resume {run}",
    ),
    Kind.SHARED_MEMORY: _Answer(
        "ran out of shared memory",
        "enlarge /dev/shm (docker: --shm-size), or lower data.init_args.num_workers or batch_size, " + _AGAIN,
    ),
    Kind.DISK: _Answer(
        "found the disk full",
        "make room, then: launcher resume {run} (the run directory lies on {disk}; lower checkpoint.keep_last "
        "keeps less of it)",
    ),
    Kind.STORAGE: _Answer(
        "could not reach the run directory, or not write its last checkpoint there",
        "look at network and storage, then: launcher resume {run} (it goes on from the newest checkpoint that counts)",
    ),
    Kind.CHECKPOINT: _Answer(
        "could not load the checkpoint, which is whole: it is of another model",
        "change code and spec back to what wrote it, then: launcher resume {run}; or begin anew: {again}",
    ),
    Kind.DRIFT: _Answer(
        "found other versions of Python or packages than before",
        "change back what is named above, then: launcher resume {run}; or begin anew: {again}",
    ),
    Kind.HOSTS: _Answer(
        "found hosts that cannot train together",
        "mend what is said of each host above, or have the scheduler leave it out (slurm.exclude), " + _AGAIN,
    ),
    Kind.PORT: _Answer(
        "found its port in use",
        "launcher resume {run} (each attempt takes a new port; if it is one that your own code opens, change that)",
    ),
    Kind.LOADER: _Answer(
        "lost a DataLoader worker",
        "see its log; data.init_args.num_workers=0 gives a better traceback and uses less memory; " + _AGAIN,
    ),
    Kind.PEER: _Answer(
        "lost its peer (an echo)",
        "see whether the logs of other ranks end without a word, and look at machines and network, " + _AGAIN,
    ),
    Kind.HANG: _Answer(
        "waited for its peer (an echo)",
        "see the log of the rank that did not come; all ranks must take the same branches and as many batches. If it "
        "only was slow, raise the timeout of trainer.strategy (DDPStrategy), " + _AGAIN,
    ),
    Kind.KILLED: _Answer(
        "was killed",
        "if it happens again, look at memory (dmesg, sudo journalctl -k) and at who else ends processes, " + _AGAIN,
    ),
    Kind.CRASH: _Answer(
        "crashed in native code",
        "see the end of its log; env.vars.PYTHONFAULTHANDLER=1 in the spec shows where in Python, " + _AGAIN,
    ),
    Kind.EXIT: _Answer("exited without an exception", f"see the end of its log for who ended it, {_AGAIN}"),
    Kind.LAUNCH: _Answer(
        "could not be started",
        "see srun.log in the attempt's folder; correct slurm.srun_args, slurm.container, slurm.venv or what it names: "
        f"{_CHANGE} KEY=VALUE",
    ),
    Kind.LEFT: _Answer("left", f"see the logs, {_AGAIN}"),
    Kind.MACHINE: _Answer("lost its machine", "the next attempt has new ones: launcher resume {run}"),
    Kind.LAUNCHER: _Answer("lost its launcher", _FINE),
    Kind.PREEMPTED: _Answer("was told to leave", _FINE),
    Kind.TIMEOUT: _Answer("was out of time", _FINE),
    Kind.STOPPED: _Answer("was stopped", _FINE),
    Kind.CANCELLED: _Answer("was cancelled", "it was cancelled; to carry it on all the same: launcher resume {run}"),
    Kind.FINISHED: _Answer("finished", ""),
}
"""What each kind is in words, and what the user may do."""

_TELLING_LOGS = (Kind.KILLED, Kind.MEMORY, Kind.CRASH, Kind.EXIT, Kind.DISK, Kind.HANG, Kind.PEER)
"""Without a traceback, the end of the log may tell."""


def why(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    shown = status(run)
    attempt = _last_ended(run) if args.attempt is None else _numbered(run, args.attempt)
    answer = _answer(run, shown, attempt)
    if args.json:
        print_json(answer)
        return 0
    terminal = Terminal()
    terminal.line(f"{run.id} {terminal.state(shown['state'])}" + (f": {shown['reason']}" if shown["reason"] else ""))
    if attempt is not None:
        _print(terminal, answer)
    if answer["next"]:
        terminal.line(f"next: {answer['next']}")
    return 0


def _print(terminal: Terminal, answer: Mapping[str, Any]) -> None:
    terminal.line(f"attempt {answer['attempt']} on {answer['target']} ended: {answer['cause']} ({answer['reason']})")
    if answer["rank"] is not None:
        host = f" on {answer['host']}" if answer["host"] else ""
        terminal.line(f"first: rank {answer['rank']}{host} {_ANSWERS[Kind(answer['kind'])].what}")
    for text in (answer["traceback"], "\n".join(answer["last_lines"])):
        if text:
            terminal.line()
            terminal.line(text.rstrip())
            terminal.line()
    if others := [one for one in answer["ranks"] if one["rank"] != answer["rank"]]:
        terminal.line(f"others: {_in_one_line(others)}")
    if answer["silent"]:
        silent = answer["silent"]
        terminal.line(f"silent the longest: rank {silent['rank']}, whose log ends at {clock(silent['time'])}")
    if answer["rank"] is not None:
        terminal.line(f"log of rank {answer['rank']}: {answer['log']}")


def _last_ended(run: Run) -> Attempt | None:
    """The last attempt that ended otherwise than by finishing."""
    found = [one for one in run.ledger.refresh().attempts if one.cause not in (None, Cause.FINISHED)]
    return found[-1] if found else None


def _numbered(run: Run, number: int) -> Attempt:
    attempts = run.ledger.refresh().attempts
    if not 1 <= number <= len(attempts):
        raise UsageError(f"{run.id} has no attempt {number}; the newest is {len(attempts)}")
    if attempts[number - 1].cause is None:
        raise UsageError(f"{run.id}: attempt {number} has not ended yet")
    return attempts[number - 1]


def _answer(run: Run, shown: Mapping[str, Any], attempt: Attempt | None) -> dict[str, Any]:
    empty = dict.fromkeys(("attempt", "target", "cause", "kind", "rank", "host", "traceback", "log", "silent"))
    answer = {"run": run.id, "state": shown["state"], "reason": shown["reason"], **empty, "last_lines": [], "ranks": []}
    if attempt is None or attempt.cause is None:
        return {**answer, "next": _next(run, shown["state"], None)}
    records = failures(run, attempt.number)
    kind, rank = ended(attempt.cause, attempt.reason or "", records)
    first = next((record for record in records if record["rank"] == rank), None)
    log = log_path(attempt.number, rank or 0)
    tells = kind in _TELLING_LOGS and not (first and first["traceback"])
    return {
        **answer,
        "attempt": attempt.number,
        "target": attempt.target,
        "cause": attempt.cause,
        "kind": kind,
        "reason": attempt.reason,
        "rank": rank,
        "host": first["host"] if first else host_of(run, attempt, rank),
        "traceback": first["traceback"] if first else None,
        "last_lines": _last_lines(run, log) if tells else [],
        "log": f"{run.storage.root}/{log}",
        "ranks": [_told(record) for record in sorted(records, key=lambda record: int(record["rank"]))],
        "silent": _silent(run, attempt.number) if kind == Kind.HANG else None,
        "next": _next(run, shown["state"], attempt, kind),
    }


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What one rank recorded, without its traceback."""
    return {**{key: record[key] for key in ("rank", "host", "type", "message")}, "kind": kind_of(record)}


def _next(run: Run, state: str, attempt: Attempt | None, kind: Kind = Kind.STOPPED) -> str | None:
    """What the user may do; None if nothing."""
    if state in ("finished", "moved"):
        return None
    if state in ("running", "queued"):
        return f"it goes on by itself: launcher logs -f {run.id}"
    if state == "cancelled":
        kind = Kind.CANCELLED
    elif attempt is None or run.ledger.refresh().open_attempt:  # the launcher itself was ended
        kind = Kind.STOPPED
    disk = _disk(run.storage.root) if kind == Kind.DISK else ""
    return _ANSWERS[kind].next.format(run=run.id, again=_again(run), disk=disk)


def _again(run: Run) -> str:
    """The command that launched it."""
    changes = [word for change in run.record.overrides for word in ("--set", change)]
    place = [] if run.record.target == "local" else ["--on", run.record.target]
    return shlex.join(["launcher", "run", run.record.spec_file or "SPEC", *place, *changes])


def _disk(address: str) -> str:
    if not is_local(address):
        return address
    folder = Path(address)
    mount = next(one for one in (folder, *folder.parents) if one.is_mount() or one == one.parent)
    usage = shutil.disk_usage(folder)
    return f"{mount}, where {usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free now"


def _in_one_line(ranks: Iterable[Mapping[str, Any]]) -> str:
    """Such as `rank 0: raised an exception; ranks 1-3, 5: lost their peer (an echo)`."""
    by_kind: dict[str, list[int]] = {}
    for one in ranks:
        by_kind.setdefault(_ANSWERS[Kind(one["kind"])].what, []).append(one["rank"])
    return "; ".join(
        f"rank {members[0]}: {what}"
        if len(members) == 1
        else f"ranks {_ranges(members)}: {what.replace(' its ', ' their ')}"
        for what, members in by_kind.items()
    )


def _ranges(numbers: list[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs = [[number for _, number in group] for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in runs)


def _last_lines(run: Run, log: str) -> list[str]:
    try:
        return end(run.storage, log, _READ).decode(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return []


def _silent(run: Run, attempt: int) -> dict[str, Any] | None:
    """The rank whose log was not written to for the longest time; None if there is but one."""
    folder = f"{attempt_folder(attempt)}/logs"
    written = [(last_written(run.storage, f"{folder}/{name}"), name) for name in run.storage.list(folder)]
    if len(written) < 2:
        return None
    at, name = min(written)
    return {"rank": int(name.removeprefix("rank-").removesuffix(".log")), "time": at}
