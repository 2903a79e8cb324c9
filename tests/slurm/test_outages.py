"""Slurm's daemons and the network fail under a run: it is neither lost nor doubled, no checkpoint is rolled back."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.launches import SLOW_S, Launch, clear, launch

pytestmark = pytest.mark.slurm

OUTAGE_S = 40.0
"""Longer than Slurm's commands wait for slurmctld."""
CUT_S = 60.0


@pytest.fixture
def fragile(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; what a test has broken is mended after it."""
    yield cluster
    cluster.start_ctld()
    cluster.start_dbd()
    for node in cluster.settings.node_names:
        cluster.net_restore(node)
        if set(cluster.node(node)["State"].split("+")) & {"DOWN", "DRAIN"}:
            cluster.resume(node)
    clear(cluster)


def trains(cluster: Cluster) -> Launch:
    """A run at work on two nodes, of which a crash of slurmctld would not make it forget the job."""
    run = launch(cluster, ("n1", "n2"))
    run.until(run.trains, "it to train")
    now = time.time()
    saved = cluster.layout.folder / "controller/job_state"
    run.until(lambda: saved.stat().st_mtime > now, "slurmctld to save the job", seconds=30)
    return run


def test_a_rank_that_is_killed_while_slurmctld_is_down_is_started_again(fragile: Cluster) -> None:
    run = trains(fragile)

    fragile.kill_ctld()
    run.kill(rank=3)
    time.sleep(OUTAGE_S)
    fragile.start_ctld()
    run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes[-1] == "finished"
    assert set(run.causes[:-1]) == {"infra"}
    assert len(run.jobs) == 1
    assert run.disorder() == []


def test_a_run_that_finishes_while_slurmctld_is_down_has_finished(fragile: Cluster) -> None:
    run = trains(fragile)

    fragile.kill_ctld()
    began = time.monotonic()
    assert run.status["state"] == "running", "silence of Slurm says nothing about a run"
    assert time.monotonic() - began < 30
    run.enough()
    run.until(lambda: run.run.ledger.refresh().ended, "the run to end without slurmctld")
    assert run.status["state"] == "finished"
    fragile.start_ctld()
    run.end()
    print(run.told())

    assert run.causes == ["finished"]
    assert run.disorder() == []


def test_ranks_that_are_told_to_leave_while_slurmctld_is_down_come_back(fragile: Cluster) -> None:
    run = trains(fragile)

    fragile.kill_ctld()
    for rank in range(4):
        for pid in run.processes(rank):
            os.kill(pid, signal.SIGUSR2)
    time.sleep(OUTAGE_S / 2)
    fragile.start_ctld()
    run.finish(attempt=2)
    print(run.told())

    assert run.causes[-1] == "finished"
    assert run.lost == 0
    assert run.disorder() == []


def test_slurmctld_restarts_under_a_run_that_does_not_notice(fragile: Cluster) -> None:
    run = trains(fragile)

    fragile.kill_ctld()
    time.sleep(2)
    fragile.start_ctld()
    run.finish(attempt=1)
    print(run.told())

    assert run.causes == ["finished"]
    assert run.disorder() == []


def test_without_slurmdbd_runs_are_launched_preempted_and_finished(fragile: Cluster) -> None:
    fragile.kill_dbd()

    run = launch(fragile, ("n1", "n2"), slurm={"partition": "low"})
    run.until(run.trains, "it to train")
    run.preempt()
    run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes == ["preempted", "finished"]
    assert run.lost == 0
    assert run.disorder() == []


@pytest.mark.parametrize("which", [0, 1], ids=["of the supervisor", "other"])
def test_a_node_that_is_cut_off_for_a_minute_leaves_ghosts_that_roll_nothing_back(which: int, fragile: Cluster) -> None:
    run = launch(fragile, fragile.settings.node_names, resources={"nodes": 2}, slurm={"nodelist": []})
    run.until(run.trains, "it to train")
    cut, began = run.hosts[which], time.monotonic()

    fragile.net_cut(cut)
    run.until(lambda: run.trains(attempt=2), "it to train elsewhere", SLOW_S)
    assert cut not in run.hosts
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    ghosts = [pid for rank in range(4) for pid in run.processes(rank) if _attempt_of(pid) == 1]
    fragile.net_restore(cut)
    run.until(lambda: not any(map(_lives, ghosts)), "the ghosts to end", SLOW_S)
    _as_an_administrator(run, cut)
    reached = run.saved
    run.until(lambda: run.saved > reached, "it to go on after the ghosts")
    run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes[-1] == "finished"
    assert set(run.causes[:-1]) == {"infra"}
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
