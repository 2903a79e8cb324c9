"""MNIST with XLA's compute on four hosts of the fake Cloud TPU: whatever befalls them, it ends with the same weights.

There is no TPU: PJRT_DEVICE is CPU, and gradients are averaged over gloo.
"""

import os
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Command, within

from launcher.run import Run
from launcher.status import status
from tpu.cloud import Cloud
from tpu.conftest import DATA
from tpu.slices import ZONE
from tpu.test_launcher import User

pytestmark = [pytest.mark.xla, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
MNIST = REPOSITORY / "jobs/mnist.yaml"
LONG_S = 600.0
"""Four ranks import torch and compile their programs, on two cores."""
EPOCH = 100
SETTINGS = (
    "resources.tasks_per_node=1",
    f"env.vars={{PJRT_DEVICE: CPU, LAUNCHER_DATA: {DATA}}}",
    "data.init_args.batch_size=64",
    "trainer.max_epochs=2",
    f"trainer.limit_train_batches={EPOCH}",
    "trainer.limit_val_batches=4",
    "trainer.limit_test_batches=4",
    # Half a minute of training, so that it is not over before it has been disturbed.
    "trainer.callbacks=[{class_path: slurm.pause.Pause, init_args: {seconds: 0.1}}]",
    "checkpoint.every_n_steps=10",
)
WORDS = ("run", MNIST, *(word for one in SETTINGS for word in ("--set", one)))

PARENT = f"projects/fake-project/locations/{ZONE}"
SENT = {
    "acceleratorTypes.get": set[str](),
    "runtimeVersions.get": set[str](),
    "queuedResources.create": {
        *("queuedResourceId", "requestId", "spot", "tpu.nodeSpec.parent", "tpu.nodeSpec.nodeId"),
        *(f"tpu.nodeSpec.node.{name}" for name in ("acceleratorType", "runtimeVersion")),
        "tpu.nodeSpec.node.networkConfig.enableExternalIps",
        *(f"tpu.nodeSpec.node.labels.launcher-{name}" for name in ("run", "attempt", "lease")),
        *(f"tpu.nodeSpec.node.metadata.{name}" for name in ("ssh-keys", "launcher-run")),
    },
    "queuedResources.get": set[str](),
    "queuedResources.delete": {"force", "requestId"},
    "nodes.get": set[str](),
    "nodes.getGuestAttributes": {"queryPath"},
}
"""All that is asked of the API, and what is sent with it."""


@pytest.fixture
def user(xla_python: Path, cloud: Cloud, runs: str, tmp_path: Path) -> Iterator[User]:
    """Who has a target with four hosts on which all trainings are XLA's."""
    if not (DATA / "MNIST/raw").exists():
        if "CI" not in os.environ:
            pytest.skip(f"no MNIST in {DATA}; set LAUNCHER_DATA to the folder above MNIST/raw")
        from model.mnist import MNISTDataModule

        MNISTDataModule(root=str(DATA)).prepare_data()  # hosts have no network
    one = User(cloud, runs, tmp_path)
    one.target = {
        "kind": "tpu",
        "trainer": {"strategy": "xla"},
        "tpu": {
            "project": "fake-project",
            "zone": ZONE,
            "accelerator_type": "v4-32",
            "python": str(xla_python),
        },
    }
    one.env["PYTHONPATH"] += f":{REPOSITORY}/tests"
    yield one
    one.end()
    cloud.order("restock")
    for left in cloud.status()["queuedResources"]:
        cloud.call("DELETE", left["name"], force="true")


def untouched(python: Path, user: User) -> Path:
    """Where the last checkpoint of the same training is: four ranks on this machine."""
    env = {**user.env, "LAUNCHER_RUNS": str(user.folder / "here")}
    words = ("--name", "untouched", "--no-check", "--set", "trainer.strategy=xla", "--set", "resources.nodes=4")
    command = [python, "-m", "launcher.cli.main", *WORDS, *words]
    done = subprocess.run(command, cwd=user.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = user.folder / "here/untouched/checkpoints"
    return max(saved.glob("step-*")) / "checkpoint.ckpt"


class Training:
    """A run on the cloud, as it is seen from here."""

    def __init__(self, run: Run, command: Command) -> None:
        self.run, self._command = run, command

    def until(self, attempt: int, steps: int) -> str:
        """Have an attempt take so many steps and save once. Returns the name of its machines."""

        def taken() -> bool:
            assert self._command.process.poll() is None, self._command.output
            state, found = self.run.ledger.refresh(), self._read(attempt, "progress")
            saved = any(one.attempt == attempt for one in state.checkpoints)
            return saved and found["step"] >= state.attempts[attempt - 1].first_step + steps

        assert within(LONG_S, taken), self._command.output
        return str(self._read(attempt, "slice")["name"])

    def _read(self, attempt: int, what: str) -> dict[str, Any]:
        return self.run.read_json(f"attempts/{attempt:03d}/{what}.json") or {}


def waits(cloud: Cloud, name: str) -> bool:
    """Whether whoever asked for machines of a name that ends so has heard that there are none."""
    asked = (one for one in cloud.requests() if one["method"] == "queuedResources.get" and one["path"].endswith(name))
    return any(one["answer"].get("state", {}).get("state") == "WAITING_FOR_RESOURCES" for one in asked)


def named(request: dict[str, Any]) -> str:
    """The last part of its path."""
    return str(request["path"]).rpartition("/")[2]


def sent(request: dict[str, Any]) -> set[str]:
    """Names of all fields and parameters of a request."""

    def names(value: Any, above: str) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for name, below in value.items():
                yield from names(below, f"{above}.{name}" if above else name)
        elif isinstance(value, list):
            for below in value:
                yield from names(below, above)
        elif above:
            yield above

    return {*names(request["query"], ""), *names(request["body"], "")}


def test_preempted_then_a_host_lost_then_sold_out_it_ends_with_the_weights_of_one_that_was_never_touched(
    xla_python: Path, user: User, cloud: Cloud
) -> None:
    reference = untouched(xla_python, user)
    before = len(cloud.requests())

    far = user.start(*WORDS, "--name", "mnist", "--on", "cloud")
    assert within(LONG_S, lambda: "run mnist" in far.output), far.output
    training = Training(user.run_of("mnist"), far)
    cloud.order("preempt", node=training.until(attempt=1, steps=20), grace=25)
    machines = training.until(attempt=2, steps=15)
    cloud.order("sell_out", what=ZONE)
    cloud.order("lose_host", node=machines, worker=2)
    assert within(LONG_S, lambda: waits(cloud, "-a3-1")), far.output
    cloud.order("restock")

    assert far.wait(LONG_S) == 0, far.output
    state = training.run.ledger.refresh()
    first, second, third = state.attempts
    assert [one.cause for one in state.attempts] == ["preempted", "infra", "finished"]
    assert "saved and left at SIGTERM" in first.reason
    assert 20 <= second.first_step == first.last_step < 2 * EPOCH
    assert second.first_step % EPOCH, "within an epoch"
    assert "host 2 does not answer" in second.reason
    assert second.first_step < third.first_step < 2 * EPOCH
    shown = status(training.run)
    assert (shown["step"], shown["precision"], shown["compute"]) == (2 * EPOCH, "bf16-mixed", "bfloat16")
    assert "XLA on PJRT_DEVICE=CPU, gradients averaged over gloo" in user("logs", "mnist", "--attempt", "1")[1]
    code, said = user("checkpoints", "diff", "mnist", reference)
    assert code == 0, said

    assert cloud.status()["nodes"] == cloud.status()["queuedResources"] == []
    requests = cloud.requests()[before:]
    assert {one["method"] for one in requests} == {*SENT}
    assert {one["status"] for one in requests} == {200, 404}, "nothing was refused, unknown fields for example"
    for method, fields in SENT.items():
        assert set[str]().union(*(sent(one) for one in requests if one["method"] == method)) == fields, method
    asked = [one for one in requests if one["method"] == "queuedResources.create"]
    deleted = [one for one in requests if one["method"] == "queuedResources.delete"]
    names = [one["query"]["queuedResourceId"] for one in asked]
    order = [one["query"].get("queuedResourceId") or named(one) for one in requests if one in asked + deleted]
    assert [name for name, _ in groupby(order)] == names, "each is deleted before the next is asked for"
    assert {named(one) for one in deleted} == {*names}
    assert len(names) == len({*names}) == 3
    for one in asked:
        (spec,) = one["body"]["tpu"]["nodeSpec"]
        assert (one["body"]["spot"], spec["parent"], spec["node"]["acceleratorType"]) == ({}, PARENT, "v4-32")
