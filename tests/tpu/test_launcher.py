"""`launcher run --on` a target of Cloud TPU, as a user types it: real ranks, on the CPUs of the fake's hosts."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Command, Shell, state_of, within

from launcher.events import ResumeRequested
from launcher.run import Run
from launcher.runs import open_run
from tpu.cloud import Cloud
from tpu.slices import ZONE

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "jobs/quickstart.yaml"
LONG_S = 240.0


class User:
    """Somebody with a target that is called `cloud`, and runs on an object store."""

    def __init__(self, cloud: Cloud, runs: str, folder: Path) -> None:
        self.cloud, self.runs, self.folder = cloud, runs, folder
        self.shell = Shell(folder)
        self.target = {"kind": "tpu", "tpu": {"project": "fake-project", "zone": ZONE, "python": sys.executable}}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "CLOUDSDK", "GCE"))}
        self.env = {
            **{name: value for name, value in kept.items() if name != "PYTHONPATH"},
            **{name: str(folder) for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "LAUNCHER_SCRATCH")},
            "LAUNCHER_RUNS": runs,
            "PYTHONPATH": str(REPOSITORY),
            **cloud.env,
        }
        self._made: list[Command] = []

    def start(self, *words: str | Path, **env: str) -> Command:
        targets = self.folder / "launcher/targets"
        targets.mkdir(parents=True, exist_ok=True)
        (targets / "cloud.yaml").write_text(json.dumps(self.target))
        argv = [sys.executable, "-m", "launcher.cli.main", *map(str, words)]
        command = Command(argv, self.folder, env={**self.env, **env}, cwd=self.folder)
        self._made.append(command)
        return command

    def __call__(self, *words: str | Path, seconds: float = 60, **env: str) -> tuple[int, str]:
        command = self.start(*words, **env)
        return command.wait(seconds), command.output

    def run_of(self, name: str) -> Run:
        return open_run(self.runs, name)

    def end(self) -> None:
        for command in self._made:
            command.end()
        self.shell.end()


@pytest.fixture
def user(cloud: Cloud, runs: str, tmp_path: Path) -> Iterator[User]:
    one = User(cloud, runs, tmp_path)
    yield one
    one.end()
    cloud.order("allow")
    for left in cloud.status()["queuedResources"]:
        cloud.call("DELETE", left["name"], force="true")


def created(cloud: Cloud) -> list[Any]:
    return [one for one in cloud.requests() if one["verb"] == "POST" and one["method"] == "queuedResources.create"]


ON_CLOUD = ("--on", "cloud", "--set", "tpu.accelerator_type=v4-16")
RANKS = ("--set", "resources.tasks_per_node=1", "--set", "resources.cpus_per_task=1")


def test_a_preempted_run_ends_with_the_weights_of_one_that_was_never_touched(user: User, cloud: Cloud) -> None:
    words = ("run", QUICKSTART, "--no-check", *RANKS)
    local = user.start(
        *words, "--name", "untouched", "--set", "resources.nodes=2", LAUNCHER_RUNS=str(user.folder / "r")
    )
    assert local.wait(LONG_S) == 0, local.output
    far = user.start(*words, "--name", "preempted", *ON_CLOUD)

    def step(run: Run) -> int:
        state = run.ledger.refresh()
        found = run.read_json(f"attempts/{len(state.attempts):03d}/progress.json") if state.attempts else None
        return int(found["step"]) if found else 0

    assert within(LONG_S, lambda: "preempted" in far.output and step(user.run_of("preempted")) > 150), far.output
    claim = user.run_of("preempted").read_json("attempts/001/slice.json")
    cloud.order("preempt", node=claim["name"], grace=15)

    assert far.wait(LONG_S) == 0, far.output
    state = user.run_of("preempted").ledger.refresh()
    assert [one.cause for one in state.attempts] == ["preempted", "finished"]
    assert 150 < state.attempts[1].first_step == state.attempts[0].last_step < 800
    assert "saved and left at SIGTERM" in far.output
    code, said = user("checkpoints", "diff", "preempted", f"{user.folder}/r/untouched/checkpoints/{_last(user)}")
    assert code == 0, said
    assert cloud.status()["nodes"] == cloud.status()["queuedResources"] == []


def _last(user: User) -> str:
    folder = user.folder / "r/untouched/checkpoints"
    return f"{sorted(one.name for one in folder.iterdir() if one.name.startswith('step'))[-1]}/checkpoint.ckpt"


def test_a_plan_shows_what_would_be_asked_for_and_asks_nothing(user: User, cloud: Cloud) -> None:
    before = len(cloud.requests())

    code, said = user("plan", QUICKSTART, *ON_CLOUD)

    assert code == 0, said
    assert '"acceleratorType": "v4-16"' in said
    assert "4 rank(s)" in said
    assert len(cloud.requests()) == before


def test_a_spec_is_checked_on_this_machine(user: User) -> None:
    code, said = user("check", QUICKSTART, *ON_CLOUD)

    assert code == 0, said
    assert "model, data and trainer can be made" in said


def test_what_the_account_may_not_create_is_told_at_once(user: User, cloud: Cloud) -> None:
    cloud.order("deny", permission="tpu.queuedResources.create")

    code, printed = user("run", QUICKSTART, "--no-check", "--name", "refused", *ON_CLOUD)

    assert code == 1
    assert "Permission 'tpu.queuedResources.create' denied" in printed
    assert "roles/tpu.admin" in printed
    assert state_of(user.run_of("refused")) == "failed"


def test_a_run_whose_launcher_is_killed_is_carried_on_by_watch(user: User, cloud: Cloud, tmp_path: Path) -> None:
    """From another machine: no key, no scratch folder, no connection. Its ranks do not notice."""
    words = ("run", QUICKSTART, "--no-check", "--name", "watched", "--detach", *ON_CLOUD, *RANKS)
    code, said = user(*words)
    assert code == 0, said
    run = user.run_of("watched")
    assert within(LONG_S, lambda: run.read_json("attempts/001/progress.json"))
    first = run.ledger.refresh().driver
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    other = {name: str(tmp_path / "other") for name in ("HOME", "XDG_STATE_HOME", "LAUNCHER_SCRATCH")}
    (tmp_path / "other").mkdir()

    code, said = user("watch", "--once", **other)

    assert code == 0, said
    assert "watched: nobody drives it" in said
    assert user("watch", "--once", **other)[1].strip() == "all runs that need a driver have one"
    assert within(LONG_S, lambda: run.ledger.refresh().ended), user("logs", "watched")
    state = run.ledger.refresh()
    assert [one.cause for one in state.attempts] == ["finished"]
    assert len([one for one in created(cloud) if "watched" in one["query"]["queuedResourceId"]]) == 1
    assert cloud.status()["nodes"] == cloud.status()["queuedResources"] == []


def test_a_run_without_a_launcher_is_taken_over_or_cancelled_with_its_machines(user: User, cloud: Cloud) -> None:
    words = ("run", QUICKSTART, "--no-check", "--name", "cancelled", "--detach", *ON_CLOUD, *RANKS)
    code, said = user(*words)
    assert code == 0, said
    run = user.run_of("cancelled")
    assert within(LONG_S, lambda: cloud.status()["nodes"])
    driver = run.ledger.refresh().driver
    assert driver is not None
    os.kill(driver.pid, signal.SIGKILL)

    code, said = user("resume", "cancelled", "--set", "trainer.max_epochs=3")
    assert (code, "attempt 1 may still run on its machines" in said) == (1, True), said
    code, said = user("resume", "cancelled", "--detach")
    assert code == 0, said
    driver = run.ledger.refresh().driver
    assert driver is not None
    os.kill(driver.pid, signal.SIGKILL)
    assert not [one for one in run.ledger.records() if isinstance(one.event, ResumeRequested)], "it only has a driver"

    code, said = user("cancel", "cancelled")

    assert code == 0, said
    assert state_of(run) == "cancelled"
    assert cloud.status()["nodes"] == cloud.status()["queuedResources"] == []
