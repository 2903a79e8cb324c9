"""What a user sees of a run that waits, and what becomes of one whose submission was cut short."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.commands import LAUNCHER, Done

from launcher.events import Submitted, Submitting
from launcher.runs import open_run
from slurm.cluster import Cluster
from slurm.launches import Launch, clear, launch, launcher, written

pytestmark = pytest.mark.slurm

HELD = {"additional_parameters": {"hold": True}}
_SBATCH = """#!/bin/sh
case "$*" in *--test-only*|*--version*) exec /usr/bin/sbatch "$@" ;; esac
{before}
/usr/bin/sbatch "$@"
kill -9 $PPID
"""


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    clear(cluster)


def submitted(cluster: Cluster, *words: str, name: str = "", **env: str) -> tuple[Done, Launch]:
    """`launcher run`, of a job that is held, and the run that it made."""
    name = name or f"q{time.monotonic_ns()}"
    spec = written(cluster.work / "specs" / name, slurm=HELD)
    runs = cluster.work / "runs"
    words = ("run", str(spec), "--on", "slurm", "--no-check", "--name", name, "--runs-root", str(runs), *words)
    return launcher(cluster, *words, **env), Launch(cluster, open_run(runs, name), ())


def living(cluster: Cluster) -> set[int]:
    """All jobs that wait or run."""
    return {job for job, state in cluster.squeue().items() if state in ("PENDING", "RUNNING", "COMPLETING")}


def reconcile(cluster: Cluster) -> Done:
    return launcher(cluster, "reconcile", "--runs-root", cluster.work / "runs")


# -- run, status, plan, logs


def test_run_submits_and_returns_at_once(cluster: Cluster) -> None:
    done, run = submitted(cluster)

    assert done.code == 0, done.err
    assert run.run.id in done.out
    assert str(run.job) in done.out
    kinds = [type(one.event) for one in run.entries()]
    assert kinds == [Submitting, Submitted]
    assert living(cluster) >= {run.job}
    run.launcher("cancel")


def test_run_tells_programs_the_run_and_its_job(cluster: Cluster) -> None:
    done, run = submitted(cluster, "--json")

    answer = done.answer
    assert (answer["run"], answer["state"], str(answer["job"])) == (run.run.id, "queued", str(run.job))
    run.launcher("cancel")


def test_status_says_why_a_job_waits(cluster: Cluster) -> None:
    _, held = submitted(cluster)
    first = launch(cluster, ("n1", "n2"))
    first.until(first.trains, "it to train")
    second = launch(cluster, ("n1", "n2"))
    second.until(lambda: cluster.job(second.job)["Reason"] != "None", "Slurm to say why it waits")

    assert held.status["state"] == second.status["state"] == "queued"
    assert held.status["scheduler"]["reason"] == "JobHeldUser"
    assert second.status["scheduler"]["reason"] in ("Resources", "Priority", "ReqNodeNotAvail")
    assert first.status["state"] == "running"


def test_plan_prints_the_script_and_how_ranks_are_started_and_does_nothing(cluster: Cluster) -> None:
    spec = written(cluster.work / "specs/plan", slurm={"partition": "low", **HELD})
    before, runs = living(cluster), cluster.work / "no runs"

    done = launcher(cluster, "plan", spec, "--on", "slurm", "--runs-root", runs)

    assert done.code == 0, done.err
    for part in (
        "#SBATCH --nodes=2",
        "#SBATCH --partition=low",
        "srun",
        "--kill-on-bad-exit=1",
        "launcher.node.worker",
    ):
        assert part in done.out
    assert living(cluster) == before
    assert not runs.exists()


def test_logs_follows_a_run_on_another_machine_to_its_end(cluster: Cluster) -> None:
    run = launch(cluster, ("n1", "n2"), {"*": [["print", "hello"], ["train", 0.1, 5]]})
    root, name = os.path.split(run.run.storage.root)
    env = {**os.environ, **cluster.env}
    argv = [LAUNCHER, "logs", "-f", name, "--runs-root", root]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
        try:
            run.finish()
            told, _ = following.communicate(timeout=120)
        finally:
            following.kill()  # leaving the block waits for it

    assert following.returncode == 0, told
    assert "hello" in told
    assert "finished" in told


def test_interrupting_logs_leaves_the_run_alone(cluster: Cluster) -> None:
    run = launch(cluster, ("n1", "n2"))
    run.until(run.trains, "it to train")
    with pytest.raises(subprocess.TimeoutExpired):
        run.launcher("logs", "-f", seconds=2)

    assert run.status["state"] == "running"
    run.finish()
    assert run.causes == ["finished"]


# -- a submission that is cut short


def sbatch(folder: Path, before: str = "") -> dict[str, str]:
    """An environment in which sbatch is the end of whoever calls it: afterwards, or `before`."""
    folder.mkdir(parents=True)
    program = folder / "sbatch"
    program.write_text(_SBATCH.format(before=before))
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def crashed(cluster: Cluster, before: str = "") -> Launch:
    name = f"q{time.monotonic_ns()}"
    done, run = submitted(cluster, name=name, **sbatch(cluster.work / "bin" / name, before))
    assert done.code == -9, f"{done.out}\n{done.err}"
    assert [type(one.event) for one in run.entries()] == [Submitting]
    run.age()
    return run


def test_a_job_whose_submission_was_cut_short_is_found_and_there_is_one_of_it(cluster: Cluster) -> None:
    before = living(cluster)
    run = crashed(cluster)
    assert len(living(cluster) - before) == 1

    for _ in range(2):
        done = reconcile(cluster)
        assert done.code == 0, done.err
        assert living(cluster) - before == {run.job}
    assert run.status["state"] == "queued"
    assert run.launcher("cancel").code == 0
    assert living(cluster) - before == set()


def test_a_run_that_was_never_submitted_is_submitted(cluster: Cluster) -> None:
    before = living(cluster)
    run = crashed(cluster, before="kill -9 $PPID; exit 1")
    assert living(cluster) == before

    for _ in range(2):
        done = reconcile(cluster)
        assert done.code == 0, done.err
        assert living(cluster) - before == {run.job}
    assert run.launcher("cancel").code == 0


def test_a_job_that_was_found_starts_the_run(cluster: Cluster) -> None:
    """Whichever of the two has been kept, it has its payload: its supervisor takes the run over."""
    run = crashed(cluster)
    assert reconcile(cluster).code == 0

    cluster.scontrol("release", str(run.job))
    run.until(lambda: run.run.ledger.refresh().driver, "its supervisor")
    assert run.launcher("cancel").code == 0
    run.end()
    assert run.status["state"] == "cancelled"


def test_a_job_that_started_before_it_had_its_payload_makes_way_for_another(cluster: Cluster) -> None:
    before = living(cluster)
    run = crashed(cluster)
    (orphan,) = living(cluster) - before
    cluster.scontrol("release", str(orphan))
    cluster.wait(orphan, "RUNNING")

    assert reconcile(cluster).code == 0
    assert run.job != orphan
    run.until(lambda: living(cluster) - before == {run.job}, "the orphan to end")
    assert run.launcher("cancel").code == 0


def test_reconcile_leaves_runs_alone_that_go_well(cluster: Cluster) -> None:
    run = launch(cluster, ("n1", "n2"))
    run.until(run.trains, "it to train")

    done = reconcile(cluster)

    assert done.code == 0, done.err
    run.finish()
    assert run.causes == ["finished"]
    assert len(run.jobs) == 1


def test_a_job_that_fails_before_it_begins_is_left_to_the_user(cluster: Cluster) -> None:
    """It might fail again and again."""
    run = launch(cluster, ("n1", "n2"), slurm=HELD)
    failed = run.job
    for pickle in Path(run.run.storage.root).rglob("*.pkl"):
        pickle.write_bytes(b"")
    cluster.scontrol("release", str(failed))
    run.until(lambda: not run.in_queue(), "the job to fail")
    run.age()

    assert f"job {failed} ended as FAILED" in reconcile(cluster).out
    assert run.jobs == [failed]
    assert run.launcher("resume", "--no-check").code == 0
    assert run.in_queue() == [run.job]
    assert run.launcher("cancel").code == 0
