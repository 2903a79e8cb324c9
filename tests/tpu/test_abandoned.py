"""`launcher gc`: what is found in the project, who wants it, and what is deleted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.tpu import slices
from launcher.backends.tpu.abandoned import Machines, all_machines, wanted_by
from launcher.backends.tpu.api import Api
from launcher.backends.tpu.slices import Slice
from launcher.driver import this_process
from launcher.events import AttemptEnded, AttemptStarting, Driver, Driving, Event, RunEnded
from launcher.run import Run
from launcher.spec_tpu import Tpu
from tpu.cloud import Cloud
from tpu.slices import ZONE, eventually

REPOSITORY = Path(__file__).parents[2]
STARTING = AttemptStarting(attempt=1, target="cloud")
ENDED = AttemptEnded(attempt=1, cause="infra", reason="", step=0)
ELSEWHERE = Driving(driver=Driver(host="far", machine="far", pid=1, started=1))


@pytest.fixture
def client(api: Cloud) -> Api:
    return Api("fake-project", api.url, token=lambda renew=False: api.new_token())


@pytest.fixture
def make(client: Api, make_run: Callable[..., Run]) -> Callable[..., Slice]:
    """A run with these events, and machines of its first attempt."""

    def one(name: str, *events: Event) -> Slice:
        run = make_run(name, *events)
        made = Slice(client, run.storage, name, 1, Tpu(accelerator_type="v4-8", zone=[ZONE]))
        made.look(made.begin(), "launcher:KEY")
        return made

    return one


def of(client: Api, name: str) -> Machines:
    (found,) = [one for one in all_machines(client) if one.run_dir.endswith(f"/{name}")]
    return found


def test_the_run_directory_says_who_wants_them(make: Callable[..., Slice], client: Api) -> None:
    mine = Driving(driver=this_process())
    make("driven", mine, STARTING)
    make("over", mine, STARTING, ENDED)
    make("ended", mine, STARTING, ENDED, RunEnded(state="failed", reason=""))
    make("alone", ELSEWHERE, STARTING)

    said = {name: wanted_by(of(client, name)) for name in ("driven", "over", "ended", "alone")}

    assert {name: wanted for name, (wanted, _) in said.items()} == {
        "driven": True,
        "alone": True,
        "over": False,
        "ended": False,
    }
    assert f"process {os.getpid()}" in said["driven"][1]
    assert "`launcher watch` does" in said["alone"][1]
    assert said["ended"][1] == "its run has ended: failed"


def test_without_a_driver_they_are_wanted_as_long_as_the_lease_lasts(make: Callable[..., Slice], client: Api) -> None:
    make("alone", ELSEWHERE, STARTING)
    found = of(client, "alone")
    assert abs(found.lease - time.time() - slices.LEASE_S) < 60

    wanted, why = wanted_by(replace(found, lease=time.time() - 600))

    assert (wanted, why) == (False, "nobody has driven its run for 10 min and more")


def test_where_the_run_cannot_be_read_the_lease_decides(make: Callable[..., Slice], client: Api) -> None:
    make("alone", ELSEWHERE, STARTING)
    found = replace(of(client, "alone"), run_dir="/nowhere/run")

    assert wanted_by(found)[0]
    wanted, why = wanted_by(replace(found, lease=time.time() - 600))
    assert not wanted
    assert "its run cannot be read" in why
    assert "ended 10 min ago" in why


def test_a_lease_that_was_renewed_on_the_node_counts(
    make: Callable[..., Slice], client: Api, api: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make("driven", Driving(driver=this_process()), STARTING)
    eventually(lambda: api.status()["nodes"] and api.status()["nodes"][0]["state"] == "READY", "the node")
    before = of(client, "driven").lease

    monkeypatch.setattr(slices, "LEASE_S", 36000.0)
    one.renew(one.claim(), api.status()["nodes"][0])

    assert of(client, "driven").lease > before + 30000


def gc(cloud: Cloud, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    targets = folder / "launcher/targets"
    targets.mkdir(parents=True, exist_ok=True)
    (targets / "cloud.yaml").write_text("kind: tpu\ntpu: {project: fake-project}\n")
    env = {**os.environ, **cloud.env, "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launcher.cli.main", "gc", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180, cwd=folder)


def nodes(api: Cloud) -> set[str]:
    return {one["name"].rpartition("/")[2] for one in api.status()["nodes"]}


def test_what_nobody_wants_is_deleted_and_nothing_else(make: Callable[..., Slice], api: Cloud, tmp_path: Path) -> None:
    driven = make("driven", Driving(driver=this_process()), STARTING).claim().name
    ended = make("ended", STARTING, ENDED, RunEnded(state="failed", reason="")).claim().name
    node: dict[str, Any] = {"acceleratorType": "v4-8", "runtimeVersion": "tpu-ubuntu2204-base"}
    api.call("POST", f"{ZONE}/nodes", node, nodeId="somebodys")
    run_dir = str(tmp_path / "runs/ended")
    lost = {**node, "labels": {"launcher-run": "ended", "launcher-attempt": "1"}, "metadata": {"launcher-run": run_dir}}
    api.call("POST", f"{ZONE}/nodes", lost, nodeId="lost")

    before = gc(api, tmp_path, "--on", "cloud", "--dry-run")
    assert f"{ended} " in before.stdout
    assert "would be removed; its run has ended: failed" in before.stdout
    assert not [one for one in api.requests() if one["verb"] == "DELETE"]

    done = gc(api, tmp_path, "--on", "cloud", "--json")

    assert done.returncode == 0, done.stderr
    told = {one["name"]: (one["wanted"], one["removed"]) for one in json.loads(done.stdout)}
    assert told == {driven: (True, False), ended: (False, True), "lost": (False, True)}
    eventually(lambda: len(api.status()["queuedResources"]) == 1, "the end of what was deleted")
    eventually(lambda: "lost" not in nodes(api), "the end of the machine that no request had asked for")
    assert nodes(api) <= {driven, "somebodys"}


def test_it_wants_a_target_of_its_kind(api: Cloud, tmp_path: Path) -> None:
    done = gc(api, tmp_path, "--on", "local")

    assert done.returncode == 64
    assert "it is of kind local" in done.stderr
