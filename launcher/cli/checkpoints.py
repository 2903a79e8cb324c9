"""checkpoints: list, verify, export, prune, diff."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import cleanup, shell
from launcher.checkpoints import FOLDER, BadCheckpoint, Manifest, in_order, newest_whole, read_manifest, verify
from launcher.cli.common import print_json, run_and_step, wanted_run
from launcher.cli.terminal import Terminal, ago
from launcher.errors import FAILED, FINISHED, LauncherError, UsageError
from launcher.events import CheckpointSaved
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.status import absolute
from launcher.storage import Storage

# list


def list_checkpoints(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    times = {one.event.path: one.time for one in run.ledger.records() if isinstance(one.event, CheckpointSaved)}
    found: list[dict[str, Any]] = [
        {
            "step": saved.step,
            "epoch": saved.epoch,
            "attempt": saved.attempt,
            "world_size": seen.world_size if isinstance(seen, Manifest) else None,
            "precision": seen.precision if isinstance(seen, Manifest) else None,
            "bytes": saved.bytes,
            "saved": times[saved.path],
            "complete": saved.complete,
            "monitored": seen.monitored if isinstance(seen, Manifest) else None,
            "problem": seen if isinstance(seen, str) else "",
            "path": absolute(run, saved.path),
        }
        for saved, seen in looked_at(run, read_manifest)
    ]
    best = best_of(found)
    found = [{**one, "best": one is best} for one in found]
    if args.json:
        print_json(found)
        return 0
    if not found:
        Terminal().line(f"{run.id} has no checkpoints")
        return 0
    head = ["STEP", "EPOCH", "ATTEMPT", "RANKS", "PRECISION", "BYTES", "SAVED", "STATE", "PATH"]
    rows = [_row(one) for one in found]
    if any(one["monitored"] for one in found):
        head.insert(-2, "METRIC")
        for one, row in zip(found, rows, strict=True):
            row.insert(-2, _metric(one["monitored"]))
    Terminal().table(head, rows)
    return 0


def _row(one: Mapping[str, Any]) -> list[str]:
    marks = [mark for mark in ("complete", "best") if one[mark]]
    return [
        str(one["step"]),
        str(one["epoch"]),
        str(one["attempt"]),
        str(one["world_size"] or "?"),
        one["precision"] or "?",
        f"{one['bytes']:,}",
        ago(one["saved"]),
        one["problem"] or ", ".join(marks) or "-",
        one["path"],
    ]


def _metric(monitored: Mapping[str, Any] | None) -> str:
    if monitored is None:
        return "-"
    value = monitored["value"]
    return f"{monitored['name']} {'nan' if value is None else format(value, '.4g')}"


def best_of(found: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The checkpoint with the best value of the metric that the last of them has; of equal ones the first."""
    judged = [one for one in found if one["monitored"] and one["monitored"]["value"] is not None]
    if not judged:
        return None
    name, mode = judged[-1]["monitored"]["name"], judged[-1]["monitored"]["mode"]
    alike = [one for one in judged if one["monitored"]["name"] == name]
    return (min if mode == "min" else max)(alike, key=lambda one: one["monitored"]["value"])


# verify


def verify_checkpoints(args: argparse.Namespace) -> int:
    run, step = run_and_step(args, args.checkpoint)
    there = [saved.step for saved in in_order(run.ledger.refresh())]
    if step is not None and step not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise UsageError(f"{run.id} has no checkpoint of step {step}; there are: {steps}")
    terminal = Terminal()
    found = []
    for saved, seen in looked_at(run, verify, step):
        problem = seen if isinstance(seen, str) else ""
        found.append(
            {
                "step": saved.step,
                "attempt": saved.attempt,
                "bytes": saved.bytes,
                "verified": not problem,
                "problem": problem,
                "path": absolute(run, saved.path),
            }
        )
        if not args.json:  # at once: to read the next one may take minutes
            told = terminal.colour(f"bad: {problem}", "red") if problem else "verified"
            terminal.line(f"step {saved.step:<8}  {told}  {absolute(run, saved.path)}")
    bad = sum(not one["verified"] for one in found)
    if args.json:
        print_json(found)
    elif not found:
        terminal.line(f"{run.id} has no checkpoints")
    elif bad:
        terminal.line(f"{bad} of {len(found)} bad; an attempt sets them aside and begins with the newest that is whole")
    return FAILED if bad else FINISHED


def looked_at(
    run: Run, look: Callable[[Storage, str], Manifest], step: int | None = None
) -> Iterator[tuple[CheckpointSaved, Manifest | str]]:
    """The checkpoints that count, oldest first, each with its manifest or with what is wrong with it."""
    for saved in in_order(run.ledger.refresh()):
        if step is None or saved.step == step:
            try:
                yield saved, look(run.storage, saved.path)
            except BadCheckpoint as problem:
                if saved in run.ledger.refresh().checkpoints:  # else the run has deleted it in the meantime
                    yield saved, str(problem)


# export and diff


