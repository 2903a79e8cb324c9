"""Sweeps: their beginning, their course in this process, and their end by the user's word."""

import argparse
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

from launcher.address import below, storage_at
from launcher.backend import Plan
from launcher.backends.local import LocalBackend, Machine, this_host
from launcher.cli.cancel import cancel_run
from launcher.cli.check import check_spec
from launcher.cli.common import print_json, runs_root
from launcher.cli.place import detach, kind_of, on_signals, terminal_of, who
from launcher.cli.run import staged_code
from launcher.cli.scheduler import Scheduler
from launcher.cli.terminal import Terminal, bar, discard, metrics_text, values_text
from launcher.driver import RENEW_S, is_alive, renew_lease, this_process
from launcher.errors import FAILED, FINISHED, INTERRUPTED, RESUMABLE, LauncherError, LedgerConflict, UsageError
from launcher.events import CancelRequested, Driving, ResumeRequested
from launcher.layout import cell_id, progress_path
from launcher.overrides import vary
from launcher.record import Record, check_id
from launcher.run import Run
from launcher.runs import entries
from launcher.spec import JobSpec, runs_of
from launcher.spec_sweep import cells
from launcher.state import RunState
from launcher.status import status
from launcher.supervise import Supervisor
from launcher.sweep import Cell, Sweep, create_cell, create_sweep, lines, missing, summary

_BAR_S = 0.5
_LEFT = {"queued", "running", "stopped", "unknown"}


def run(spec: JobSpec, record: Record, args: argparse.Namespace) -> int:
    """`launcher run` of a spec with a sweep; of a name that is there already, what is missing."""
    if args.source is not None:
        raise UsageError("--from begins a single run; for all runs of a sweep, set model.weights")
    if kind_of(record) == "tpu":
        raise UsageError(f"--on {record.target}: sweeps do not run on Cloud TPU yet; start their runs one by one")
    check_id(record.id)
    root = runs_root(args)
    for entry in entries(root):
        if entry.id == record.id:
            if not entry.is_sweep:
                raise UsageError(f"a run named '{record.id}' exists already: {entry.address}")
            return _again(_same(Sweep(storage_at(entry.address)), record), args)
    assert spec.sweep
    address, found = below(root, record.id), cells(spec.sweep)
    first, plan = _planned(spec, record, address) if record.site is None else _arrays().planned(spec, record, address)
    with staged_code(spec, record, address) as staged:
        if not args.no_check:
            check_spec(first, plan, staged)
        if staged:
            record = replace(record, code=staged.code)
            staged.publish()  # before there is a sweep that would need it
    sweep, terminal = create_sweep(root, record, found), terminal_of(args)
    each = f"{len(plan.ranks)} rank(s) on {plan.accelerator}"
    at_once = f", {sweep.max_parallel} at a time" if record.site is None else ""
    terminal.line(f"sweep {terminal.colour(sweep.id, 'bold')}  {len(found)} runs{at_once}, {each}")
    terminal.line(f"  {sweep.storage.root}")
    return _carry_on(sweep, args, terminal)


def resume(sweep: Sweep, args: argparse.Namespace) -> int:
    """Carry on what has not come to its end; with --failed, what failed too."""
    if args.overrides or args.code:
        raise UsageError(
            f"{sweep.id}: the runs of a sweep are carried on as they are; --set and --code change one of them, "
            f"such as {sweep.id}.0, or begin a new sweep"
        )
    return _again(sweep, args, failed=args.failed)


def cancel(sweep: Sweep, args: argparse.Namespace) -> int:
    """End all that has not ended, and begin no more."""
    before = summary(sweep)
    if before["state"] not in _LEFT:
        raise UsageError(f"{sweep.id} has ended already: {before['reason']}")
    if sweep.record.site is None:
        _cancel_here(sweep, checkpoint=args.checkpoint)
    else:
        _arrays().cancel(sweep, checkpoint=args.checkpoint)
    shown = summary(sweep)
    if args.json:
        print_json(shown)
    else:
        print(f"{sweep.id} is cancelled ({shown['reason']}); `launcher resume {sweep.id}` would carry it on")
    return FINISHED


def _cancel_here(sweep: Sweep, *, checkpoint: bool) -> None:
    sweep.ledger.append_while(lambda state: None, CancelRequested(by=who(), checkpoint=checkpoint))
    for one in lines(sweep):
        try:
            if one["state"] in _LEFT and (begun := sweep.cell(one["index"])):
                cancel_run(begun, checkpoint=checkpoint)
        except LauncherError as error:  # a damaged one must not hold up the others
            print(f"launcher: {error}", file=sys.stderr)


