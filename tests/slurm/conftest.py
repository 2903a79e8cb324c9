"""One cluster for all tests of this folder; beside it, a small one with the opposite of its settings."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import labs
import pytest

from slurm import scenarios
from slurm.cluster import Cluster, Settings
from slurm.cluster.cluster import state_folder
from slurm.cluster.packages import obstacle

REPOSITORY = Path(__file__).parents[2]

DATA = Path(os.environ.get("LAUNCHER_DATA", REPOSITORY / "data")).resolve()
"""The folder above MNIST/raw."""

STATE = state_folder() / "tests"

GRACE_S = 6
KILL_WAIT_S = 10
"""Until then a run has saved, on a slow machine too, and asked to be requeued."""
SETTINGS = Settings(
    nodes=8,
    gpus=2,
    grace_seconds=GRACE_S,
    kill_wait_seconds=KILL_WAIT_S,
    # Jobs run this checkout, with this Python, on these data; a clone may well be under /tmp.
    shared=tuple({path for path in map(str, (REPOSITORY, sys.prefix, DATA)) if path.startswith("/tmp/")}),
)
OTHER = Settings(
    nodes=2,
    accounting=False,
    proctrack="linuxproc",
    grace_seconds=2,
    kill_wait_seconds=KILL_WAIT_S,
    send_user_signal=False,
    requeue=False,
    shared=SETTINGS.shared,
)


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    if reason := obstacle():
        labs.impossible(reason)


@pytest.fixture(scope="session")
def make(possible: None) -> Callable[[str], Cluster]:
    return labs.by_letter(Cluster, STATE)


@pytest.fixture(scope="session")
def cluster(make: Callable[[str], Cluster]) -> Iterator[Cluster]:
    """Eight nodes; partitions as `scripts/slurm-cluster --help` names them."""
    yield from up(make("a"), SETTINGS)


@pytest.fixture(scope="session")
def other(make: Callable[[str], Cluster]) -> Iterator[Cluster]:
    """Two nodes, without: accounting, control groups, requeueing unless asked for, signals of the user's choice."""
    yield from up(make("b"), OTHER)


def up(cluster: Cluster, settings: Settings) -> Iterator[Cluster]:
    try:
        cluster.up(settings)
        yield cluster
    finally:
        cluster.down(wipe=True)


class Scenarios:
    """All go on at once, from the first question on."""

    def __init__(self, cluster: Cluster, other: Cluster) -> None:
        self._pool = ThreadPoolExecutor(32)
        steps, batch = "--signal=USR2@90", "--signal=B:USR1@90"
        run = self._pool.submit
        self._futures: dict[str, Future[Any]] = {
            "no power": run(scenarios.without_power, cluster, "n6"),
            "no network": run(scenarios.without_network, cluster, "n7"),
            "preempted": run(scenarios.preempted, cluster, "n1", "low"),
            "preempted, signal to steps": run(scenarios.preempted, cluster, "n2", "low", steps),
            "preempted, signal to batch, CANCEL": run(scenarios.preempted, cluster, "n3", "lowcancel", batch),
            "preempted, no grace": run(scenarios.preempted, cluster, "n4", "lownograce", steps),
            "preempted, user signals off": run(scenarios.preempted, other, "n1", "low", "--requeue", steps),
            "timed out": run(scenarios.timed_out, cluster, "n5"),
            "cancelled": run(scenarios.cancelled, cluster, "n5", "exec "),
            "cancelled under a shell": run(scenarios.cancelled, cluster, "n5", ""),
            "requeued": run(scenarios.requeued, cluster, "n5"),
        }

    def __call__(self, name: str) -> Any:
        """What was seen, once it is over."""
        return self._futures[name].result()

    def end(self) -> None:
        for future in self._futures.values():
            future.exception()
        self._pool.shutdown()


@pytest.fixture(scope="session")
def observed(cluster: Cluster, other: Cluster) -> Iterator[Callable[[str], Any]]:
    scenarios = Scenarios(cluster, other)
    yield scenarios
    scenarios.end()


@pytest.fixture(scope="session")
def quiet(observed: Scenarios, cluster: Cluster) -> Cluster:
    """The cluster once all scenarios are over, so that its daemons may fail."""
    observed.end()
    return cluster
