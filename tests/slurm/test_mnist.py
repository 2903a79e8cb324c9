"""MNIST, trained by real ranks on two nodes: interrupted six times or not at all, it ends with the same weights."""

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.runs import open_run
from model.mnist import MNISTDataModule
from slurm.cluster import Cluster
from slurm.conftest import DATA
from slurm.launches import REPOSITORY, SLOW_S, Launch, launcher

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

START_S = 120.0
"""Four ranks import torch on two cores."""
SAVED_EACH = 10
SETTINGS = (
    "resources.nodes=2",
    "resources.tasks_per_node=2",
    "resources.gpus_per_node=0",
    "resources.cpus_per_task=1",  # a thread a rank: there are two cores for eight of them
    "slurm.partition=low",
    "data.init_args.batch_size=64",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=130",
    "trainer.limit_val_batches=4",
    "trainer.limit_test_batches=4",
    # A minute of training, so that it is not over before it has been disturbed: Slurm looks at limits each 30 s.
    "trainer.callbacks=[{class_path: slurm.pause.Pause, init_args: {seconds: 0.1}}]",
    f"checkpoint.every_n_steps={SAVED_EACH}",
)


@pytest.fixture(scope="module")
def data() -> Path:
    if not (DATA / "MNIST/raw").exists() and "CI" not in os.environ:
        pytest.skip(f"no MNIST in {DATA}; set LAUNCHER_DATA to the folder above MNIST/raw")
    MNISTDataModule(root=str(DATA)).prepare_data()  # nodes may have no network
    return DATA


@pytest.fixture(scope="module")
def started(cluster: Cluster, data: Path) -> tuple[Launch, Launch]:
    """Two runs, of which the second is disturbed: while that waits, the other has the machine for itself."""
    return trained(cluster, ("n1", "n2"), data), trained(cluster, ("n3", "n4"), data)


def trained(cluster: Cluster, nodes: tuple[str, ...], data: Path) -> Launch:
    """A run of jobs/mnist.yaml, submitted as a user does it."""
    name, runs = f"mnist-{nodes[0]}", cluster.work / "runs"
    settings = (*SETTINGS, f"slurm.nodelist=[{','.join(nodes)}]", f"env.vars.LAUNCHER_DATA={data}")
    words = [word for one in settings for word in ("--set", one)]
    options = ("--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)
    done = launcher(cluster, "run", REPOSITORY / "jobs/mnist.yaml", *options, *words)
    assert done.code == 0, done.err
    return Launch(cluster, open_run(runs, name), nodes)


@pytest.fixture(scope="module")
def undisturbed(started: tuple[Launch, Launch]) -> Launch:
    return started[0].end(600)


@pytest.fixture(scope="module")
def disturbed(started: tuple[Launch, Launch]) -> Launch:
    """In turn: preempted, out of time, its node without power, requeued, a rank killed, preempted again."""
    run = started[1]

    def without_power() -> None:
        run.cluster.power_off(run.nodes[1])
        run.cluster.wait(run.job, "PENDING", seconds=90)
        run.cluster.power_on(run.nodes[1])

    disturbances: list[Callable[[], object]] = [
        run.preempt,
        run.run_out_of_time,
        without_power,
        lambda: run.cluster.scontrol("requeue", str(run.job)),
        partial(run.kill, rank=2),
        run.preempt,
    ]
    for attempt, disturb in enumerate(disturbances, start=1):
        run.until(partial(run.trains, attempt), f"attempt {attempt} to train", START_S + SLOW_S)
        disturb()
    return run.end(600)


def test_six_interruptions_leave_the_weights_the_same_to_the_last_bit(disturbed: Launch, undisturbed: Launch) -> None:
    print(disturbed.told())
    assert disturbed.status["state"] == "finished"
    causes = ["preempted", "timeout", "infra", "preempted", "infra", "preempted", "finished"]
    assert [one["cause"] for one in disturbed.status["attempts"]] == causes
    names = (undisturbed.run.id, disturbed.run.id)
    diff = launcher(disturbed.cluster, "checkpoints", "diff", *names, "--runs-root", disturbed.cluster.work / "runs")
    assert diff.code == 0, diff.out
    assert disturbed.status["metrics"] == undisturbed.status["metrics"]


def test_mnist_is_trained_on_two_nodes(undisturbed: Launch) -> None:
    print(undisturbed.told())
    status = undisturbed.status

    assert status["state"] == "finished"
    assert [one["cause"] for one in status["attempts"]] == ["finished"]
    assert status["metrics"]["test_acc"] > 0.9


def test_whoever_was_given_notice_has_lost_no_step(disturbed: Launch) -> None:
    attempts = disturbed.status["attempts"]
    print([(one["first_step"], one["last_step"], one["cause"]) for one in attempts])

    for before, after in pairwise(attempts):
        lost = before["last_step"] - after["first_step"]
        assert lost == 0 if before["cause"] in ("preempted", "timeout") else lost <= SAVED_EACH
