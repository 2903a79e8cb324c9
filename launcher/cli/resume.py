"""resume: carry a run on, as it is or with changes, where it is or elsewhere."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from launcher.address import below
from launcher.cli import move, sweep
from launcher.cli.check import check_spec
from launcher.cli.common import wanted
from launcher.cli.place import (
    answer,
    backend_of,
    carry_on,
    check_fits,
    check_no_job,
    check_reach,
    kind_of,
    site_of,
    terminal_of,
    who,
)
from launcher.cli.run import staged_code
from launcher.errors import FINISHED, LauncherError, LedgerConflict, UsageError
from launcher.events import ResumeRequested
from launcher.exactness import consequences
from launcher.layout import code_archive, code_home, code_root
from launcher.record import Record
from launcher.run import Run
from launcher.snapshot import Staged, unpack
from launcher.spec import JobSpec, parse_spec
from launcher.state import RunState
from launcher.status import living_driver
from launcher.sweep import Sweep
from launcher.target import Target, load_target, placed


def resume(args: argparse.Namespace) -> int:
    found, terminal = wanted(args), terminal_of(args)
    moving = bool(args.on or args.to)
    if isinstance(found, Sweep):
        if moving:
            raise UsageError(f"{found.id} is a sweep, and stays on its target: leave out --on and --to")
        return sweep.resume(found, args)
    if args.failed:
        raise UsageError(f"{found.id} is no sweep, whose failed runs --failed starts again; leave it out")
    if moving:
        move.check_alone(found)
    found = move.followed(found)
    state = found.ledger.refresh()
    if found.finished and not args.overrides:
        terminal.line(f"{found.id} is finished already; `launcher resume {found.id} --set KEY=VALUE` changes it")
        return answer(found, args, FINISHED)
    if driver := living_driver(found, state):
        raise LauncherError(
            f"{found.id}: process {driver.pid} on {driver.host} drives this run; `launcher logs -f {found.id}` follows "
            f"it, and `launcher cancel --checkpoint {found.id}` ends that"
        )
    check_no_job(found, state)
    if kind_of(found.now) == "tpu" and state.open_attempt and not state.ended:
        return _take_over(found, state, args)
    record, spec, event = _intended(found, state, args)
    address = move.address_for(found, record, args.to) if moving else found.storage.root
    plan = backend_of(record).plan(address, record, spec, len(state.attempts) + 1)
    check_reach(record, spec, address)
    changes = move.differences(found, record, spec, plan) if moving else consequences(found.now.spec, record.spec)
    for sentence in changes:
        terminal.line(f"change: {sentence}")
    if args.code:
        with staged_code(spec, record, address) as staged:
            if not args.no_check:
                check_spec(spec, plan, staged)
            if staged:
                staged.publish()
                event = replace(event, code=asdict(staged.code))
                terminal.line("change: code: from here on as it is now")
    elif (args.overrides or args.on) and not args.no_check:
        check_spec(spec, plan, _unpacked(found))
    try:
        if moving:
            state = move.settled(found, state)
            found = move.brought(found, state, address, terminal)
        found.ledger.append(event, after=state.version)
    except LedgerConflict:
        raise LauncherError(f"{found.id}: somebody else acts on this run just now; look again") from None
    return carry_on(found, spec, args, terminal)


def _take_over(found: Run, state: RunState, args: argparse.Namespace) -> int:
    """Its driver is gone, and its ranks train on: that is no new beginning."""
    if args.overrides or args.code or args.on or args.to:
        raise LauncherError(
            f"{found.id}: attempt {len(state.attempts)} may still run on its machines, and goes on as it began; end it "
            f"before it is changed: launcher cancel --checkpoint {found.id}"
        )
    return carry_on(found, JobSpec.model_validate(found.now.spec), args, terminal_of(args))


def _intended(found: Run, state: RunState, args: argparse.Namespace) -> tuple[Record, JobSpec, ResumeRequested]:
    """Target and spec as they are to be from now on, and the event that says so."""
    record, event = found.now, ResumeRequested(by=who(), overrides=tuple(args.overrides))
    if not args.overrides and not args.on:
        return record, JobSpec.model_validate(record.spec), event
    # The record has none for this machine, whose own file may say something all the same.
    target = (
        Target.model_validate(record.site) if record.site and not args.on else load_target(args.on or record.target)
    )
    if args.on:
        record = replace(record, target=args.on, site=site_of(target))
        event = replace(event, target=record.target, site=record.site)
    # The spec as it was written, with all that was changed since, and now.
    every = [*record.overrides, *state.overrides, *args.overrides]
    spec = placed(parse_spec(record.spec_text, source=record.spec_file, overrides=every), target, every)
    check_fits(spec, target)
    resolved = spec.model_dump(mode="json", exclude_unset=True)
    return replace(record, spec=resolved), spec, replace(event, spec=resolved)


def _unpacked(found: Run) -> Staged | None:
    """The copy of its code on this machine, which need not be where it runs; None if it has none."""
    code, run_dir = found.now.code, found.storage.root
    if code is None:
        return None
    unpack(below(code_root(run_dir, code), code_archive(code)))
    return Staged(code, Path(code_home(run_dir, code)), publish=lambda: None)
