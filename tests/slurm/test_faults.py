"""Nodes and daemons fail, jobs go on or come back."""

import time
from typing import Any

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.scenarios import FOR_EVER, Recording, eventually, record

pytestmark = pytest.mark.slurm


def goes_on(recording: Recording) -> None:
    now = time.time()
    eventually(lambda: recording.last_beat("step") > now, "a sign of the job's life", seconds=30)


def test_a_node_that_is_taken_for_lost_fails_its_job_at_once(observed: Any, cluster: Cluster) -> None:
    job = cluster.sbatch(FOR_EVER, "--nodelist=n8", "--requeue")
    cluster.wait(job, "RUNNING")

    cluster.fail("n8")
    cluster.wait(job, "PENDING", seconds=60)
    cluster.resume("n8")

    cluster.wait(job, "RUNNING")
    assert cluster.job(job)["Restarts"] == "1"
    cluster.scancel(str(job))


def test_a_drained_node_takes_no_new_jobs(observed: Any, cluster: Cluster) -> None:
    old = cluster.sbatch(FOR_EVER, "--nodelist=n8")
    cluster.wait(old, "RUNNING")

    cluster.drain("n8")
    new = cluster.sbatch("#!/bin/sh\n", "--nodelist=n8")
    time.sleep(3)
    assert cluster.squeue()[old] == "RUNNING"
    assert cluster.squeue()[new] == "PENDING"
    cluster.resume("n8")

    cluster.wait(new, "COMPLETED")
    cluster.scancel(str(old))


def test_jobs_outlive_slurmd(observed: Any, cluster: Cluster) -> None:
    recording = record(cluster, "--nodelist=n8")

    cluster.kill_slurmd("n8")
    assert cluster.status()[8] == ("n8", "slurmd down")
    time.sleep(2)
    cluster.start_slurmd("n8")

    goes_on(recording)
    assert cluster.squeue()[recording.job] == "RUNNING"
    cluster.scancel(str(recording.job))
    cluster.wait(recording.job, "CANCELLED")
    eventually(lambda: time.time() - recording.last_beat("step") > 2, "slurmd to end the job")


def test_a_node_without_power_is_noticed_and_its_job_starts_again(observed: Any) -> None:
    seen = observed("no power")

    assert seen["state at once"] == "RUNNING"
    assert seen["lived"] < 1
    assert 5 < seen["noticed"] < 90
    assert "DOWN" in seen["node"]
    assert seen["restarts"] == "1"
    assert seen["accounting"][0] == "NODE_FAIL"


def test_a_node_without_network_goes_on_with_a_job_that_was_given_up(observed: Any) -> None:
    seen = observed("no network")

    assert seen["state"] == "NODE_FAIL"
    assert 5 < seen["noticed"] < 90
    assert seen["lived"] > 1


def test_jobs_outlive_slurmctld(quiet: Cluster) -> None:
    recording = record(quiet, "--nodelist=n1,n2", "--nodes=2")
    started = time.time()
    saved = quiet.layout.folder / "controller/job_state"
    eventually(lambda: saved.stat().st_mtime > started, "slurmctld to save the job: a crash before forgets it")

    quiet.kill_ctld()
    with pytest.raises(ClusterError):
        quiet.output("squeue", seconds=20)
    goes_on(recording)
    quiet.start_ctld()

    assert quiet.squeue()[recording.job] == "RUNNING"
    goes_on(recording)
    quiet.scancel(str(recording.job))
    quiet.wait(recording.job, "CANCELLED")


def test_without_slurmdbd_the_queue_answers_and_the_accounting_does_not(quiet: Cluster) -> None:
    quiet.kill_dbd()
    job = quiet.sbatch("#!/bin/sh\n", "--nodelist=n3")
    quiet.wait(job, "COMPLETED")
    with pytest.raises(ClusterError, match="sacct"):
        quiet.sacct(job)

    quiet.start_dbd()
    eventually(lambda: quiet.sacct(job) == "COMPLETED", "what had happened meanwhile to be accounted for")


def test_jobs_are_not_requeued_where_the_site_does_not(other: Cluster, observed: Any) -> None:
    observed("preempted, user signals off")
    job = other.sbatch(FOR_EVER, "--nodelist=n1")
    other.wait(job, "RUNNING")

    other.fail("n1")
    assert other.wait(job, "NODE_FAIL", seconds=60)
    other.resume("n1")
