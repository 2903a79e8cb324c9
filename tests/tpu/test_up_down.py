"""Clouds with hosts come and go, crash half-way, and leave nothing behind."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import labs
import pytest
from machines import processes

from tpu.cloud import Cloud
from tpu.conftest import SETTINGS
from tpu.slices import ZONE, Slice

SCRIPT = Path(__file__).parents[2] / "scripts/tpu-cloud"


@pytest.fixture
def small(make: Callable[[str], Cloud]) -> Iterator[Cloud]:
    cloud = make("c")
    yield cloud
    cloud.down(wipe=True)


def left_behind(cloud: Cloud) -> list[str]:
    return labs.left_behind(cloud.layout)


def script(cloud: Cloud, *words: str) -> subprocess.CompletedProcess[str]:
    return labs.done(SCRIPT, cloud.layout, *words)


def test_down_ends_hosts_that_are_on(small: Cloud, key: Path) -> None:
    small.up(SETTINGS)
    Slice(small, "mine", key)
    assert len(left_behind(small)) >= 5

    small.down()
    assert left_behind(small) == []
    assert not small.layout.disks.exists()
    assert small.requests()
    small.up()
    assert small.status()["nodes"] == []


def test_down_ends_hosts_whose_server_was_killed(small: Cloud, key: Path) -> None:
    small.up(SETTINGS)
    Slice(small, "mine", key)
    processes.kill(pid for pid in processes.marked(small.layout.mark("server")) if not processes.is_init(pid))

    small.down(wipe=True)
    assert left_behind(small) == []
    assert not small.layout.folder.exists()


@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.6])
def test_a_crash_half_way_up_leaves_nothing_after_down(after_s: float, small: Cloud) -> None:
    with subprocess.Popen(labs.command(SCRIPT, small.layout, "up"), stdout=subprocess.DEVNULL) as coming_up:
        time.sleep(after_s)
        coming_up.kill()

    small.down(wipe=True)
    assert left_behind(small) == []
    small.up(SETTINGS)
    assert small.status()["nodes"] == []


def test_the_script_does_all_of_it(small: Cloud, key: Path) -> None:
    up = script(small, "up", "--create-seconds=0", "--grace-seconds=0.5", "--operation-seconds=0")
    assert up.returncode == 0, up.stderr
    assert "is a FAKE Cloud TPU, made for tests" in up.stdout
    assert f"export CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU={small.url}/" in script(small, "env").stdout
    assert script(small, "token").stdout.startswith("ya29.fake-")
    assert script(small, "status").stdout == "nothing\n"
    one = Slice(small, "mine", key, "v4-8")
    assert script(small, "exec", "mine", "0", "hostname").stdout == one.ssh(0, "hostname")
    assert script(small, "exec", "mine", "0", "sh", "-c", "exit 7").returncode == 7
    assert script(small, "status").stdout.split() == ["node", "mine", ZONE, "READY", "host", "mine", "0", "up"]
    assert script(small, "inject", "nodes.list", "--times=2", "--code=ABORTED").returncode == 0
    assert script(small, "force", "mine", "REPAIRING", "UNHEALTHY_TENSORFLOW").returncode == 0
    refused = script(small, "lose-host", "mine", "1")
    assert (refused.returncode, refused.stderr) == (1, "tpu-cloud: no worker 1; mine has 0 to 0\n")
    assert script(small, "preempt", "mine", "--vanish").returncode == 0
    assert script(small, "down", "--wipe").returncode == 0
    assert left_behind(small) == []
    assert "`scripts/tpu-cloud up` brings it up" in script(small, "env").stderr
