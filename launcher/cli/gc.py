"""gc: machines in the cloud that nobody wants any more, which cost money none the less."""

import argparse
from dataclasses import asdict

from launcher.cli.common import print_json
from launcher.cli.terminal import Terminal
from launcher.errors import UsageError
from launcher.target import load_target


def gc(args: argparse.Namespace) -> int:
    from launcher.backends.tpu.abandoned import all_machines, remove, wanted_by
    from launcher.backends.tpu.api import Api

    target = load_target(args.on)
    if target.kind != "tpu":
        raise UsageError(f"--on {args.on}: it is of kind {target.kind}; only on Cloud TPU are there machines to remove")
    if target.tpu is None or target.tpu.project is None:
        raise UsageError(f"--on {args.on}: its file names no project; add tpu: {{project: ...}}")
    api = Api(target.tpu.project, target.api_endpoint)
    found = []
    for one in all_machines(api):
        wanted, why = wanted_by(one)
        goes = not wanted and one.state != "DELETING"
        if goes and not args.dry_run:
            remove(api, one)
        found.append({**asdict(one), "wanted": wanted, "why": why, "removed": goes and not args.dry_run})
    if args.json:
        print_json(found)
        return 0
    terminal = Terminal()
    for row in found:
        does = "kept" if row["wanted"] else "removed" if row["removed"] else "would be removed"
        does = "is being deleted" if row["state"] == "DELETING" else does
        terminal.line(f"{row['zone']} {row['name']} {row['state']}: {does}; {row['why']}")
        terminal.line(f"  {row['run_dir']}")
    if not found:
        terminal.line(f"nothing of a launcher's in project {target.tpu.project}")
    return 0
