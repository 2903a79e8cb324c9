"""Read-only views over the ledger: list, status, events."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from launcher.address import storage_at
from launcher.cli.common import damage_named, print_json, runs_root, wanted, wanted_run
from launcher.cli.scheduler import Hint, Scheduler, in_words
from launcher.cli.terminal import Terminal, ago, bar, clock, metric_text, metrics_text, short, value_text, values_text
from launcher.errors import LauncherError
from launcher.record import RECORD, SWEEP
from launcher.run import Run
from launcher.runs import Entry, entries
from launcher.status import brief
from launcher.status import status as status_of
from launcher.sweep import Sweep, summary, sweep_brief


def list_runs(args: argparse.Namespace) -> int:
    root = runs_root(args)
    scheduler = Scheduler()
    runs = [_brief(one, scheduler) for one in entries(root)]
    said = _hints(runs, scheduler)
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
            "-" if one["step"] is None else str(one["step"]),
            str(one["attempts"]),
            ago(one["created"]),
            _reason(one),
        )
        for one in runs
    ]
    terminal.table(("RUN", "STATE", "TARGET", "STEP", "ATTEMPTS", "CREATED", "REASON"), rows)
    return 0


def _reason(line: dict[str, Any]) -> str:
    hint = in_words(line["job"], line["scheduler"]) if line["scheduler"] else ""
    # Why and how long a job waits, the scheduler knows better.
    return hint or line["reason"] if line["state"] == "queued" else line["reason"] or hint


def _hints(shown: Iterable[dict[str, Any]], scheduler: Scheduler) -> dict[str, Hint]:
    """What it says of the jobs that runs wait for, or run in."""
    return scheduler.hints(
        {one["job"] for one in shown if one["job"] and one["state"] in ("queued", "running", "unknown")}
    )


def _brief(one: Entry, scheduler: Scheduler) -> dict[str, Any]:
    """One line of the list; a run that cannot be read must not hide the others."""
    storage = storage_at(one.address)
    try:
        with damage_named(one.address):
            if one.is_sweep:
                sweep = Sweep(storage)
                return sweep_brief(sweep, scheduler.waiting(sweep))
            return brief(Run(storage))
    except LauncherError as error:
        created = storage.modified(SWEEP if one.is_sweep else RECORD)
        line = {"run": one.id, "name": one.id, "target": "", "created": created}
        return {**line, "state": "unknown", "reason": str(error), "step": 0, "epoch": 0, "attempts": 0, "job": None}


def status(args: argparse.Namespace) -> int:
    found = wanted(args)
    scheduler = Scheduler()
    if isinstance(found, Sweep):
        shown = summary(found, scheduler.waiting(found))
        hints = _hints(shown["cells"], scheduler)
        shown["cells"] = [{**one, "scheduler": hints.get(one["job"])} for one in shown["cells"]]
        print_json(shown) if args.json else show_sweep(shown, Terminal())
        return 0
    shown = status_of(found)
    hint = _hints([shown], scheduler).get(shown["job"])
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
        terminal.table(
            ("ATTEMPT", "TARGET", "STEPS", "STARTED", "ENDED", "CAUSE"), [_row(one) for one in shown["attempts"]]
        )
    return 0


def show_sweep(shown: dict[str, Any], terminal: Terminal) -> None:
    """A table of its runs, and the best."""
    terminal.line(f"{terminal.colour(shown['run'], 'bold')}  {terminal.state(shown['state'])}: {shown['reason']}")
    terminal.line(f"  target      {shown['target']}")
    if best := shown["best"]:
        value = metrics_text({shown["metric"]: best["value"]})
        terminal.line(f"  best        {best['run']}  {value}  {values_text(best['values'])}")
    terminal.line(f"  directory   {shown['run_dir']}")
    if shown["state"] in ("stopped", "cancelled", "queued"):
        terminal.line(f"  carry on    launcher resume {shown['run']}")
    if shown["counts"].get("failed"):
        terminal.line(f"  try again   launcher resume {shown['run']} --failed")
    terminal.line()
    keys = list(dict.fromkeys(key for one in shown["cells"] for key in one["values"]))
    metric = [shown["metric"]] if shown["metric"] else []
    head = ("RUN", "STATE", "STEP", *(short(keys)[key] for key in keys), *metric, "REASON")
    rows = [
        (
            one["run"],
            one["state"],
            str(one["step"]),
            *(value_text(one["values"][key]) if key in one["values"] else "-" for key in keys),
            *(metric_text(one["metrics"].get(name)) for name in metric),
            _reason(one),
        )
        for one in shown["cells"]
    ]
    terminal.table(head, rows)


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
        attempt["target"],
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
        values = "  ".join(
            f"{name}={value}" for name, value in asdict(one.event).items() if name not in ("handle", "site")
        )
        terminal.line(f"{one.number:5d}  {clock(one.time)}  {type(one.event).__name__:18s}  {values}")
    return 0
