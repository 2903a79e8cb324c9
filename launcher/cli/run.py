"""run: a run's beginning."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launcher import snapshot, tree
from launcher.address import below
from launcher.checkpoints import Manifest, adopt, newest_whole
from launcher.cli.check import check_spec
from launcher.cli.common import run_and_step, runs_root
from launcher.cli.place import backend_of, carry_on, check_reach, site_of, spec_and_target, terminal_of, world_size
from launcher.errors import UsageError
from launcher.events import CheckpointSaved
from launcher.record import Record, check_id, new_id
from launcher.run import Run, create_run
from launcher.runs import run_ids
from launcher.spec import JobSpec
from launcher.target import Target


def run(args: argparse.Namespace) -> int:
    spec_file = Path(args.spec)
    spec, target = spec_and_target(args)
    record = new_record(spec, spec_file, args.overrides, args.name, args.on, target)
    if spec.sweep:
        from launcher.cli import sweep  # which builds on this module

        return sweep.run(spec, record, args)
    check_id(record.id)  # create_run would say this and the next too, but after the check
    run_dir = below(runs_root(args), record.id)
    if record.id in run_ids(runs_root(args)):
        raise UsageError(f"a run named '{record.id}' exists already: {run_dir}")
    source = _source(args)
    plan = backend_of(record).plan(run_dir, record, spec, 1)
    record = replace(record, ranks=world_size(record, spec, plan))
    check_reach(record, spec, run_dir)
    terminal = terminal_of(args)
    with staged_code(spec, record, run_dir) as staged:
        if not args.no_check:
            check_spec(spec, plan, staged)
        if staged:
            record = replace(record, code=staged.code)
            staged.publish()  # before there is a run that would need it
    created = create_run(runs_root(args), record)
    at_most = "" if plan.hosts or spec.resources.least_nodes == spec.resources.most_nodes else "at most "
    ranks = f"{at_most}{len(plan.ranks)} rank(s) on {plan.accelerator}"
    terminal.line(f"run {terminal.colour(record.id, 'bold')}  {ranks}")
    terminal.line(f"  {created.storage.root}")
    if source:
        begun_with, saved, manifest = source
        adopt(created, begun_with, saved, manifest)
        terminal.line(f"  begins with step {saved.step} of {begun_with.id}")
    return carry_on(created, spec, args, terminal)


def _source(args: argparse.Namespace) -> tuple[Run, CheckpointSaved, Manifest] | None:
    """The run of `--from RUN[@STEP]`, and the checkpoint that is meant."""
    if args.source is None:
        return None
    source, step = run_and_step(args, args.source)
    return source, *newest_whole(source, step)


def new_record(
    spec: JobSpec, spec_file: Path, overrides: list[str], name: str | None, on: str, target: Target
) -> Record:
    """What run.json will say. Ranks find modules in the spec's folder, its project's, and the current one."""
    folder = spec_file.absolute().parent
    own = [str((folder / path).resolve()) for path in spec.code.path]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return Record(
        id=new_id(spec.name) if name is None else name,
        name=spec.name if name is None else name,
        created=time.time(),
        target=on,
        site=site_of(target),
        spec=spec.model_dump(mode="json", exclude_unset=True),
        spec_file=str(spec_file.absolute()),
        spec_text=spec_file.read_text(),
        overrides=tuple(overrides),
        import_path=tuple(
            dict.fromkeys([*own, str(folder), str(_project(folder) or folder), str(Path.cwd()), *inherited])
        ),
        workdir=str(Path.cwd()),
    )


def code_sources(spec: JobSpec, record: Record, run_dir: str) -> list[tree.Source]:
    """The trees that a snapshot would be made of; none if none is wanted.

    Raises:
        UsageError: they are too large, or cannot be read.
    """
    if not spec.code.snapshot:
        return []
    folder = Path(record.spec_file).parent
    here = _project(Path(record.workdir))
    own = [folder / path for path in spec.code.path]
    return tree.survey(
        [_project(folder) or folder, folder, *own, *([here] if here else [])],
        exclude=spec.code.exclude,
        max_bytes=spec.code.max_bytes,
        run_dir=run_dir,
    )


@contextmanager
def staged_code(spec: JobSpec, record: Record, run_dir: str) -> Iterator[snapshot.Staged | None]:
    if sources := code_sources(spec, record, run_dir):
        with snapshot.staged(sources, run_dir, record.import_path, record.workdir) as staged:
            yield staged
    else:
        yield None


def _project(folder: Path) -> Path | None:
    """The folder itself or the nearest above that looks like a project's root."""
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return None
