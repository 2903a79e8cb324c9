"""watch: carry on runs in the cloud whose driver is gone, from any machine that reaches them."""

import argparse
import time

from launcher.cli.common import runs_root
from launcher.cli.place import detach, kind_of
from launcher.cli.terminal import Terminal
from launcher.driver import LAPSE_S
from launcher.errors import LauncherError
from launcher.run import Run
from launcher.runs import entries, open_run
from launcher.status import living_driver


def watch(args: argparse.Namespace) -> int:
    terminal, root = Terminal(), runs_root(args)
    while True:
        taken = _take_over(root, terminal)
        if args.once:
            if not taken:
                terminal.line("all runs that need a driver have one")
            return 0
        time.sleep(args.every)


def _take_over(root: str, terminal: Terminal) -> int:
    """Have each run without a driver driven in the background; how many that were."""
    taken = 0
    for entry in entries(root):
        if entry.is_sweep:
            continue
        try:
            run = open_run(root, entry.id)
            if not _abandoned(run):
                continue
            terminal.line(f"{run.id}: nobody drives it")
            detach(run, terminal)
        except (LauncherError, OSError) as error:  # one that cannot be read must not keep others waiting
            terminal.line(f"{entry.id}: {error}")
        else:
            taken += 1
    return taken


def _abandoned(run: Run) -> bool:
    """Whether it is meant to go on, needs a driver outside of where it runs, and has none."""
    if kind_of(run.now) != "tpu":
        return False
    state = run.ledger.refresh()
    if state.ended:
        return False
    if state.driver is None:  # whoever has created it may be about to
        return time.time() - run.record.created > LAPSE_S
    return living_driver(run, state) is None
