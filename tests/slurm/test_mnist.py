"""MNIST, trained by real ranks on two nodes: however it is interrupted, it ends with the same weights as untouched."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.runs import open_run
from model.mnist import MNISTDataModule
from slurm.cluster import Cluster
from slurm.conftest import DATA
from slurm.launches import REPOSITORY, SLOW_S, Launch, launcher

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

START_S = 120.0
"""Four ranks import torch on two cores."""
END_S = 900.0
SAVED_EACH = 10
GRACE_S = 15
SETTINGS = (
    "resources.nodes=2",
    "resources.tasks_per_node=2",
    "resources.gpus_per_node=0",
    "resources.cpus_per_task=1",  # a thread a rank: there are two cores for eight of them
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


class Policy(NamedTuple):
    """How a partition's jobs make way for others."""

    mode: str
    grace_s: int


TURNS = {
    "with user signals": (Policy("CANCEL", GRACE_S), Policy("CANCEL", 0), Policy("REQUEUE", 0)),
    "without user signals": (Policy("REQUEUE", GRACE_S), Policy("CANCEL", 0)),
}
"""Under which a run of each site is preempted, one after the other."""
PREEMPTED = "lowcancel"
"""Their partition."""


def govern(cluster: Cluster, partition: str, policy: Policy) -> None:
    update = (f"partitionname={partition}", f"preemptmode={policy.mode}", f"gracetime={policy.grace_s}")
    cluster.scontrol("update", *update)


@pytest.fixture(scope="module")
def graceful(cluster: Cluster, other: Cluster) -> Iterator[None]:
    """What a busy machine needs; then as it was."""
    govern(cluster, "low", Policy("REQUEUE", GRACE_S))
    yield
    govern(cluster, "low", Policy("REQUEUE", cluster.settings.grace_seconds))
    for one in (cluster, other):
        govern(one, PREEMPTED, Policy("CANCEL", one.settings.grace_seconds))


@pytest.fixture(scope="module")
def played(cluster: Cluster, other: Cluster, data: Path, graceful: None) -> Iterator[dict[str, Future[Launch]]]:
    """All runs at the same time, by what is done to them."""

    def run(name: str, where: Cluster, *nodes: str, partition: str) -> Launch:
        """Of jobs/mnist.yaml, submitted as a user does it, into the folder that all of them share."""
        runs = cluster.work / "runs"
        nodes_of_it = f"slurm.nodelist=[{','.join(nodes)}]"
        settings = (*SETTINGS, nodes_of_it, f"slurm.partition={partition}", f"env.vars.LAUNCHER_DATA={data}")
        words = [word for one in settings for word in ("--set", one)]
        options = ("--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)
        done = launcher(where, "run", REPOSITORY / "jobs/mnist.yaml", *options, *words)
        assert done.code == 0, done.err
        return Launch(where, open_run(runs, name), nodes)

    whole = run("whole", cluster, "n1", "n2", partition="low")
    torn = run("torn", cluster, "n3", "n4", partition="low")
    here = run("here", cluster, "n5", "n6", partition=PREEMPTED)
    there = run("there", other, "n1", "n2", partition=PREEMPTED)
    with ThreadPoolExecutor(4) as pool:
        yield {
            "nothing": pool.submit(whole.end, END_S),
            "all": pool.submit(interrupt, torn, in_turn(torn)),
            "with user signals": pool.submit(interrupt, here, preemptions(here, TURNS["with user signals"])),
            "without user signals": pool.submit(interrupt, there, preemptions(there, TURNS["without user signals"])),
        }


def in_turn(run: Launch) -> list[Callable[[], object]]:
    """Preempted, out of time, its node without power, requeued, a rank killed, preempted again."""

    def without_power() -> None:
        run.cluster.power_off(run.nodes[1])
        run.cluster.wait(run.job, "PENDING", seconds=90)
        run.cluster.power_on(run.nodes[1])

    return [
        run.preempt,
        run.run_out_of_time,
        without_power,
        lambda: run.cluster.scontrol("requeue", str(run.job)),
        partial(run.kill, rank=2),
        run.preempt,
    ]


def preemptions(run: Launch, turns: Iterable[Policy]) -> list[Callable[[], object]]:
    def preempt(policy: Policy) -> None:
        govern(run.cluster, PREEMPTED, policy)
        run.preempt()

    return [partial(preempt, policy) for policy in turns]


def interrupt(run: Launch, disturbances: list[Callable[[], object]]) -> Launch:
    """Each attempt once it trains."""
    for attempt, disturb in enumerate(disturbances, start=1):
        run.until(partial(run.trains, attempt), f"attempt {attempt} to train", START_S + SLOW_S)
        disturb()
    return run.end(END_S)


@pytest.fixture
def undisturbed(played: dict[str, Future[Launch]]) -> Launch:
    return played["nothing"].result()


@pytest.fixture
def disturbed(played: dict[str, Future[Launch]]) -> Launch:
    return played["all"].result()


@pytest.fixture(params=TURNS)
def preempted(played: dict[str, Future[Launch]], request: pytest.FixtureRequest) -> tuple[Launch, tuple[Policy, ...]]:
    return played[request.param].result(), TURNS[request.param]


def assert_same(run: Launch, undisturbed: Launch) -> None:
    """To the last bit: weights, optimizer, all that a checkpoint has."""
    assert run.status["state"] == "finished"
    names, root = (undisturbed.run.id, run.run.id), Path(run.run.storage.root).parent
    diff = launcher(run.cluster, "checkpoints", "diff", *names, "--runs-root", root)
    assert diff.code == 0, diff.out
    assert run.status["metrics"] == undisturbed.status["metrics"]


def lost_steps(run: Launch) -> list[int]:
    """With each attempt but the last."""
    attempts = run.status["attempts"]
    print([(one["first_step"], one["last_step"], one["cause"]) for one in attempts])
    return [before["last_step"] - after["first_step"] for before, after in pairwise(attempts)]


def test_six_interruptions_leave_the_weights_the_same_to_the_last_bit(disturbed: Launch, undisturbed: Launch) -> None:
    print(disturbed.told())
    causes = ["preempted", "timeout", "infra", "preempted", "infra", "preempted", "finished"]
    assert [one["cause"] for one in disturbed.status["attempts"]] == causes
    assert_same(disturbed, undisturbed)


def test_mnist_is_trained_on_two_nodes(undisturbed: Launch) -> None:
    print(undisturbed.told())
    status = undisturbed.status

    assert status["state"] == "finished"
    assert [one["cause"] for one in status["attempts"]] == ["finished"]
    assert status["metrics"]["test_acc"] > 0.9


def test_whoever_was_given_notice_has_lost_no_step(disturbed: Launch) -> None:
    for attempt, lost in zip(disturbed.status["attempts"], lost_steps(disturbed), strict=False):
        assert lost == 0 if attempt["cause"] in ("preempted", "timeout") else lost <= SAVED_EACH


def test_however_jobs_are_preempted_the_weights_are_the_same_to_the_last_bit(
    preempted: tuple[Launch, tuple[Policy, ...]], undisturbed: Launch
) -> None:
    run, turns = preempted
    print(run.told())
    assert [one["cause"] for one in run.status["attempts"]] == [*["preempted"] * len(turns), "finished"]
    assert_same(run, undisturbed)


def test_with_grace_no_step_is_lost(preempted: tuple[Launch, tuple[Policy, ...]]) -> None:
    run, turns = preempted
    for policy, lost in zip(turns, lost_steps(run), strict=True):
        assert lost == 0 if policy.grace_s else lost <= SAVED_EACH
