"""resume: carry a run on, as it is or with changes."""

import argparse
from dataclasses import asdict, replace

from launcher.cli import sweep
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
    terminal_of,
    who,
)
from launcher.cli.run import staged_code
from launcher.errors import FINISHED, LauncherError, LedgerConflict, UsageError
from launcher.exactness import consequences
from launcher.ledger import ResumeRequested, RunState
from launcher.run import Run
from launcher.spec import JobSpec, parse_spec
from launcher.status import living_driver
from launcher.sweep import Sweep
from launcher.target import Target, placed


def resume(args: argparse.Namespace) -> int:
    found, terminal = wanted(args), terminal_of(args)
    if isinstance(found, Sweep):
        return sweep.resume(found, args)
    if args.failed:
        raise UsageError(f"{found.id} is no sweep, whose failed runs --failed starts again; leave it out")
    state = found.ledger.refresh()
    if found.finished and not args.overrides:
        terminal.line(f"{found.id} is finished already; `launcher resume {found.id} --set KEY=VALUE` changes it")
        return answer(found, args, FINISHED)
    if driver := living_driver(found, state):
        raise LauncherError(
            f"{found.id}: process {driver.pid} on {driver.host} drives this run; "
            f"`launcher logs -f {found.id}` follows it"
        )
    check_no_job(found, state)
    if kind_of(found.record) == "tpu" and state.open_attempt and not state.ended:
        return _take_over(found, state, args)
    spec = JobSpec.model_validate(found.now.spec)
    event = ResumeRequested(by=who())
    if args.overrides:
        spec = _changed(found, state, args.overrides)
        resolved = spec.model_dump(mode="json", exclude_unset=True)
        for sentence in consequences(found.now.spec, resolved):
            terminal.line(f"change: {sentence}")
        event = replace(event, overrides=tuple(args.overrides), spec=resolved)
    plan = backend_of(found.record).plan(found.storage.root, found.now, spec, len(state.attempts) + 1)
    check_reach(found.record, spec, found.storage.root)
    if args.code:
        with staged_code(spec, found.record, found.storage.root) as staged:
            if not args.no_check:
                check_spec(spec, plan, staged)
            if staged:
                staged.publish()
                event = replace(event, code=asdict(staged.code))
                terminal.line("change: code: from here on as it is now")
    elif args.overrides and not args.no_check and kind_of(found.record) != "tpu":  # whose code is not on this machine
        check_spec(spec, plan)
    try:
        found.ledger.append(event, after=state.version)
    except LedgerConflict:
        raise LauncherError(f"{found.id}: somebody else acts on this run just now; look again") from None
    return carry_on(found, spec, args, terminal)


def _take_over(found: Run, state: RunState, args: argparse.Namespace) -> int:
    """Its driver is gone, and its ranks train on: that is no new beginning."""
    if args.overrides or args.code:
        raise LauncherError(
            f"{found.id}: attempt {len(state.attempts)} may still run on its machines, and goes on as it began; end it "
            f"before it is changed: launcher cancel --checkpoint {found.id}"
        )
    return carry_on(found, JobSpec.model_validate(found.now.spec), args, terminal_of(args))


def _changed(found: Run, state: RunState, overrides: list[str]) -> JobSpec:
    """The spec as it was written, with all that was changed since, and now."""
    every = [*found.record.overrides, *state.overrides, *overrides]
    spec = parse_spec(found.record.spec_text, source=found.record.spec_file, overrides=every)
    if not found.record.site:
        return spec
    target = Target.model_validate(found.record.site)
    spec = placed(spec, target)
    check_fits(spec, target)
    return spec
