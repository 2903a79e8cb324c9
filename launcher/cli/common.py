"""What most verbs need: where runs live, which run is meant, JSON on stdout."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from launcher.run import Run, find_run


def runs_root(args: argparse.Namespace) -> Path:
    return Path(args.runs_root or os.environ.get("LAUNCHER_RUNS") or "runs")


def wanted_run(args: argparse.Namespace) -> Run:
    """Raises UsageError if none or several fit."""
    return find_run(runs_root(args), args.run)


def print_json(body: Any) -> None:
    """On one line, so that the last line of stdout is the whole answer."""
    print(json.dumps(body), flush=True)
