"""The process of one rank: `python -m launcher.node.worker`.

Leaves with 0 when the run is finished and also when all ranks agreed to stop: finished.json tells the two apart,
and a non-zero code would have schedulers kill ranks that still write.
"""

import logging
import os
import re
import socket
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

from launcher.address import storage_at
from launcher.diagnosis import UNWRITABLE
from launcher.errors import Fenced, LauncherError
from launcher.kinds import classified
from launcher.layout import failure_path
from launcher.node.environment import Place, adopt_slurm_numbers, die_with_parent, place_from
from launcher.node.preflight import Preflight
from launcher.node.start import choose_start
from launcher.node.stop import StopFlag, Stopped
from launcher.node.waiting import Unfit
from launcher.oom import oom_kills, oom_kills_since
from launcher.run import Run

log = logging.getLogger("launcher")


def main() -> int:
    os.environ.pop("PYTHONSAFEPATH", None)  # it was for the start of this process, not for those of the user's
    flag = StopFlag()
    flag.install()  # before anything slow: a signal during the imports must not end the rank
    adopt_slurm_numbers()
    place = place_from(os.environ)
    if parent := os.environ.get("LAUNCHER_PARENT"):
        die_with_parent(int(parent))
    _log_to_stderr()
    killed_before = oom_kills()
    run = Run(storage_at(place.run_dir))
    beside = ThreadPoolExecutor(1)  # reading a large checkpoint takes as long as importing torch
    try:
        preflight = Preflight(run, place, flag)
        chosen = beside.submit(choose_start, run, place.attempt) if place.rank == 0 else None
        preflight.compare_hosts()
        _quieten()
        from launcher.node.training import train  # torch enters here

        preflight.all_reduce()
        train(run, place, flag, chosen.result() if chosen else {})
    except Stopped:
        log.info("rank %d: saved, leaving", place.rank)
    except Fenced as fenced:
        log.warning("rank %d: %s", place.rank, fenced)
        return 1
    except BaseException as error:
        return _record_failure(run, place, error, stopping=bool(flag.signal), killed=oom_kills_since(killed_before))
    return 0


def _record_failure(run: Run, place: Place, error: BaseException, *, stopping: bool, killed: int | None) -> int:
    """Write down what ended this rank.

    Args:
        stopping: a signal had asked this rank to stop.
        killed: processes that the out-of-memory killer has ended since this rank began.

    Returns:
        The exit code.
    """
    if isinstance(error, LauncherError):  # the spec is at fault, or the machine: the message says it all
        log.error("rank %d: %s", place.rank, error)
        text = None
    else:
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, flush=True)
    kind, first = classified(error, oom_kills=killed)
    shown = error if isinstance(error, LauncherError) else first
    record = {
        "rank": place.rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "kind": kind,
        "type": type(shown).__name__,
        "message": str(shown),
        "traceback": text,
        "stopping": stopping,
        "oom_kills": killed,
        "nodes": error.nodes if isinstance(error, Unfit) else [],
    }
    try:
        run.write_json(failure_path(place.attempt, place.rank), record)
    except OSError as unwritable:  # a full disk, perhaps the one that ended this rank
        log.error("rank %d: cannot write to the run directory: %s", place.rank, unwritable)
        return UNWRITABLE
    return 1


def _log_to_stderr() -> None:
    """The launcher's own lines; the root logger is the user's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _quieten() -> None:
    """Lines of Lightning that do not apply under the launcher."""
    for message in (
        r".*does not have many workers which may be a bottleneck.*",
        r"Using `DistributedSampler` with the dataloaders.*",  # it pads: the README says so
        r"The `srun` command is available on your system.*",  # and is the backend's to use
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.12 and newer
        r"Precision .* is not supported by the model summary.*",  # the weights are float32 in mixed precision too
    ):
        warnings.filterwarnings("ignore", message)
    noise = re.compile(r"Tip:|available: (True|False), us")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda line: not noise.search(line.getMessage())
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: at exit, torch's and gloo's threads may abort when a peer is already gone.
    os._exit(code)
