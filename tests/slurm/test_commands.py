"""What the launcher asks of Slurm's commands, of the real ones."""

import pytest

from launcher.backends.slurm import commands
from launcher.backends.slurm.commands import SlurmError
from slurm.cluster import Cluster
from slurm.scenarios import FOR_EVER, eventually

pytestmark = pytest.mark.slurm

NODE = "--nodelist=n8"


@pytest.fixture(autouse=True)
def login_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")


def test_a_job_with_a_step_is_seen_signalled_requeued_and_cancelled(cluster: Cluster) -> None:
    comment = "run=x\nReason=none  StdIn"
    script = "#!/bin/sh\nsrun --job-name=attempt-001 sleep 1000\nexec sleep 1000\n"
    job = str(cluster.sbatch(script, NODE, "--job-name=a b", f"--comment={comment}", "--requeue"))
    eventually(lambda: "attempt-001" in commands.steps(job), "the step")

    seen = commands.show_job(job)
    assert (seen.id, seen.name, seen.state, seen.hosts, seen.comment) == (job, job, "RUNNING", "n8", comment)
    [listed] = [one for one in commands.queued("root") if one.id == job]
    assert (listed.name, listed.comment, listed.state) == ("a b", comment, "RUNNING")
    assert seen.end is not None
    assert listed.start is not None
    assert listed.start < seen.end

    commands.signal_step(commands.steps(job)["attempt-001"], "KILL")
    eventually(lambda: "attempt-001" not in commands.steps(job), "the step to end")
    assert commands.show_job(job).state == "RUNNING"

    commands.requeue(job)
    assert commands.show_job(job).restarts == 1
    commands.cancel(job)
    cluster.wait(int(job), "CANCELLED")


def test_an_element_of_an_array_is_requeued_without_the_others(cluster: Cluster) -> None:
    array = cluster.sbatch(FOR_EVER, NODE, "--array=1-2", "--requeue")
    names = [f"{array}_{task}" for task in (1, 2)]
    eventually(lambda: all(commands.show_job(name).state == "RUNNING" for name in names), "both elements")
    last = next(job for job in map(commands.show_job, names) if job.id == str(array))

    commands.requeue(commands.show_job(last.id).name)

    assert [commands.show_job(name).restarts for name in names] == [int(name == last.name) for name in names]
    commands.cancel(str(array))


def test_a_waiting_job_is_kept_from_hosts_and_one_that_has_ended_is_not(cluster: Cluster) -> None:
    waiting = str(cluster.sbatch(FOR_EVER, "--hold"))

    commands.exclude(waiting, ["n1", "n2"])

    assert "ExcNodeList=n[1-2]" in cluster.output("scontrol", "show", "job", waiting).replace("n1,n2", "n[1-2]")
    commands.cancel(waiting)
    with pytest.raises(SlurmError, match="ExcNodeList=n3: exit code 1, it said: "):
        commands.exclude(waiting, ["n3"])


def test_a_start_is_estimated_or_refused() -> None:
    assert commands.start_estimate(["--wrap=true"]) is not None
    with pytest.raises(SlurmError, match="invalid partition specified: nowhere"):
        commands.start_estimate(["--partition=nowhere", "--wrap=true"])
    with pytest.raises(SlurmError, match="Requested node configuration is not available"):
        commands.start_estimate(["--nodes=8", "--exclude=n1", "--wrap=true"])


def test_an_unknown_job_has_no_steps_and_is_not_shown() -> None:
    assert commands.steps("99999") == {}
    with pytest.raises(SlurmError, match="Invalid job id specified"):
        commands.show_job("99999")
