"""One run goes from this machine to Slurm, to the fake Cloud TPU and back: at the exact step each time.

There is no TPU: on the fake's hosts, XLA computes on the CPU.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import readme
import torch
from cli.commands import Command, Done, within
from slurm.cluster import Cluster
from tensorboard.backend.event_processing import event_accumulator
from tpu.cloud import Cloud
from tpu.slices import ZONE

from launcher.address import split
from launcher.checkpoints import in_order
from launcher.mirror import fetch
from launcher.run import Run
from launcher.runs import open_run
from launcher.status import status

REPOSITORY = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "launcher.cli.main")
SECTION = readme.section("From place to place")
CANCEL, TO_SLURM, _, TO_TPU, _, TO_HERE = (
    shlex.split(line)[1:] for line in re.findall(r"^launcher .*traveller.*$", SECTION, re.MULTILINE)
)
"""The README's commands, in its order."""
pytestmark = pytest.mark.timeout(1800)

LONG_S = 600.0
"""Each place brings up ranks, on a machine that is busy with other things."""
BEING_RENAMED = shutil.ignore_patterns("*.save_tmp")
"""By submitit, as a job ends."""
STEPS = 160
"""In four epochs. A step sees two batches: one rank does both, or two share them."""
AT_ONCE = ("--set", "trainer.callbacks=[]")
"""Where nobody interrupts it, a training need not take its time."""
SPEC: dict[str, Any] = {
    "name": "traveller",
    "seed_everything": 1,
    "model": {"class_path": "model.mnist.MNISTClassifier"},
    "data": {"class_path": "model.digits.DigitsDataModule", "init_args": {"batch_size": 32}},
    "trainer": {
        "max_epochs": 8,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "slurm.pause.Pause", "init_args": {"seconds": 0.25}}],
    },
    "resources": {"cpus_per_task": 1, "gpus_per_node": 0, "time": "10m"},
    "env": {"vars": {"PJRT_DEVICE": "CPU"}},
    "retry": {"infra": 0},
}