def export(args: argparse.Namespace) -> int:
    target = Path(args.output).absolute()
    if target.is_dir():
        raise UsageError(f"-o {args.output}: this is a directory")
    if target.exists() and not args.force:
        raise UsageError(f"-o {args.output}: exists already; --force overwrites it")
    run, saved = _whole(args, args.checkpoint)
    made = _on_node_side({"source": [run.storage.root, saved.path], "to": str(target)})
    terminal = Terminal()
    terminal.line(f"{args.output}: {made['tensors']} tensors of {run.id}, step {saved.step}; {made['bytes']:,} bytes")
    terminal.line(f"  begin with them by: launcher run SPEC --set model.weights={shlex.quote(args.output)}")
    return 0


def diff(args: argparse.Namespace) -> int:
    found = _on_node_side({"a": _place(args, args.a), "b": _place(args, args.b)})
    if args.json:
        print_json(found)
    else:
        _print_diff(Terminal(), found)
    return FINISHED if found["same"] else FAILED


def _place(args: argparse.Namespace, wanted: str) -> list[str]:
    """A storage's root and a path in it. A file comes before a run of the same name.

    Raises:
        UsageError: it is neither.
    """
    file = Path(wanted).absolute()
    if file.is_file():
        return [str(file.parent), file.name]
    try:
        run, saved = _whole(args, wanted)
    except UsageError as error:
        raise UsageError(f"{wanted} is no file; as RUN[@STEP]: {error}") from None
    return [run.storage.root, saved.path]


def _whole(args: argparse.Namespace, wanted: str) -> tuple[Run, CheckpointSaved]:
    """The checkpoint that `RUN[@STEP]` names, verified; without a step, the newest that is whole."""
    run, step = run_and_step(args, wanted)
    newest = in_order(run.ledger.refresh())[-1:]
    saved, _ = newest_whole(run, step)
    if step is None and (newest[0].step, newest[0].attempt) > (saved.step, saved.attempt):
        print(f"{run.id}: step {newest[0].step} is not whole; taking step {saved.step}", file=sys.stderr)
    return run, saved


def _print_diff(terminal: Terminal, found: Mapping[str, Any]) -> None:
    for side in ("a", "b"):
        one = found[side]
        at = "weights alone" if one["step"] is None else f"step {one['step']}, epoch {one['epoch']}"
        terminal.line(f"{side.upper()}           {at}  {one['path']}")
    differences = found["differences"]
    if found["same"]:
        terminal.line(f"weights     the same to the bit: {found['tensors']} tensors")
    else:
        terminal.line(f"weights     {found['differing']} of {found['tensors']} tensors differ")
        terminal.line(f"first       {_told(differences[0])}")
    if finite := [one for one in differences if one["largest"] is not None]:
        largest = max(finite, key=lambda one: one["largest"])
        terminal.line(f"largest     {largest['largest']:.6g} in {largest['name']}")
    if found["optimizers_same"] is not None:
        terminal.line(f"optimizers  {'the same to the bit' if found['optimizers_same'] else 'differ'}")


def _told(one: Mapping[str, Any]) -> str:
    """One difference in words."""
    if one["a"] is None or one["b"] is None:
        return f"{one['name']}: only in {'A' if one['b'] is None else 'B'}"
    if one["index"] is None:
        return f"{one['name']}: {one['a']} in A, {one['b']} in B"
    largest = "not finite" if one["largest"] is None else format(one["largest"], ".6g")
    return f"{one['name']}{one['index']}: {one['a']} in A, {one['b']} in B; largest difference in it: {largest}"


def _on_node_side(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a process that may import torch.

    Raises:
        UsageError: a file is at fault.
        LauncherError: the process died.
    """
    argv = [sys.executable, "-P", "-m", "launcher.node.checkpoint_tool"]  # -P: nothing from the current folder
    code, output = shell.run(argv, env=os.environ, given=json.dumps(request))
    if code == UsageError.exit_code:
        raise UsageError(output.strip())
    if code != 0:
        raise LauncherError(f"reading the weights failed (exit {code}; -9: out of memory):\n{output.strip()}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


# prune


def prune(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    rules = JobSpec.model_validate(run.now.spec).checkpoint
    if args.keep_last is not None:
        rules = rules.model_copy(update={"keep_last": args.keep_last})
    found = cleanup.plan(run, rules)
    if not args.dry_run:
        cleanup.delete(run, found, rules)
    bad = run.storage.size(f"{FOLDER}/bad")
    freed = sum(one.bytes for one in found.removals)
    if args.json:
        print_json(
            {
                "run": run.id,
                "dry_run": args.dry_run,
                "deleted": [{**asdict(one), "path": absolute(run, one.path)} for one in found.removals],
                "freed": freed,
                "kept": [one.step for one in found.kept],
                "bad": bad,
            }
        )
        return 0
    terminal = Terminal()
    if found.removals:
        rows = [
            (str(one.step), f"{one.bytes:,}", "litter" if one.litter else "surplus", absolute(run, one.path))
            for one in found.removals
        ]
        terminal.table(("STEP", "BYTES", "WHY", "PATH"), rows)
    steps = ", ".join(str(one.step) for one in found.kept) or "none"
    terminal.line(f"{'would free' if args.dry_run else 'freed'} {freed:,} bytes; steps that are kept: {steps}")
    if bad:
        terminal.line(f"set aside as bad, and not touched: {bad:,} bytes in {absolute(run, FOLDER)}/bad")
    return 0
