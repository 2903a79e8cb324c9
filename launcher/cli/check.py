"""check and schema: is this spec right, and what may it say."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from launcher import shell
from launcher.backend import Plan
from launcher.cli.common import print_json
from launcher.cli.place import backend_of, kind_of, spec_and_target
from launcher.errors import LauncherError, UsageError
from launcher.snapshot import Staged, import_path
from launcher.spec import JobSpec, json_schema, runs_of


def check(args: argparse.Namespace) -> int:
    from launcher.cli.run import new_record

    spec, target = spec_and_target(args)
    spec = runs_of(spec)[0]
    record = new_record(spec, Path(args.spec), args.overrides, "check", args.on, target)
    run_dir = "gs://bucket/run" if kind_of(record) == "tpu" else str(Path("run").absolute())
    plan = backend_of(record).plan(run_dir, record, spec, 1)
    check_spec(spec, plan)
    if args.json:
        print_json({"spec": args.spec, "ok": True})
    else:
        print(f"{args.spec}: model, data and trainer can be made")
    return 0


def check_spec(spec: JobSpec, plan: Plan, staged: Staged | None = None) -> None:
    """Instantiate model, data and trainer in a process of its own, with the import path that ranks will have.

    Args:
        spec: what to instantiate.
        plan: of the first attempt, without a snapshot.
        staged: the snapshot that ranks will import from.

    Raises:
        UsageError: they cannot be made; says which key and why.
        LauncherError: the process died.
    """
    request = {
        "spec": spec.model_dump(mode="json", exclude_unset=True),
        "world_size": len(plan.ranks),
        "local_world_size": plan.tasks_per_node,
        "accelerator": plan.accelerator,
        "elsewhere": plan.argv[0] != sys.executable,
    }
    inherited = {name: plan.env[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    env = {**os.environ, **spec.env.vars, **inherited}
    if staged:
        folder = str(staged.folder)
        env["PYTHONPATH"] = os.pathsep.join(import_path(staged.code, folder))
        request |= {"code": asdict(staged.code), "snapshot": folder, "workdir": plan.workdir}
    code, output = shell.run([sys.executable, "-m", "launcher.node.check"], env=env, given=json.dumps(request))
    if staged:
        output = _as_live(output, staged)
    if code == UsageError.exit_code:
        ignored = "; files that git ignores are not looked at" if staged and "no module named" in output else ""
        raise UsageError(output.strip() + ignored)
    if code != 0:
        raise LauncherError(f"checking the spec failed (exit {code}):\n{output.strip()}")


def _as_live(text: str, staged: Staged) -> str:
    """With paths that the user knows: the copy may be gone when they are read."""
    for tree in staged.code.trees:
        text = text.replace(f"{staged.folder}/{tree.folder}/", f"{tree.path}/")
    return text


def schema(args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=1))
    return 0
