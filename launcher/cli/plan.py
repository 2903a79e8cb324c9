"""plan: exactly what `run` would execute."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.address import below, here, is_local
from launcher.backends.local import LocalBackend
from launcher.cadence import FIRST_S, SHARE
from launcher.checkpoints import rules_in_words
from launcher.cli.common import print_json, runs_root
from launcher.cli.run import code_sources, new_record
from launcher.cli.terminal import Terminal
from launcher.elastic import allowed_sizes
from launcher.exactness import guarantee
from launcher.snapshot import describe, digest_of
from launcher.spec import Checkpoint, load_spec, runs_of
from launcher.tree import Source, in_words


def plan(args: argparse.Namespace) -> int:
    runs = runs_of(load_spec(Path(args.spec), args.overrides))
    spec = runs[0]
    record = new_record(spec, Path(args.spec), args.overrides, f"{spec.name}-ID")
    run_dir = below(runs_root(args), record.id)
    sources = code_sources(spec, record, run_dir)
    if sources:
        digest = digest_of(sources)
        record = replace(record, code=describe(sources, digest, record.import_path, record.workdir, diff=False))
    planned = LocalBackend().plan(run_dir, record, spec, 1)
    if args.json:
        print_json({"spec": record.spec, "plan": planned.as_json(), "code": [_as_json(one) for one in sources]})
        return 0
    terminal = Terminal()
    precision = spec.trainer.precision or "32-true"
    terminal.line(f"{spec.name} on {planned.target}: {len(planned.ranks)} rank(s), {planned.accelerator}, {precision}")
    if len(runs) > 1:
        terminal.line(f"  sweep       {len(runs)} runs; what follows is of the first")
    ranks, deterministic = len(planned.ranks), bool(spec.trainer.deterministic)
    terminal.line(
        f"  resumed     {guarantee(planned.accelerator, ranks, deterministic=deterministic, exact=spec.exact)}"
    )
    terminal.line(f"  resumed on  {', '.join(map(str, allowed_sizes(spec, ranks)))} rank(s)")
    terminal.line(f"  directory   {planned.run_dir}")
    terminal.line(f"  workdir     {planned.workdir}")
    for source in sources:
        terminal.line(f"  code        {source.root}: {len(source.files)} files, {in_words(source.size)}")
    terminal.line(f"  saved       {_when(spec.checkpoint)}")
    terminal.line(f"  kept        {rules_in_words(spec.checkpoint)}")
    terminal.line(f"  retry       {spec.retry.model_dump()}")
    if planned.archive and not is_local(run_dir):
        terminal.line(f"  unpacks     {planned.archive}")
    for rank in planned.ranks:
        terminal.line()
        terminal.line(terminal.colour(f"# rank {rank.rank} (node {rank.node}, local rank {rank.local_rank})", "dim"))
        env = " ".join(f"{name}={shlex.quote(value)}" for name, value in rank.env.items())
        terminal.line(f"env {env} {shlex.join(planned.argv)} >> {shlex.quote(str(here(planned.run_dir) / rank.log))}")
    return 0


def _when(policy: Checkpoint) -> str:
    """When there is a save, in words."""
    words = [f"every {policy.every_n_steps} steps"] if policy.every_n_steps else []
    if policy.every == "auto":
        words.append(f"after {FIRST_S:.0f} s, then by what it costs: at most {SHARE:.1%} of the time")
    elif policy.every:
        words.append(f"every {policy.every}")
    return "; ".join([*words, "at each stop, and at the end"])


def _as_json(source: Source) -> dict[str, Any]:
    return {"root": str(source.root), "files": len(source.files), "bytes": source.size}
