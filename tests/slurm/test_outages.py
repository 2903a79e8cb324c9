"""Slurm's daemons and the network fail under a run: it is neither lost nor doubled, no checkpoint is rolled back."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.launches import SLOW_S, Launch, clear, launch
from slurm.scenarios import eventually

pytestmark = pytest.mark.slurm

OUTAGE_S = 25.0
"""Longer than Slurm's commands wait for slurmctld."""
CUT_S = 60.0


@contextmanager
def mended(cluster: Cluster) -> Iterator[None]:
    """What is broken within it is mended after it."""
    try:
        yield
    finally:
        cluster.start_ctld()
        cluster.start_dbd()
        for node in cluster.settings.node_names:
            cluster.net_restore(node)
            if set(cluster.node(node)["State"].split("+")) & {"DOWN", "DRAIN"}:
                cluster.resume(node)
        clear(cluster)


# -- slurmctld is down


@pytest.fixture(scope="module")
def outage(cluster: Cluster) -> dict[str, Launch]:
    """What became of four runs that were at work when it began; what was done to them meanwhile is their name."""
    nodes = cluster.settings.node_names
    with mended(cluster):
        runs = [launch(cluster, nodes[first : first + 2]) for first in range(0, 8, 2)]
        killed, told, finished, _ = runs
        for run in runs:
            run.until(run.trains, "it to train")
        slurmctld_remembers(cluster, runs)
        cluster.kill_ctld()
        began = time.monotonic()
        killed.kill(rank=3)
        for pid in [pid for rank in range(4) for pid in told.processes(rank)]:
            with suppress(ProcessLookupError):  # one tells the others
                os.kill(pid, signal.SIGUSR2)
        assert finished.status["state"] == "running", "silence of Slurm says nothing about a run"
        finished.enough()
        finished.until(lambda: finished.run.ledger.refresh().ended, "the run to end without slurmctld")
        assert finished.status["state"] == "finished"
        time.sleep(max(0.0, OUTAGE_S - (time.monotonic() - began)))
        cluster.start_ctld()
        for run in (killed, told):
            run.until(partial(run.trains, 2), "attempt 2 to train", SLOW_S)
        for run in runs:
            run.enough()
        return dict(zip(("killed", "told to leave", "finished", "nothing"), map(Launch.end, runs), strict=True))


def slurmctld_remembers(cluster: Cluster, runs: list[Launch]) -> None:
    """It has saved since that their jobs run; a crash before that might have it forget them."""
    now = time.time()
    for run in runs:
        cluster.scontrol("update", f"jobid={run.job}", "admincomment=runs")  # it saves some seconds after any change
    saved = cluster.layout.folder / "controller/job_state"
    eventually(lambda: saved.stat().st_mtime > now, "slurmctld to save its jobs")


def test_a_rank_that_is_killed_while_slurmctld_is_down_is_started_again(outage: dict[str, Launch]) -> None:
    run = outage["killed"]
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes[-1] == "finished"
    assert set(run.causes[:-1]) == {"infra"}
    assert len(run.jobs) == 1
    assert run.disorder() == []


def test_ranks_that_are_told_to_leave_while_slurmctld_is_down_come_back(outage: dict[str, Launch]) -> None:
    run = outage["told to leave"]
    print(run.told())

    assert run.causes[-1] == "finished"
    assert run.lost == 0
    assert run.disorder() == []


@pytest.mark.parametrize("name", ["finished", "nothing"])
def test_whoever_needs_nothing_of_slurmctld_does_not_notice(name: str, outage: dict[str, Launch]) -> None:
    run = outage[name]
    print(run.told())

    assert run.causes == ["finished"]
    assert run.disorder() == []


# -- slurmdbd is down


def test_without_slurmdbd_runs_are_launched_preempted_and_finished(cluster: Cluster) -> None:
    with mended(cluster):
        cluster.kill_dbd()
        run = launch(cluster, ("n1", "n2"), slurm={"partition": "low"})
        run.until(run.trains, "it to train")
        run.preempt()
        run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes == ["preempted", "finished"]
    assert run.lost == 0
    assert run.disorder() == []


# -- a node is cut off


@pytest.fixture(scope="module")
def cut(cluster: Cluster) -> list[Launch]:
    """Runs that had lost their supervisor's node, and their other one, for a minute."""
    nodes = cluster.settings.node_names
    with mended(cluster), ThreadPoolExecutor(2) as pool:
        return list(pool.map(partial(cut_off, cluster), (0, 1), (nodes[:4], nodes[4:])))


def cut_off(cluster: Cluster, which: int, nodes: tuple[str, ...]) -> Launch:
    others = [node for node in cluster.settings.node_names if node not in nodes]
    run = launch(cluster, nodes, resources={"nodes": 2}, slurm={"nodelist": [], "exclude": others})
    run.until(run.trains, "it to train")
    lost, began = run.hosts[which], time.monotonic()

    cluster.net_cut(lost)
    run.until(lambda: run.trains(attempt=2), "it to train elsewhere", SLOW_S)
    assert lost not in run.hosts
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    ghosts = [pid for rank in range(4) for pid in run.processes(rank) if _attempt_of(pid) == 1]
    cluster.net_restore(lost)
    run.until(lambda: not any(map(_lives, ghosts)), "the ghosts to end", SLOW_S)
    _as_an_administrator(run, lost)
    reached = run.saved
    run.until(lambda: run.saved > reached, "it to go on after the ghosts")
    return run.finish(attempt=2)


@pytest.mark.parametrize("which", [0, 1], ids=["of the supervisor", "other"])
def test_a_node_that_is_cut_off_for_a_minute_leaves_ghosts_that_roll_nothing_back(
    which: int, cut: list[Launch]
) -> None:
    run = cut[which]
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes[-1] == "finished"
    assert set(run.causes[:-1]) <= {"infra", "preempted"}, "Slurm tells the ranks that it reaches to leave"
    assert len(run.jobs) == 1
    assert run.disorder() == []


def _as_an_administrator(run: Launch, node: str) -> None:
    """Slurm drains a node on which it finds the job that it has started elsewhere, and holds that job."""
    with suppress(ClusterError):
        run.cluster.resume(node)
    with suppress(ClusterError):
        run.cluster.scontrol("release", str(run.job))


def _attempt_of(pid: int) -> int | None:
    with suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"LAUNCHER_ATTEMPT="):
                return int(variable.partition(b"=")[2])
    return None


def _lives(pid: int) -> bool:
    return _attempt_of(pid) is not None
