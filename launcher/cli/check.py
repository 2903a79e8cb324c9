"""check and schema: is this spec right, and what may it say."""

import argparse
import json
import os
import sys
from pathlib import Path

from launcher import shell
from launcher.backends import Plan
from launcher.backends.local import LocalBackend
from launcher.cli.common import print_json
from launcher.errors import LauncherError, UsageError
from launcher.spec import JobSpec, json_schema, load_spec


def check(args: argparse.Namespace) -> int:
    from launcher.cli.run import new_record

    spec = load_spec(Path(args.spec), args.overrides)
    plan = LocalBackend().plan("run", new_record(spec, Path(args.spec), args.overrides, "check"), spec, 1)
    check_spec(spec, plan)
    if args.json:
        print_json({"spec": args.spec, "ok": True})
    else:
        print(f"{args.spec}: model, data and trainer can be made")
    return 0


def check_spec(spec: JobSpec, plan: Plan) -> None:
    """Instantiate model, data and trainer in a process of its own, with the import path that ranks will have.

    Raises:
        UsageError: they cannot be made; says which key and why.
        LauncherError: the process died.
    """
    request = {
        "spec": spec.model_dump(mode="json", exclude_unset=True),
        "world_size": len(plan.ranks),
        "local_world_size": sum(rank.node == 0 for rank in plan.ranks),
        "accelerator": plan.accelerator,
    }
    env = {**os.environ, **spec.env.vars, "PYTHONPATH": plan.ranks[0].env["PYTHONPATH"]}
    code, output = shell.run([sys.executable, "-m", "launcher.node.check"], env=env, given=json.dumps(request))
    if code == UsageError.exit_code:
        raise UsageError(output.strip())
    if code != 0:
        raise LauncherError(f"checking the spec failed (exit {code}):\n{output.strip()}")


def schema(args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=1))
    return 0
