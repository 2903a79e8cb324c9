"""run and cancel: a run's beginning, its course in this process, and its end by the user's word."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from launcher import shell, snapshot, tree
from launcher.address import below, here, is_local, own, storage_at
from launcher.backends.local import LocalBackend
from launcher.checkpoints import Manifest, adopt, newest_whole
from launcher.cli.check import check_spec
from launcher.cli.common import print_json, run_and_step, runs_root, wanted
from launcher.cli.follow import Follower
from launcher.cli.terminal import Terminal, discard, metrics_text
from launcher.errors import FAILED, FINISHED, INTERRUPTED, RESUMABLE, LauncherError, LedgerConflict, UsageError
from launcher.ledger import CancelRequested, CheckpointSaved, RunEnded, RunState
from launcher.run import Record, Run, check_id, create_run, new_id, run_ids
from launcher.spec import JobSpec, load_spec
from launcher.status import living_driver, status
from launcher.supervise import Supervisor
from launcher.sweep import Sweep

_DETACH_S = 30.0


def run(args: argparse.Namespace) -> int:
    spec_file = Path(args.spec)
    spec = load_spec(spec_file, args.overrides)
    record = new_record(spec, spec_file, args.overrides, args.name)
    if spec.sweep:
        from launcher.cli import sweep  # which builds on this module

        return sweep.run(spec, record, args)
    check_id(record.id)  # create_run would say this and the next too, but after the check
    run_dir = below(runs_root(args), record.id)
    if record.id in run_ids(runs_root(args)):
        raise UsageError(f"a run named '{record.id}' exists already: {run_dir}")
    source = _source(args)
    plan = LocalBackend().plan(run_dir, record, spec, 1)
    record = replace(record, ranks=len(plan.ranks))
    terminal = terminal_of(args)
    with staged_code(spec, record, run_dir) as staged:
        if not args.no_check:
            check_spec(spec, plan, staged)
        if staged:
            record = replace(record, code=staged.code)
            staged.publish()  # before there is a run that would need it
    created = create_run(runs_root(args), record)
    terminal.line(f"run {terminal.colour(record.id, 'bold')}  {len(plan.ranks)} rank(s) on {plan.accelerator}")
    terminal.line(f"  {created.storage.root}")
    if source:
        begun_with, saved, manifest = source
        adopt(created, begun_with, saved, manifest)
        terminal.line(f"  begins with step {saved.step} of {begun_with.id}")
    return carry_on(created, spec, args, terminal)


def _source(args: argparse.Namespace) -> tuple[Run, CheckpointSaved, Manifest] | None:
    """The run of `--from RUN[@STEP]`, and the checkpoint that is meant."""
    if args.source is None:
        return None
    source, step = run_and_step(args, args.source)
    return source, *newest_whole(source, step)


def cancel(args: argparse.Namespace) -> int:
    found = wanted(args)
    if isinstance(found, Sweep):
        from launcher.cli import sweep

        return sweep.cancel(found, args)
    if found.finished is not None or _has_ended(found.ledger.refresh()):
        raise UsageError(f"{found.id} has ended already: {status(found)['state']}")
    if (end := cancel_run(found)) != "cancelled":
        raise LauncherError(f"{found.id} {end} before it could be cancelled")
    if args.json:
        print_json({"run": found.id, "state": "cancelled", "run_dir": found.storage.root})
    else:
        print(f"{found.id} is cancelled; `launcher resume {found.id}` would carry it on")
    return 0


def cancel_run(found: Run) -> str:
    """Have it end, by its driver if there is one; how it did."""
    state = found.ledger.refresh()
    while not _has_ended(state):
        with suppress(LedgerConflict):  # somebody wrote in between: look again
            if not living_driver(found, state):  # nobody else will say so
                found.ledger.append(RunEnded(state="cancelled", reason="cancelled by the user"), after=state.version)
            elif not state.cancelling:
                found.ledger.append(CancelRequested(by=who()), after=state.version)
            else:
                time.sleep(found.storage.pause_s)
        state = found.ledger.refresh()
    return str(status(found)["state"])


def new_record(spec: JobSpec, spec_file: Path, overrides: list[str], name: str | None) -> Record:
    """What run.json will say. Ranks find modules in the spec's folder, its project's, and the current one."""
    folder = spec_file.absolute().parent
    own = [str((folder / path).resolve()) for path in spec.code.path]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return Record(
        id=new_id(spec.name) if name is None else name,
        name=spec.name if name is None else name,
        created=time.time(),
        target="local",
        spec=spec.model_dump(mode="json", exclude_unset=True),
        spec_file=str(spec_file.absolute()),
        spec_text=spec_file.read_text(),
        overrides=tuple(overrides),
        import_path=tuple(
            dict.fromkeys([*own, str(folder), str(_project(folder) or folder), str(Path.cwd()), *inherited])
        ),
        workdir=str(Path.cwd()),
    )


def code_sources(spec: JobSpec, record: Record, run_dir: str) -> list[tree.Source]:
    """The trees that a snapshot would be made of; none if none is wanted.

    Raises:
        UsageError: they are too large, or cannot be read.
    """
    if not spec.code.snapshot:
        return []
    folder = Path(record.spec_file).parent
    here = _project(Path(record.workdir))
    own = [folder / path for path in spec.code.path]
    return tree.survey(
        [_project(folder) or folder, folder, *own, *([here] if here else [])],
        exclude=spec.code.exclude,
        max_bytes=spec.code.max_bytes,
        run_dir=run_dir,
    )


@contextmanager
def staged_code(spec: JobSpec, record: Record, run_dir: str) -> Iterator[snapshot.Staged | None]:
    if sources := code_sources(spec, record, run_dir):
        with snapshot.staged(sources, run_dir, record.import_path, record.workdir) as staged:
            yield staged
    else:
        yield None


def drive(run_dir: str) -> int:
    """What a detached process does: the same loop, without a terminal."""
    found = Run(storage_at(run_dir))
    supervisor = Supervisor(found, JobSpec.model_validate(found.now.spec), LocalBackend())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    return _exit_code(supervisor.drive(), supervisor)


def _project(folder: Path) -> Path | None:
    """The folder itself or the nearest above that looks like a project's root."""
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return None


