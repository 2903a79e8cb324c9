"""plan: exactly what `run` would execute."""

import argparse
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.address import below, here, is_local
from launcher.cadence import FIRST_S, SHARE
from launcher.checkpoints import rules_in_words
from launcher.cli.common import print_json, runs_root
from launcher.cli.place import backend_of, kind_of, spec_and_target, world_size
from launcher.cli.run import code_sources, new_record
from launcher.cli.terminal import Terminal, clock
from launcher.elastic import allowed_nodes, allowed_sizes
from launcher.errors import LauncherError
from launcher.exactness import guarantee
from launcher.record import Record
from launcher.snapshot import describe, digest_of
from launcher.spec import Checkpoint, JobSpec, runs_of
from launcher.target import trainer_of
from launcher.tree import Source, in_words


def plan(args: argparse.Namespace) -> int:
    given, target = spec_and_target(args)
    runs = runs_of(given)
    spec = runs[0]
    record = new_record(spec, Path(args.spec), args.overrides, f"{spec.name}-ID", args.on, target)
    run_dir = below(runs_root(args), record.id)
    sources = code_sources(spec, record, run_dir)
    if sources:
        digest = digest_of(sources)
        record = replace(record, code=describe(sources, digest, record.import_path, record.workdir, diff=False))
    planned = backend_of(record).plan(run_dir, record, spec, 1)
    kind = kind_of(record)
    batch = _script(record, runs, run_dir) if kind == "slurm" else None
    machines = _machines(record, spec, run_dir) if kind == "tpu" else None
    if args.json:
        body = {"spec": record.spec, "plan": planned.as_json(), "code": [_as_json(one) for one in sources]}
        print_json({**body, "script": batch, "starts": _starts(batch) if batch else None, "machines": machines})
        return 0
    terminal = Terminal()
    precision = spec.trainer.precision or "32-true"
    terminal.line(f"{spec.name} on {planned.target}: {len(planned.ranks)} rank(s), {planned.accelerator}, {precision}")
    if own := trainer_of(target, args.overrides):
        said = ", ".join(f"trainer.{key}: {value}" for key, value in own.items())
        terminal.line(f"  of {args.on:<9}{said}, whatever the spec says")
    if len(runs) > 1:
        terminal.line(f"  sweep       {len(runs)} runs; what follows is of the first")
    resources, tasks = spec.resources, planned.tasks_per_node
    if resources.least_nodes < resources.most_nodes and kind != "tpu":
        usable = ", ".join(map(str, allowed_nodes(spec, None, tasks)))
        terminal.line(f"  nodes       {resources.least_nodes} to {resources.most_nodes} nodes; on {usable}")
    ranks, deterministic = world_size(record, spec, planned), bool(spec.trainer.deterministic)
    terminal.line(f"  resumed     {guarantee(planned.device, ranks, deterministic=deterministic, exact=spec.exact)}")
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
    if batch is not None:
        from launcher.backends.slurm.script import lead_of

        terminal.line(f"  stops       {lead_of(spec):.0f} s before the end of an allocation, and at a preemption")
        terminal.line(f"  starts      {_starts(batch)}")
        terminal.line()
        terminal.line(terminal.colour("# sbatch", "dim"))
        terminal.line(batch.rstrip())
        terminal.line()
        terminal.line(terminal.colour("# the ranks of an attempt, in the job", "dim"))
        terminal.line(f"env {_env(planned.env)} {shlex.join((*planned.launch, *planned.argv))}")
        return 0
    if machines is not None:
        terminal.line()
        terminal.line(terminal.colour("# what Cloud TPU is asked for, in the first zone", "dim"))
        terminal.line(json.dumps(machines, indent=1))
    for rank in planned.ranks:
        terminal.line()
        terminal.line(terminal.colour(f"# rank {rank.rank} (node {rank.node}, local rank {rank.local_rank})", "dim"))
        log = shlex.quote(
            str(here(planned.run_dir) / rank.log) if kind == "local" else below(planned.run_dir, rank.log)
        )
        terminal.line(f"env {_env({**planned.env, **rank.env})} {shlex.join(planned.argv)} >> {log}")
    return 0


def _env(env: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())


def _starts(batch: str) -> str:
    """Slurm's own estimate, in words."""
    from launcher.backends.slurm import commands

    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(batch)
        file.flush()
        try:
            at = commands.start_estimate([file.name])
        except LauncherError as error:
            return f"unknown: {error}"
    return f"about {clock(at)}, as Slurm estimates now" if at else "unknown: Slurm gives no estimate"


def _script(record: Record, runs: Sequence[JobSpec], run_dir: str) -> str:
    """That of the first job; of a sweep, of the first array."""
    from launcher.backends.slurm.arrays import Due, Element, together
    from launcher.backends.slurm.submission import script_text
    from launcher.cli.arrays import longest

    due = (Due(Element(index, 1), one.model_dump(mode="json", exclude_unset=True)) for index, one in enumerate(runs))
    return script_text(record, runs[0], run_dir, array=len(together(due, longest(record))[0]))


def _machines(record: Record, spec: JobSpec, run_dir: str) -> dict[str, Any]:
    from launcher.backends.tpu.claims import first_request

    assert spec.tpu, "the plan has seen to that"
    return first_request(record.id, run_dir, spec.tpu)


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
