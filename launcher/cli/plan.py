"""plan: exactly what `run` would execute."""

import argparse
import shlex
from pathlib import Path

from launcher.backends.local import LocalBackend
from launcher.cli.common import print_json, runs_root
from launcher.cli.run import new_record
from launcher.cli.terminal import Terminal
from launcher.spec import load_spec


def plan(args: argparse.Namespace) -> int:
    spec = load_spec(Path(args.spec), args.overrides)
    record = new_record(spec, Path(args.spec), args.overrides, f"{spec.name}-ID")
    planned = LocalBackend().plan(str(runs_root(args).absolute() / record.id), record, spec, 1)
    if args.json:
        print_json({"spec": record.spec, "plan": planned.as_json()})
        return 0
    terminal = Terminal()
    precision = spec.trainer.precision or "32-true"
    terminal.line(f"{spec.name} on {planned.target}: {len(planned.ranks)} rank(s), {planned.accelerator}, {precision}")
    terminal.line(f"  directory   {planned.run_dir}")
    terminal.line(f"  workdir     {planned.workdir}")
    terminal.line(f"  checkpoint  {spec.checkpoint.model_dump(exclude_none=True)}")
    terminal.line(f"  retry       {spec.retry.model_dump()}")
    for rank in planned.ranks:
        terminal.line()
        terminal.line(terminal.colour(f"# rank {rank.rank} (node {rank.node}, local rank {rank.local_rank})", "dim"))
        env = " ".join(f"{name}={shlex.quote(value)}" for name, value in rank.env.items())
        terminal.line(f"env {env} {shlex.join(planned.argv)} >> {shlex.quote(f'{planned.run_dir}/{rank.log}')}")
    return 0