class User:
    """Somebody with a cluster, a cloud, and a folder that the cluster's nodes see."""

    def __init__(self, cluster: Cluster, cloud: Cloud, xla_python: Path, folder: Path) -> None:
        self.cloud, self.folder, self.runs = cloud, folder, cluster.work / "runs"
        self.spec = folder / "job.yaml"
        self.spec.write_text(json.dumps(SPEC))
        tpu = {"project": "fake-project", "zone": ZONE, "accelerator_type": "v4-16", "python": str(xla_python)}
        (folder / "launcher/targets").mkdir(parents=True)
        target = {"kind": "tpu", "trainer": {"strategy": "xla"}, "tpu": tpu}
        (folder / "launcher/targets/my-tpu.yaml").write_text(json.dumps(target))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "CLOUDSDK", "GCE"))}
        own = {name: str(folder) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "LAUNCHER_SCRATCH")}
        path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
        self._env = {**kept, **own, "LAUNCHER_RUNS": str(self.runs), "PYTHONPATH": path, **cluster.env, **cloud.env}
        self._started: list[Command] = []

    def __call__(self, *words: str | Path, **env: str) -> Done:
        done = subprocess.run(
            [*LAUNCHER, *map(str, words)],
            cwd=REPOSITORY,
            env={**self._env, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path) -> Command:
        self._started.append(Command([*LAUNCHER, *map(str, words)], self.folder, cwd=REPOSITORY, env=self._env))
        return self._started[-1]

    def end(self) -> None:
        for one in self._started:
            one.end()

    def leaves(self, run: Run, attempt: int, step: int) -> int:
        """Have that attempt go so far, save and leave. Returns the step that it left at."""

        root = split(run.storage.root)[0]

        def there() -> bool:
            state = run.ledger.refresh()
            assert not state.ended, self("events", run.id, "--runs-root", root).out
            return int((run.read_json(f"attempts/{attempt:03d}/progress.json") or {}).get("step", 0)) >= step

        assert within(LONG_S, there), self("events", run.id, "--runs-root", root).out
        cancelled = self(*CANCEL, "--runs-root", root)
        assert cancelled.code == 0, cancelled.err
        return run.ledger.refresh().best_step


class Journey(NamedTuple):
    user: User
    undisturbed: Run
    left_behind: Run
    """What is left of the run where it began."""
    run: Run
    """On this machine, on Slurm, on the fake Cloud TPU, on this machine."""
    returned: Run
    """On this machine, on Slurm, on this machine."""
    left: list[int]
    """The steps at which it left each place."""
    said: dict[str, str]
    """By the command that moved it."""


@pytest.fixture(scope="module")
def journey(
    cluster: Cluster, cloud: Cloud, bucket: str, xla_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Journey]:
    user = User(cluster, cloud, xla_python, tmp_path_factory.mktemp("user"))
    try:
        yield _made(user, bucket)
    finally:
        user.end()
        for left in cloud.status()["queuedResources"]:
            cloud.call("DELETE", left["name"], force="true")


def _made(user: User, bucket: str) -> Journey:
    undisturbed = user.start("run", user.spec, "--no-check", "--name", "undisturbed", *AT_ONCE)
    here = user.start("run", user.spec, "--no-check", "--name", "traveller")
    assert within(LONG_S, lambda: (user.runs / "traveller/run.json").exists()), here.output
    run = open_run(user.runs, "traveller")
    left = [user.leaves(run, 1, 6)]
    assert here.wait() == 1, here.output

    slurm = user(*TO_SLURM, "--no-check")
    assert slurm.code == 0, slurm.err
    left.append(user.leaves(run, 2, 24))
    shutil.copytree(user.runs / "traveller", user.folder / "returned/traveller", symlinks=True, ignore=BEING_RENAMED)
    back = user.start(
        "resume", "traveller", "--on", "local", "--no-check", "--runs-root", user.folder / "returned", *AT_ONCE
    )

    tpu = user.start(*(bucket if word.startswith("gs://") else word for word in TO_TPU), "--no-check")
    assert within(LONG_S, lambda: "from here on it is found" in tpu.output), tpu.output
    moved = open_run(bucket, "traveller")
    assert within(LONG_S, lambda: not moved.ledger.refresh().ended), tpu.output
    left.append(user.leaves(moved, 3, 42))
    assert tpu.wait() == 1, tpu.output

    before = moved.ledger.refresh().version
    wrong = user("resume", "traveller", "--runs-root", bucket, "--set", "data.init_args.batch_sizes=3")
    assert moved.ledger.refresh().version == before

    home = user(*(bucket if word.startswith("gs://") else word for word in TO_HERE), "--no-check", *AT_ONCE)
    assert home.code == 0, home.err
    assert back.wait(LONG_S) == 0, back.output
    assert undisturbed.wait(LONG_S) == 0, undisturbed.output
    said = {"slurm": slurm.out, "wrong": wrong.err, "tpu": tpu.output, "local": home.out}
    returned = open_run(user.folder / "returned", "traveller")
    return Journey(user, open_run(user.runs, "undisturbed"), run, moved, returned, left, said)


def test_it_is_carried_on_at_the_exact_step_each_time(journey: Journey) -> None:
    attempts = status(journey.run)["attempts"]

    assert [one["target"] for one in attempts] == ["local", "slurm", "my-tpu", "local"]
    assert [one["cause"] for one in attempts] == ["cancelled", "cancelled", "cancelled", "finished"]
    assert [one["first_step"] for one in attempts] == [0, *journey.left]
    assert [one["last_step"] for one in attempts] == [*journey.left, STEPS]
    assert 0 < journey.left[0] < journey.left[1] < journey.left[2] < STEPS


def last(run: Run, folder: Path) -> dict[str, Any]:
    saved = in_order(run.ledger.refresh())[-1]
    assert saved.complete
    fetch(run.storage, "", [saved.path], folder)
    loaded: dict[str, Any] = torch.load(folder / saved.path, weights_only=True)
    return loaded


def test_weights_agree_to_rounding_where_xla_has_computed_too(journey: Journey, tmp_path: Path) -> None:
    one, other = last(journey.undisturbed, tmp_path / "here")["state_dict"], last(journey.run, tmp_path)["state_dict"]

    assert one.keys() == other.keys()
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    furthest = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert 0 < furthest < 1e-5, "if they were the same, nothing but this machine has computed"


def test_there_and_back_on_ranks_of_the_same_kind_it_is_the_same_to_the_bit(journey: Journey, tmp_path: Path) -> None:
    one, other = last(journey.undisturbed, tmp_path / "here"), last(journey.returned, tmp_path / "there")

    assert [one["target"] for one in status(journey.returned)["attempts"]] == ["local", "slurm", "local"]
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    moments, others = (state["optimizer_states"][0]["state"] for state in (one, other))
    assert all(torch.equal(moments[index][name], others[index][name]) for index in moments for name in moments[index])


def test_what_will_be_different_is_said_first(journey: Journey) -> None:
    print(json.dumps(journey.said, indent=1))
    assert "change: target: local -> slurm" in journey.said["slurm"]
    assert "the same bits, on processors of the same kind" in journey.said["slurm"]
    for said in (
        "target: slurm -> my-tpu",
        "ranks: 1 -> 2: of the 2 batches of a step each has 1, not 2",
        "accelerator: cpu -> xla: the same samples in each step; sums over them may differ in their last bits",
    ):
        assert f"change: {said}" in journey.said["tpu"]
    assert "change: accelerator: xla -> cpu" in journey.said["local"]


def test_a_change_of_what_runs_elsewhere_is_checked_here(journey: Journey) -> None:
    assert "batch_sizes" in journey.said["wrong"]
    assert "data.init_args" in journey.said["wrong"]


def test_nobody_carries_it_on_where_it_began(journey: Journey) -> None:
    done = journey.user("resume", "traveller")

    assert done.code == 64
    assert f"traveller goes on at {journey.run.storage.root}" in done.err
    assert "moved" in next(line for line in journey.user("list").out.splitlines() if line.startswith("traveller"))


def test_its_curve_is_one(journey: Journey, tmp_path: Path) -> None:
    curves = []
    for run in (journey.undisturbed, journey.run):
        prefix = "" if run is journey.undisturbed else f"attempts/{len(run.ledger.refresh().attempts):03d}/files"
        folder = tmp_path / run.id
        fetch(
            run.storage, prefix, [name for name in run.storage.files(prefix) if name.startswith("tensorboard/")], folder
        )
        reader = event_accumulator.EventAccumulator(str(folder / "tensorboard"), {event_accumulator.SCALARS: 0})
        reader.Reload()
        curves.append({tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]})

    expected, found = ({tag: points for tag, points in one.items() if tag != "hp_metric"} for one in curves)
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        if not tag.startswith("train"):  # which are of rank 0's own batches
            assert [value for _, value in found[tag]] == pytest.approx([value for _, value in points], abs=1e-5), tag


def test_nothing_that_costs_money_is_left(journey: Journey) -> None:
    state = journey.user.cloud.status()

    assert state["nodes"] == state["queuedResources"] == []