def carry_on(found: Run, spec: JobSpec, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.detach:
        detach(found, terminal)
        return answer(found, args, FINISHED)
    supervisor = Supervisor(found, spec, LocalBackend())
    follower = Follower(found, terminal)
    previous = on_signals(supervisor)
    try:
        ended = supervisor.drive(follower.tick)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    shown = status(found)
    terminal.line(f"{found.id} {terminal.state(shown['state'])}" + (f": {ended.reason}" if ended.reason else ""))
    if shown["metrics"]:
        terminal.line(f"  {metrics_text(shown['metrics'])}")
    if ended.state == "stopped":
        terminal.line(f"  carry it on with: launcher resume {found.id}")
    elif ended.state == "failed":
        terminal.line(f"  more with: launcher why {found.id}")
    return answer(found, args, _exit_code(ended, supervisor))


class Stoppable(Protocol):
    """What drives runs, and takes a note of the user's wish."""

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def on_signals(supervisor: Stoppable) -> dict[signal.Signals, Any]:
    """Once: save and leave. Ctrl-C twice: leave at once. Returns what was installed before."""
    asked: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has it ignored
        numbers.append(signal.SIGHUP)

    def stop(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            supervisor.kill()
            return
        asked.append(number)
        supervisor.stop()
        with suppress(OSError):  # the terminal may be gone
            os.write(
                2, b"\nsaving a checkpoint, then leaving; Ctrl-C once more: leave at once\n"
            )  # print is not reentrant

    return {number: signal.signal(number, stop) for number in numbers}


def detach(found: Run | Sweep, terminal: Terminal) -> None:
    """Have it driven in the background. Raises LauncherError if that does not come about."""
    address = found.storage.root
    log = here(address) / "supervisor.log"
    if not is_local(address):
        own(log.parent)
    child = shell.spawn([sys.executable, "-m", "launcher.cli.drive", address], env=os.environ, cwd=Path.cwd(), log=log)
    deadline = time.monotonic() + _DETACH_S
    while time.monotonic() < deadline and child.poll() is None:
        driver = found.ledger.refresh().driver
        if driver and driver.pid == child.pid:
            follow = "status" if isinstance(found, Sweep) else "logs -f"
            terminal.line(f"runs in the background; follow it with: launcher {follow} {found.id}")
            return
        time.sleep(found.storage.pause_s / 2)
    if not found.ledger.refresh().ended:
        raise LauncherError(f"{found.id}: the background process did not take over; see {log}")


def _exit_code(ended: RunEnded, supervisor: Supervisor) -> int:
    if ended.state == "finished":
        return FINISHED
    if ended.state == "stopped":
        return INTERRUPTED if supervisor.killed else RESUMABLE
    return FAILED


def answer(found: Run, args: argparse.Namespace, code: int) -> int:
    shown = status(found)
    if args.json:
        try:
            print_json(shown)
        except OSError:  # nobody reads it; how the run ended is in the exit code all the same
            discard(sys.stdout)
    return code


def terminal_of(args: argparse.Namespace) -> Terminal:
    return Terminal(sys.stderr if args.json else sys.stdout, unread=True)


def _has_ended(state: RunState) -> bool:
    """For good, as long as nobody resumes it."""
    return state.ended is not None and state.ended.state != "stopped"


def who() -> str:
    return f"pid {os.getpid()} on {os.uname().nodename}"
