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
from pathlib import Path

from launcher.errors import Fenced, LauncherError
from launcher.node.environment import Place, die_with_parent, place_from
from launcher.node.start import choose_start
from launcher.node.stop import StopFlag, Stopped
from launcher.run import Run, failure_path
from launcher.storage import PosixStorage

log = logging.getLogger("launcher")

_PEER = re.compile(
    r"gloo|nccl|Connection (reset|closed|refused)|Broken pipe|connectFullMesh|Socket Timeout|address already in use",
    re.IGNORECASE,
)
_LOADER_WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


def main() -> int:
    flag = StopFlag()
    flag.install()  # before anything slow: a signal during the imports must not end the rank
    place = place_from(os.environ)
    if parent := os.environ.get("LAUNCHER_PARENT"):
        die_with_parent(int(parent))
    _log_to_stderr()
    run = Run(PosixStorage(Path(place.run_dir)))
    try:
        if place.rank == 0:
            choose_start(run, place.attempt)
        _quieten()
        from launcher.node.training import train  # torch enters here

        train(run, place, flag)
    except Stopped:
        log.info("rank %d: saved, leaving", place.rank)
    except Fenced as fenced:
        log.warning("rank %d: %s", place.rank, fenced)
        return 1
    except BaseException as error:
        _record_failure(run, place, error)
        return 1
    return 0


def _record_failure(run: Run, place: Place, error: BaseException) -> None:
    if isinstance(error, LauncherError):  # the spec is at fault, or the machine: the message says it all
        log.error("rank %d: %s", place.rank, error)
        text = None
    else:
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, flush=True)
    run.write_json(
        failure_path(place.attempt, place.rank),
        {
            "rank": place.rank,
            "host": socket.gethostname(),
            "time": time.time(),
            "kind": failure_kind(error),
            "type": type(error).__name__,
            "message": str(error),
            "traceback": text,
        },
    )


def failure_kind(error: BaseException) -> str:
    """`peer`: an echo of another rank's end. `infra`: a helper process was killed. `error`: the user's code."""
    text = str(error)
    if type(error).__module__.startswith("torch.distributed") or type(error).__name__.startswith("Dist"):
        return "peer"
    if isinstance(error, RuntimeError) and _LOADER_WORKER.search(text):
        return "infra"
    if isinstance(error, RuntimeError) and _PEER.search(text):
        return "peer"
    return "error"


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
