"""logs: what a rank printed, now or as it grows."""

import argparse
import sys
import time

from launcher.cli.common import wanted_run
from launcher.cli.follow import Follower
from launcher.cli.terminal import Terminal
from launcher.errors import UsageError
from launcher.layout import attempt_folder, log_path
from launcher.output import parts
from launcher.run import Run
from launcher.status import living_driver, run_state


def logs(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    if args.follow:
        if args.attempt is not None:
            raise UsageError("--follow shows the newest attempt: leave out --attempt")
        return _follow(run, args.rank)
    attempts = run.ledger.refresh().attempts
    if not attempts:
        raise UsageError(f"{run.id} has not started yet")
    number = attempts[-1].number if args.attempt is None else args.attempt
    if not 1 <= number <= len(attempts):
        raise UsageError(f"{run.id} has no attempt {number}; the newest is {len(attempts)}")
    try:
        for part in parts(run.storage, log_path(number, args.rank)):
            sys.stdout.buffer.write(part)
    except FileNotFoundError:
        there = run.storage.list(f"{attempt_folder(number)}/logs") or ["none"]
        raise UsageError(f"no log of rank {args.rank} in attempt {number}; there are: {', '.join(there)}") from None
    return 0


def _follow(run: Run, rank: int) -> int:
    follower = Follower(run, Terminal(), rank)
    try:
        while True:
            state = run.ledger.refresh()
            follower.tick(state)
            label, reason = run_state(run, state, run.finished)
            if label not in ("running", "queued") and not living_driver(run, state):
                print(f"{run.id} {label}" + (f": {reason}" if reason else ""))
                return 0
            time.sleep(run.storage.pause_s)
    except KeyboardInterrupt:  # leaves the run alone
        return 0
