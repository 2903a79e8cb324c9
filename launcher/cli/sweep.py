"""Sweeps: their beginning, and their end by the user's word. What drives them is in local_sweep.py and arrays.py."""

import argparse
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from launcher.address import below, storage_at
from launcher.cli.cancel import cancel_run
from launcher.cli.check import check_spec
from launcher.cli.common import print_json, runs_root
from launcher.cli.local_sweep import Runner, planned
from launcher.cli.place import detach, in_allocation, kind_of, on_signals, terminal_of, who
from launcher.cli.run import staged_code
from launcher.cli.scheduler import Scheduler
from launcher.cli.terminal import Terminal, discard, metrics_text, values_text
from launcher.driver import is_alive
from launcher.errors import FAILED, FINISHED, INTERRUPTED, RESUMABLE, LauncherError, LedgerConflict, UsageError
from launcher.events import CancelRequested, ResumeRequested
from launcher.record import Record, check_id
from launcher.runs import entries
from launcher.spec import JobSpec
from launcher.spec_sweep import cells
from launcher.sweep import Sweep, create_sweep, lines, summary

_LEFT = {"queued", "running", "stopped", "unknown"}


def run(spec: JobSpec, record: Record, args: argparse.Namespace) -> int:
    """`launcher run` of a spec with a sweep; of a name that is there already, what is missing."""
    if args.source is not None:
        raise UsageError("--from begins a single run; for all runs of a sweep, set model.weights")
    if kind_of(record) == "tpu":
        raise UsageError(f"--on {record.target}: sweeps do not run on Cloud TPU yet; start their runs one by one")
    _check_place(record)
    check_id(record.id)
    root = runs_root(args)
    for entry in entries(root):
        if entry.id == record.id:
            if not entry.is_sweep:
                raise UsageError(f"a run named '{record.id}' exists already: {entry.address}")
            return _again(_same(Sweep(storage_at(entry.address)), record), args)
    assert spec.sweep
    address, found = below(root, record.id), cells(spec.sweep)
    first, plan = (planned if record.site is None else _arrays().planned)(spec, record, address)
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
    _check_place(sweep.record)
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


def _check_place(record: Record) -> None:
    """Raises UsageError in an allocation of the user's own: it would be idle while the runs wait for others."""
    if kind_of(record) == "slurm" and in_allocation():
        job = os.environ["SLURM_JOB_ID"]
        raise UsageError(
            f"{record.id}: this shell stands in job {job} (salloc), which a single run would use, but those of a sweep "
            "are jobs of their own: leave it first (`exit`); to have them wait in the queue beside it: "
            "`env -u SLURM_JOB_ID launcher ...`"
        )


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
