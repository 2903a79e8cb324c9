"""MNIST, trained by real ranks on two nodes: interrupted six times or not at all, it ends with the same weights."""

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.run import open_run
from slurm.cluster import Cluster
from slurm.launches import REPOSITORY, SLOW_S, Launch, launcher

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

NODES = ("n1", "n2")
START_S = 120.0
"""Four ranks import torch on two cores."""
SETTINGS = (
    "resources.nodes=2",
    "resources.tasks_per_node=2",
    "resources.gpus_per_node=0",
    "resources.cpus_per_task=2",
    "slurm.partition=low",
    f"slurm.nodelist=[{','.join(NODES)}]",
    "trainer.max_epochs=12",
    "trainer.limit_val_batches=4",
    "trainer.limit_test_batches=4",
    "trainer.callbacks=[]",
    "checkpoint.every_n_steps=20",
)


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("LAUNCHER_DATA", REPOSITORY / "data"))
    if not (folder / "MNIST/raw").exists() and "CI" not in os.environ:
        pytest.skip(f"no MNIST in {folder}; set LAUNCHER_DATA to the folder above MNIST/raw")
    return folder


def trained(cluster: Cluster, name: str, data: Path) -> Launch:
    """A run of jobs/mnist.yaml, submitted as a user does it."""
    words = [word for one in (*SETTINGS, f"env.vars.LAUNCHER_DATA={data}") for word in ("--set", one)]
    runs = cluster.work / "runs"
    spec = REPOSITORY / "jobs/mnist.yaml"
    options = ("--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)
    done = launcher(cluster, "run", spec, *options, *words)
    assert done.code == 0, done.err
    return Launch(cluster, open_run(runs, name), NODES)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, data: Path) -> Launch:
    return trained(cluster, "undisturbed", data).end(600)


@pytest.fixture(scope="module")
def disturbed(undisturbed: Launch, data: Path) -> Launch:
    """In turn: preempted, out of time, its node without power, requeued, a rank killed, preempted again."""
    cluster = undisturbed.cluster
    run = trained(cluster, "disturbed", data)

    def without_power() -> None:
        cluster.power_off(NODES[1])
        cluster.wait(run.job, "PENDING", seconds=90)
        cluster.power_on(NODES[1])

    disturbances: list[Callable[[], object]] = [
        run.preempt,
        run.run_out_of_time,
        without_power,
        partial(cluster.scontrol, "requeue", str(run.job)),
        partial(run.kill, rank=2),
        run.preempt,
    ]
    for attempt, disturb in enumerate(disturbances, start=1):
        run.until(partial(run.trains, attempt), f"attempt {attempt} to train", START_S + SLOW_S)
        disturb()
    return run.end(600)


def test_mnist_is_trained_on_two_nodes(undisturbed: Launch) -> None:
    print(undisturbed.told())
    status = undisturbed.status

    assert status["state"] == "finished"
    assert [one["cause"] for one in status["attempts"]] == ["finished"]
    assert status["metrics"]["test_acc"] > 0.9


def test_six_interruptions_leave_the_weights_the_same_to_the_last_bit(undisturbed: Launch, disturbed: Launch) -> None:
    print(disturbed.told())
    assert disturbed.status["state"] == "finished"
    causes = ["preempted", "timeout", "infra", "preempted", "infra", "preempted", "finished"]
    assert [one["cause"] for one in disturbed.status["attempts"]] == causes
    names = (undisturbed.run.id, disturbed.run.id)
    diff = launcher(disturbed.cluster, "checkpoints", "diff", *names, "--runs-root", disturbed.cluster.work / "runs")
    assert diff.code == 0, diff.out
    assert disturbed.status["metrics"] == undisturbed.status["metrics"]


def test_whoever_was_given_notice_has_lost_no_step(disturbed: Launch) -> None:
    attempts = disturbed.status["attempts"]
    print([(one["first_step"], one["last_step"], one["cause"]) for one in attempts])

    for before, after in pairwise(attempts):
        lost = before["last_step"] - after["first_step"]
        assert lost == 0 if before["cause"] in ("preempted", "timeout") else lost <= 20
