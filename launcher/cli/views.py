"""Read-only views over the ledger: list, status, events."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from launcher.address import storage_at
from launcher.cli.common import damage_named, print_json, runs_root, wanted_run
from launcher.cli.scheduler import Hint, hints, in_words
from launcher.cli.terminal import Terminal, ago, bar, clock, metrics_text
from launcher.errors import LauncherError
from launcher.run import open_run, run_ids
from launcher.status import brief
from launcher.status import status as status_of


def list_runs(args: argparse.Namespace) -> int:
    root = runs_root(args)
    runs = [_brief(root, run_id) for run_id in run_ids(root)]
    said = _hints(runs)
    runs = [{**one, "scheduler": said.get(one["job"])} for one in runs]
    if args.json:
        print_json(runs)
        return 0
    terminal = Terminal()
    if not runs:
        terminal.line(f"no runs under {root}")
        return 0
    rows = [
        (
            one["run"],
            one["state"],
            one["target"],
            str(one["step"]),
            str(one["attempts"]),
            ago(one["created"]),
            one["reason"] or (in_words(one["job"], one["scheduler"]) if one["scheduler"] else ""),
        )
        for one in runs
    ]
    terminal.table(("RUN", "STATE", "TARGET", "STEP", "ATTEMPTS", "CREATED", "REASON"), rows)
    return 0


def _hints(shown: Iterable[dict[str, Any]]) -> dict[str, Hint]:
    """What the scheduler says of the jobs that runs wait for, or run in."""
    return hints({one["job"] for one in shown if one["job"] and one["state"] in ("queued", "running", "unknown")})


def _brief(root: str, run_id: str) -> dict[str, Any]:
    """One line of the list; a run that cannot be read must not hide the others."""
    try:
        run = open_run(root, run_id)
        with damage_named(run.storage.root):
            return brief(run)
    except LauncherError as error:
        line = {"run": run_id, "name": run_id, "target": "", "created": storage_at(root).modified(f"{run_id}/run.json")}
        return {**line, "state": "unknown", "reason": str(error), "step": 0, "epoch": 0, "attempts": 0, "job": None}


def status(args: argparse.Namespace) -> int:
    shown = status_of(wanted_run(args))
    hint = _hints([shown]).get(shown["job"])
    if args.json:
        print_json({**shown, "scheduler": hint})
        return 0
    terminal = Terminal()
    state = terminal.state(shown["state"]) + (f": {shown['reason']}" if shown["reason"] else "")
    terminal.line(f"{terminal.colour(shown['run'], 'bold')}  {state}")
    if hint:
        terminal.line(f"  scheduler   {in_words(shown['job'], hint)}")
    terminal.line(f"  target      {shown['target']}")
    if shown["attempts"] and (idle := shown["attempts"][-1]["idle"]):
        terminal.line(f"  idle        {', '.join(idle)}; ranks are on {', '.join(shown['attempts'][-1]['hosts'])}")
    terminal.line(f"  progress    {bar({**shown, 'metrics': {}})}")
    if shown["precision"]:
        computes = f" (computes in {shown['compute']})" if shown["compute"] else ""
        terminal.line(f"  precision   {shown['precision']}{computes}")
    if shown["metrics"]:
        terminal.line(f"  metrics     {metrics_text(shown['metrics'])}")
    if shown["checkpoint"]:
        terminal.line(f"  checkpoint  step {shown['checkpoint']['step']}  {shown['checkpoint']['path']}")
    if saving := _saving(shown["saving"]):
        terminal.line(f"  saving      {saving}")
    if shown["code"]:
        terminal.line(f"  code        {_code(shown['code'])}")
    terminal.line(f"  directory   {shown['run_dir']}")
    if shown["state"] == "stopped" and "launcher resume" not in shown["reason"]:
        terminal.line(f"  carry on    launcher resume {shown['run']}")
    if shown["attempts"]:
        terminal.line()
        terminal.table(("ATTEMPT", "STEPS", "STARTED", "ENDED", "CAUSE"), [_row(one) for one in shown["attempts"]])
    return 0


def _saving(saving: dict[str, Any]) -> str:
    """How often by the clock, how long a stop takes, and what is wrong; empty where nothing is known."""
    parts = [f"every {saving['interval_s']:.0f} s"] if saving["interval_s"] else []
    parts += [f"a stop takes {saving['drain_s']:.1f} s"] if saving["drain_s"] is not None else []
    return "; ".join([*parts, *([saving["problem"]] if saving["problem"] else [])])


def _code(code: dict[str, Any]) -> str:
    commit = code["commit"][:10] if code["commit"] else "no commit"
    files = "file" if code["changed"] == 1 else "files"
    changes = f"+ {code['changed']} changed {files}" if code["dirty"] else "clean" if code["commit"] else ""
    return "  ".join(part for part in (f"{commit} {changes}".rstrip(), code["diff"]) if part)


def _row(attempt: dict[str, Any]) -> tuple[str, ...]:
    first, last = attempt["first_step"], attempt["last_step"]
    return (
        str(attempt["number"]),
        f"{'?' if first is None else first} - {'?' if last is None else last}",
        clock(attempt["started"]),
        clock(attempt["ended"]) if attempt["ended"] else "-",
        " ".join(part for part in (attempt["cause"], attempt["reason"] and f"({attempt['reason']})") if part) or "-",
    )


def events(args: argparse.Namespace) -> int:
    records = wanted_run(args).ledger.records()
    if args.json:
        print_json(
            [
                {"number": one.number, "time": one.time, "kind": type(one.event).__name__, **asdict(one.event)}
                for one in records
            ]
        )
        return 0
    terminal = Terminal()
    for one in records:
        values = "  ".join(f"{name}={value}" for name, value in asdict(one.event).items() if name != "handle")
        terminal.line(f"{one.number:5d}  {clock(one.time)}  {type(one.event).__name__:18s}  {values}")
    return 0
