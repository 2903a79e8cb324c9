"""The cluster as its users find it."""

import os
import subprocess

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.scenarios import eventually

pytestmark = pytest.mark.slurm


def test_each_node_runs_a_job(cluster: Cluster) -> None:
    names = cluster.srun("--nodes=8", "--ntasks=8", "hostname").split()

    assert sorted(names) == [f"n{number}" for number in range(1, 9)]


def test_two_nodes_with_two_tasks_each(cluster: Cluster) -> None:
    say = 'echo "$SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID $(hostname)"'
    lines = cluster.srun("--nodes=2", "--ntasks-per-node=2", "--nodelist=n2,n3", "sh", "-c", say).splitlines()

    assert sorted(lines) == ["0 0 0 n2", "1 1 0 n2", "2 0 1 n3", "3 1 1 n3"]


def test_a_batch_job_ends_and_is_accounted_for(cluster: Cluster) -> None:
    job = cluster.sbatch("#!/bin/sh\necho from $(hostname)\n", "--nodelist=n4")

    cluster.wait(job, "COMPLETED")
    assert cluster.output_of(job) == "from n4\n"
    assert cluster.job(job)["ExitCode"] == "0:0"
    eventually(lambda: cluster.sacct(job) == "COMPLETED", "the accounting to hear of it")


def test_waiting_ends_when_a_job_has_ended_in_another_state(cluster: Cluster) -> None:
    job = cluster.sbatch("#!/bin/sh\necho because\nexit 3\n")

    with pytest.raises(ClusterError, match=f"job {job} is FAILED, not TIMEOUT(.|\n)*because"):
        cluster.wait(job, "TIMEOUT", seconds=300)


def test_a_subprocess_gets_the_cluster_by_its_environment(cluster: Cluster, other: Cluster) -> None:
    for one, nodes in ((cluster, 8), (other, 2)):
        listed = subprocess.run(
            ["sinfo", "-hN", "-p", "main"], env={**os.environ, **one.env}, capture_output=True, text=True, check=True
        )
        assert len(listed.stdout.splitlines()) == nodes


def test_gpus_are_shared_out(cluster: Cluster) -> None:
    say = 'echo "$SLURM_GPUS_ON_NODE $SLURM_JOB_GPUS $CUDA_VISIBLE_DEVICES"'
    first = cluster.sbatch(f"#!/bin/sh\n{say}\nexec sleep 1000\n", "--nodelist=n1", "--gpus-per-node=1")
    second = cluster.sbatch(f"#!/bin/sh\n{say}\n", "--nodelist=n1", "--gpus-per-node=1")

    assert cluster.srun("--nodelist=n2", "--gpus-per-node=2", "sh", "-c", say).split() == ["2", "0,1"]  # no JOB_GPUS
    cluster.wait(second, "COMPLETED")
    cluster.scancel(str(first))
    cluster.wait(first, "CANCELLED")
    said = [cluster.output_of(job).splitlines()[0].split() for job in (first, second)]
    assert said == [["1", "0", "0"], ["1", "1", "1"]]


def test_more_gpus_than_there_are_are_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="not available"):
        cluster.sbatch("#!/bin/sh\n", "--gpus-per-node=3")


def test_memory_is_limited_to_what_was_asked_for(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="Out Of Memory"):
        cluster.srun("--mem=60", "python3", "-c", "bytearray(300 << 20)")


def test_nodes_share_all_files_but_those_under_tmp(cluster: Cluster) -> None:
    (cluster.work / "shared").write_text("seen by all")

    cluster.srun("--nodelist=n1", "touch", "/tmp/mine")
    listed = cluster.srun("--nodelist=n1", "ls", "/tmp").split()
    assert "mine" in listed
    assert "mine" not in cluster.srun("--nodelist=n2", "ls", "/tmp").split()
    assert cluster.srun("--nodelist=n2", "cat", f"{cluster.work}/shared") == "seen by all"


def test_nodes_find_each_other_and_nobody_else(cluster: Cluster) -> None:
    addresses = cluster.srun("--nodelist=n1", "getent", "hosts", "n2", "ctl").split()

    assert addresses[1::2] == ["n2", "ctl"]
    assert "default" not in cluster.srun("--nodelist=n1", "ip", "route")
