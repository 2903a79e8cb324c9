"""Where a run goes: the backend of its target, and the process, here or there, that drives it."""

import argparse
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from launcher import shell
from launcher.address import here, is_local, own, storage_at
from launcher.backend import Backend, Plan
from launcher.backends.local import LocalBackend
from launcher.cli.common import print_json
from launcher.cli.follow import Follower
from launcher.cli.terminal import Terminal, discard, metrics_text
from launcher.errors import FAILED, FINISHED, INTERRUPTED, RESUMABLE, LauncherError, Problem, SpecError
from launcher.events import RunEnded
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec, load_spec, runs_of
from launcher.state import RunState
from launcher.status import status
from launcher.storage import try_out
from launcher.supervise import Supervisor
from launcher.sweep import Sweep
from launcher.target import Target, load_target, placed

_DETACH_S = 30.0


def spec_and_target(args: argparse.Namespace) -> tuple[JobSpec, Target]:
    """The spec of the call as it runs on its target.

    Raises:
        SpecError: either is wrong, or the spec asks for what the target does not have, as far as that was learned.
    """
    target = load_target(args.on)
    spec = placed(load_spec(Path(args.spec), args.overrides), target, args.overrides)
    check_fits(spec, target)
    return spec, target


def check_fits(spec: JobSpec, target: Target) -> None:
    """Raises SpecError when a cluster whose limits are known would never run it, or not all runs of the sweep."""
    if target.facts:
        from launcher.backends.slurm.checks import problems

        found: dict[str, Problem] = {}
        for index, one in distinct(spec).items():
            for problem in problems(one, target.facts):
                of_run = problem._replace(message=f"{problem.message} (run {index} of the sweep)")
                found.setdefault(str(problem), of_run if spec.sweep else problem)
        if found:
            raise SpecError([*found.values()])


def distinct(spec: JobSpec) -> dict[int, JobSpec]:
    """Specs of the runs that differ in what is asked of a cluster, by the number of the first run of each."""
    found: dict[str, tuple[int, JobSpec]] = {}
    for index, one in enumerate(runs_of(spec)):
        found.setdefault(repr((one.resources, one.slurm)), (index, one))
    return dict(found.values())


def site_of(target: Target) -> dict[str, Any] | None:
    """As a record has it."""
    return None if target.kind == "local" else target.model_dump(mode="json", exclude_unset=True)


def kind_of(record: Record) -> str:
    """Of the run's target."""
    return str(record.site["kind"]) if record.site else "local"


def backend_of(record: Record) -> Backend:
    """That of the run's target: for planning, and for driving it from here."""
    if record.site is None:
        return LocalBackend()
    if kind_of(record) == "tpu":
        from launcher.backends.tpu.backend import TpuBackend

        return TpuBackend(record.site.get("api_endpoint"))
    from launcher.backends.slurm.allocation import Interactive, this_start
    from launcher.backends.slurm.backend import SlurmBackend

    if not in_allocation():
        return SlurmBackend()
    start = this_start()
    return SlurmBackend(start, Interactive(start))


def world_size(record: Record, spec: JobSpec, plan: Plan) -> int:
    """That a run is created with: on the most nodes that it may have. Machines that are made for it are as planned."""
    return len(plan.ranks) if kind_of(record) == "tpu" else spec.resources.most_nodes * plan.tasks_per_node


def check_reach(record: Record, spec: JobSpec, run_dir: str) -> None:
    """Ask the run's target, and an object store, whether they would take it, before there is anything of the run.

    Raises:
        LauncherError: the target would not: who may what, and what there is.
        OSError: nor would the store.
    """
    if kind_of(record) == "tpu":
        from launcher.backends.tpu.backend import TpuBackend

        TpuBackend((record.site or {}).get("api_endpoint")).check(spec)
    elif kind_of(record) == "slurm" and not in_allocation():
        from launcher.backends.slurm.submission import check_here

        check_here()
    if not is_local(run_dir):
        try_out(storage_at(run_dir))


def in_allocation() -> bool:
    """Whether this shell stands in a job of Slurm, such as that of `salloc`."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_JOB_NODELIST" in os.environ


def carry_on(found: Run, spec: JobSpec, args: argparse.Namespace, terminal: Terminal) -> int:
    if kind_of(found.now) == "slurm" and not in_allocation():
        return _submit(found, spec, args, terminal)
    if args.detach:
        detach(found, terminal)
        return answer(found, args, FINISHED)
    return _foreground(found, spec, args, terminal)


def _submit(found: Run, spec: JobSpec, args: argparse.Namespace, terminal: Terminal) -> int:
    from launcher.backends.slurm.submission import submit

    try:
        job = submit(found, spec)
    except LauncherError as refused:
        state = found.ledger.refresh()
        found.ledger.append(RunEnded(state="failed", reason=f"not submitted: {refused}"), after=state.version)
        raise LauncherError(
            f"{refused}\n{found.id} was not submitted; try again with: launcher resume {found.id}"
        ) from None
    terminal.line(f"  submitted as job {job}; follow it with: launcher logs -f {found.id}")
    return answer(found, args, FINISHED)


def check_no_job(found: Run, state: RunState) -> None:
    """Raises LauncherError when a job of the run waits or runs: it would be driven twice."""
    job = state.submission.job if state.submission and not state.ended else None
    if job:
        from launcher.backends.slurm import commands

        if commands.lives(job):
            raise LauncherError(
                f"{found.id}: job {job} waits or runs for it; `launcher logs -f {found.id}` follows it, and "
                f"`launcher cancel {found.id}` ends that"
            )


def drive(run_dir: str) -> int:
    """What a detached process does: the same loop, without a terminal."""
    found = Run(storage_at(run_dir))
    _let_backends_speak()
    supervisor = Supervisor(found, JobSpec.model_validate(found.now.spec), backend_of(found.now))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    return _exit_code(supervisor.drive(), supervisor)


def _let_backends_speak() -> None:
    """To stderr: what they wait for, and what they do about it."""
    speaking = logging.getLogger("launcher.backends")
    if not speaking.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        speaking.addHandler(handler)
        speaking.setLevel(logging.INFO)
        speaking.propagate = False


def _foreground(found: Run, spec: JobSpec, args: argparse.Namespace, terminal: Terminal) -> int:
    _let_backends_speak()
    supervisor = Supervisor(found, spec, backend_of(found.now))
    follower = Follower(found, terminal)
    previous = on_signals(supervisor)
    try:
        ended = supervisor.drive(follower.tick)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert ended
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


def _exit_code(ended: RunEnded | None, supervisor: Supervisor) -> int:
    assert ended, "only a scheduler's job hands a run on"
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


def who() -> str:
    return f"pid {os.getpid()} on {os.uname().nodename}"