def drive(address: str) -> int:
    """What a detached process does: the same, without a terminal."""
    sweep = Sweep(storage_at(address))
    runner = Runner(sweep, Terminal(unread=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    runner.drive()
    return _exit_code(summary(sweep), runner)


def begin(sweep: Sweep, cell: Cell, backend: LocalBackend) -> tuple[Run, JobSpec]:
    """The run of a cell, made if it is not there, such that it can be driven.

    Raises:
        UsageError: the machine does not have what it asks for.
        LedgerConflict: somebody else acts on it.
    """
    begun = sweep.cell(cell.index)
    if begun is None:
        spec = JobSpec.model_validate(vary(sweep.record.spec, cell.values))
        plan = backend.plan(sweep.storage.root, replace(sweep.record, ranks=None), spec, 1)
        begun = create_cell(sweep, cell, spec.model_dump(mode="json", exclude_unset=True), len(plan.ranks))
    state = begun.ledger.refresh()
    if state.attempts or state.ended:
        begun.ledger.append(ResumeRequested(by=who()), after=state.version)
    return begun, JobSpec.model_validate(begun.now.spec)


class _Active(NamedTuple):
    """A run that this process drives now."""

    run: Run
    cell: Cell
    supervisor: Supervisor
    backend: LocalBackend


class Runner:
    """Drives what is missing of a sweep in this process: some runs at a time, each on its share of the machine."""

    def __init__(
        self, sweep: Sweep, terminal: Terminal, backend_of: Callable[[Machine], LocalBackend] = LocalBackend
    ) -> None:
        self.killed = False
        self.errors = 0
        """Runs that could not be begun, or be driven to an end."""
        self._sweep, self._terminal, self._backend_of = sweep, terminal, backend_of
        self._shares = shares(this_host(), sweep.max_parallel)
        self._active: dict[int, _Active] = {}
        self._stopping = False
        self._renewed = self._drawn = 0.0
        self._done = 0

    def stop(self) -> None:
        """Save and leave, and begin no more. May be called from a signal handler."""
        self._stopping = True
        for one in [*self._active.values()]:
            one.supervisor.stop()

    def kill(self) -> None:
        """Leave at once, without saving. May be called from a signal handler."""
        self._stopping = self.killed = True
        for one in [*self._active.values()]:
            one.supervisor.kill()

    def drive(self) -> None:
        """Until all is done that can be, the user wants no more, or the sweep is cancelled."""
        self._sweep.ledger.append_while(lambda state: None, Driving(driver=this_process()))
        waiting = deque(missing(self._sweep))
        self._done = len(self._sweep.cells) - len(waiting)
        try:
            while True:
                self._renew_lease()
                if self._stopping or self._sweep.ledger.refresh().cancelling:
                    waiting.clear()
                for share in range(len(self._shares)):
                    while waiting and share not in self._active:
                        self._begin(waiting.popleft(), share)
                    if share in self._active:
                        self._look(share)
                if not self._active and not waiting:
                    return
                self._draw()
                time.sleep(self._sweep.storage.pause_s)
        finally:
            self._terminal.bottom("")
            for one in self._active.values():
                one.backend.close()

    def _begin(self, cell: Cell, share: int) -> None:
        backend = self._backend_of(self._shares[share])
        try:
            run, spec = begin(self._sweep, cell, backend)
            supervisor = Supervisor(run, spec, backend)
            supervisor.take_over()
        except (LauncherError, OSError) as error:
            self._failed(cell, error)
            return
        self._active[share] = _Active(run, cell, supervisor, backend)
        if self._stopping:  # asked for just now, when it was not among them
            supervisor.stop()

    def _look(self, share: int) -> None:
        one = self._active[share]
        try:
            state = one.supervisor.tick()
            if not state.ended:
                return
            self._say(one, state)
        except (LauncherError, OSError) as error:
            self._failed(one.cell, error)
        one.backend.close()
        del self._active[share]

    def _say(self, one: _Active, state: RunState) -> None:
        assert state.ended
        self._done += 1
        shown = status(one.run)
        because = f": {state.ended.reason}" if state.ended.reason else ""
        parts = (
            f"[{self._done}/{len(self._sweep.cells)}]",
            one.run.id,
            self._terminal.state(shown["state"]) + because,
            values_text(one.cell.values),
            metrics_text(shown["metrics"]),
        )
        self._terminal.line("  ".join(part for part in parts if part))

    def _failed(self, cell: Cell, error: Exception) -> None:
        self._done += 1
        self.errors += 1
        known = cell_id(self._sweep.id, cell.index)
        self._terminal.line(f"[{self._done}/{len(self._sweep.cells)}]  {known}  {error}")

    def _draw(self) -> None:
        if not self._terminal.interactive or time.monotonic() - self._drawn < _BAR_S:
            return
        self._drawn = time.monotonic()
        for one in self._active.values():
            attempts = one.run.ledger.refresh().attempts
            if attempts and (report := one.run.read_json(progress_path(attempts[-1].number))):
                others = f" and {len(self._active) - 1} more" if len(self._active) > 1 else ""
                self._terminal.bottom(f"{one.run.id}{others}  {bar(report)}")
                return

    def _renew_lease(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            renew_lease(self._sweep.storage, this_process())
            self._renewed = time.monotonic()


def shares(machine: Machine, parallel: int) -> list[Machine]:
    """The machine divided among so many runs at a time. Pure."""
    gpus = len(machine.gpus) // parallel
    return [
        Machine(cpus=max(1, machine.cpus // parallel), gpus=machine.gpus[share * gpus : (share + 1) * gpus])
        for share in range(parallel)
    ]


def _planned(spec: JobSpec, record: Record, address: str) -> tuple[JobSpec, Plan]:
    """The spec and the plan of the first run; the others are only held against this machine.

    Raises:
        UsageError: it does not have what some of them ask for; all of that.
    """
    assert spec.sweep
    machine, parallel = this_host(), spec.sweep.max_parallel
    if 0 < len(machine.gpus) < parallel and spec.resources.gpus_per_node != 0:
        raise UsageError(
            f"sweep.max_parallel: {parallel} runs at a time, but this machine has {len(machine.gpus)} GPU(s); "
            "lower it, or set resources.gpus_per_node to 0 for the CPU"
        )
    backend = LocalBackend(shares(machine, parallel)[0])
    specs = runs_of(spec)
    problems: dict[str, str] = {}
    plans = []
    for index, one in enumerate(specs):
        try:
            plans.append(backend.plan(address, record, one, 1))
        except UsageError as error:
            problems.setdefault(str(error), f"sweep: run {index}, {parallel} at a time: {error}")
    if problems:
        raise UsageError("\n".join(problems.values()))
    return specs[0], plans[0]


def _arrays() -> ModuleType:
    from launcher.cli import arrays  # of Slurm alone

    return arrays


def _same(sweep: Sweep, record: Record) -> Sweep:
    if (sweep.record.spec, sweep.record.target) != (record.spec, record.target):
        raise UsageError(
            f"a sweep named '{sweep.id}' exists already, of another spec or target: {sweep.storage.root}; "
            f"`launcher resume {sweep.id}` carries that one on, another --name begins a new one"
        )
    return sweep


def _again(sweep: Sweep, args: argparse.Namespace, *, failed: bool = False) -> int:
    if sweep.record.site is None:
        _ask_again(sweep, failed=failed)
    return _carry_on(sweep, args, terminal_of(args), failed=failed)


def _ask_again(sweep: Sweep, *, failed: bool) -> None:
    """Let runs be begun again, those that failed too if they are wanted.

    Raises:
        LauncherError: a living process drives the sweep.
    """
    state = sweep.ledger.refresh()
    if (driver := state.driver) and is_alive(driver, sweep.storage):
        raise LauncherError(
            f"{sweep.id}: process {driver.pid} on {driver.host} drives this sweep; "
            f"`launcher status {sweep.id}` shows it"
        )
    sweep.ledger.append_while(lambda state: None, ResumeRequested(by=who()))
    for one in lines(sweep) if failed else ():
        if one["state"] == "failed" and (begun := sweep.cell(one["index"])):
            with suppress(LedgerConflict):  # somebody else has it go on
                begun.ledger.append(ResumeRequested(by=who()), after=begun.ledger.refresh().version)


def _carry_on(sweep: Sweep, args: argparse.Namespace, terminal: Terminal, *, failed: bool = False) -> int:
    if sweep.record.site is not None:
        _arrays().submit_missing(sweep, terminal, failed=failed)
        terminal.line(f"  follow it with: launcher status {sweep.id}")
        return _answer(summary(sweep, Scheduler().waiting(sweep)), args, FINISHED) if args.json else FINISHED
    if args.detach:
        detach(sweep, terminal)
        return _answer(summary(sweep), args, FINISHED)
    runner = Runner(sweep, terminal)
    previous = on_signals(runner)
    try:
        runner.drive()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    shown = summary(sweep)
    terminal.line(f"{sweep.id} {terminal.state(shown['state'])}: {shown['reason']}")
    if best := shown["best"]:
        value = metrics_text({shown["metric"]: best["value"]})
        terminal.line(f"  best: {best['run']}  {value}  {values_text(best['values'])}")
    if shown["state"] in _LEFT:
        terminal.line(f"  carry it on with: launcher resume {sweep.id}")
    elif shown["counts"].get("failed"):
        terminal.line(f"  start what failed again with: launcher resume {sweep.id} --failed")
    return _answer(shown, args, _exit_code(shown, runner))


def _exit_code(shown: dict[str, Any], runner: Runner) -> int:
    if shown["state"] in _LEFT and not runner.errors:
        return INTERRUPTED if runner.killed else RESUMABLE
    return FINISHED if shown["state"] == "finished" else FAILED


def _answer(shown: dict[str, Any], args: argparse.Namespace, code: int) -> int:
    if args.json:
        try:
            print_json(shown)
        except OSError:  # nobody reads it; how the sweep ended is in the exit code all the same
            discard(sys.stdout)
    return code
