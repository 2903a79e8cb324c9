"""A run that takes two to four nodes, on four that others want: what the queue gives, what the run makes of it.

Eight ranks make its global batch, two on each node: four of them can share it, six cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from launcher.errors import USAGE
from launcher.runs import open_run
from slurm.cluster import Cluster
from slurm.launches import SPEC, Launch, launch, launcher, written

pytestmark = pytest.mark.slurm

_FREED_S = 150.0
"""For a job that was requeued, from its release to its start, on a busy machine."""


@pytest.fixture(scope="module")
def run(cluster: Cluster) -> Launch:
    """Two of the four are free, then all, then three."""
    nodes = cluster.settings.node_names[:4]
    others = cluster.settings.node_names[4:]
    with taken(cluster, "main", nodes[2:]):
        run = launch(
            cluster,
            nodes,
            resources={"nodes": "2-4"},
            slurm={"partition": "low", "nodelist": [], "exclude": list(others)},
        )
        run.until(lambda: run.trains(1), "attempt 1 to train", _FREED_S)
        with preempted(run, nodes[:2]):
            pass
    release(run, 2, nodes)
    with preempted(run, nodes):
        pass
    with taken(cluster, "main", nodes[3:]):
        release(run, 3, nodes[:3])
        run.enough()
        run.end()
    print(run.told())  # pytest shows it if a test fails
    return run


@contextmanager
def taken(cluster: Cluster, partition: str, nodes: tuple[str, ...]) -> Iterator[int]:
    """Somebody's job has all of these nodes."""
    whole = ["--ntasks-per-node=1", f"--cpus-per-task={cluster.settings.cpus}"]
    where = [f"--partition={partition}", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]
    job = cluster.sbatch("#!/bin/sh\nexec sleep 900\n", *where, *whole)
    try:
        yield job
    finally:
        cluster.scancel(str(job))
        cluster.wait(job, "CANCELLED", "COMPLETED")


@contextmanager
def preempted(run: Launch, nodes: tuple[str, ...]) -> Iterator[None]:
    """Its job has made way, and is held: else it would start on the first two nodes that are left."""
    with taken(run.cluster, "high", nodes) as high:
        run.cluster.wait(high, "RUNNING", seconds=90)
        run.cluster.wait(run.job, "PENDING", seconds=90)
        run.cluster.scontrol("hold", str(run.job))
        yield


def release(run: Launch, attempt: int, free: tuple[str, ...]) -> None:
    run.until(lambda: all(run.cluster.node(node)["State"] == "IDLE" for node in free), f"{free} to be left")
    run.cluster.scontrol("release", str(run.job))
    run.until(lambda: run.trains(attempt), f"attempt {attempt} to train", _FREED_S)


def hosts(run: Launch) -> list[tuple[str, ...]]:
    return [attempt.hosts for attempt in run.run.ledger.refresh().attempts]


def world_size(run: Launch, attempt: int) -> set[str]:
    started = [rank for number, rank in run.started() if number == attempt]
    told = [run.run.read_json(f"attempts/{attempt:03d}/environment-{rank}.json") for rank in started]
    assert started == list(range(len(told)))
    return {one["WORLD_SIZE"] for one in told}


def test_each_attempt_runs_on_what_there_is(run: Launch) -> None:
    n1, n2, n3, n4 = run.nodes

    assert hosts(run) == [(n1, n2), (n1, n2, n3, n4), (n1, n2)]
    assert [world_size(run, attempt) for attempt in (1, 2, 3)] == [{"4"}, {"8"}, {"4"}]


def test_it_is_one_run_in_one_job(run: Launch) -> None:
    assert run.causes == ["preempted", "preempted", "finished"]
    assert len(run.jobs) == 1
    assert run.disorder() == []


def test_nodes_that_do_not_fit_in_are_said_to_be_idle(run: Launch) -> None:
    assert [attempt["idle"] for attempt in run.status["attempts"]] == [[], [], [run.nodes[2]]]
    assert f"idle        {run.nodes[2]}; ranks are on {run.nodes[0]}, {run.nodes[1]}\n" in run.launcher("status").out
    assert run.run.read_json("attempts/003/plan.json")["idle"] == [run.nodes[2]]


def test_ranks_stand_on_the_nodes_that_the_plan_names(run: Launch) -> None:
    told = [run.run.read_json(f"attempts/003/environment-{rank}.json")["SLURMD_NODENAME"] for rank in range(4)]

    assert told == [run.nodes[0], run.nodes[0], run.nodes[1], run.nodes[1]]


def test_a_run_is_created_for_the_largest_number_and_resume_changes_the_range(cluster: Cluster) -> None:
    name, runs = "elastic", cluster.work / "runs"
    resources = {**SPEC["resources"], "nodes": "2-4"}
    spec = written(cluster.work / "specs/elastic", resources=resources, slurm={"additional_parameters": {"hold": True}})
    done = launcher(cluster, "run", spec, "--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)
    run = Launch(cluster, open_run(runs, name), ())

    assert (done.code, run.run.record.ranks) == (0, 8), done.err
    assert "at most 8 rank(s) on cpu" in done.out
    assert cluster.job(run.job)["NumNodes"] == "2-4"

    run.launcher("cancel")
    refused = run.launcher("resume", "--no-check", "--set", "resources.nodes=3-4")
    assert refused.code == USAGE
    assert "6 ranks cannot share the 8 micro-batches" in refused.err
    assert "of nodes with 2 each: 1, 2, 4" in refused.err

    resumed = run.launcher("resume", "--no-check", "--set", "resources.nodes=1-2")
    assert resumed.code == 0, resumed.err
    assert cluster.job(run.job)["NumNodes"] == "1-2"
    run.launcher("cancel")
