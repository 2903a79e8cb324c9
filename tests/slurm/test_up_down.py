"""Clusters come and go, crash half-way, and leave nothing behind."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import labs
import pytest
from machines import processes

from slurm.cluster import Cluster, ClusterError, Settings
from slurm.cluster.cgroups import ROOT

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[2] / "scripts/slurm-cluster"
SMALL = Settings(nodes=2, accounting=False)


@pytest.fixture
def small(make: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = make("c")
    yield cluster
    cluster.down(wipe=True)


def left_behind(cluster: Cluster) -> list[str]:
    return labs.left_behind(cluster.layout) + [str(path) for path in ROOT.rglob(cluster.layout.cgroup)]


def script(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    return labs.done(SCRIPT, cluster.layout, *words)


def test_up_twice_is_up_once_and_down_leaves_nothing(small: Cluster) -> None:
    small.up(SMALL)
    before = processes.marked(small.layout.mark())
    small.up(SMALL)

    assert processes.marked(small.layout.mark()) == before
    assert left_behind(small)
    small.down()
    assert left_behind(small) == []
    small.down()


def test_other_settings_are_refused_while_it_is_up(small: Cluster) -> None:
    small.up(SMALL)

    with pytest.raises(ClusterError, match=r"nodes: 2 -> 3.*take it down first"):
        small.up(Settings(nodes=3, accounting=False))


def test_jobs_are_still_known_after_down_and_up(small: Cluster) -> None:
    small.up(SMALL)
    job = small.sbatch("#!/bin/sh\n")
    small.wait(job, "COMPLETED")

    small.down()
    small.up()

    assert small.squeue()[job] == "COMPLETED"
    assert small.settings == SMALL


@pytest.mark.parametrize("after_s", [0.15, 0.4, 0.8, 1.5])
@pytest.mark.parametrize("wipe", [True, False])
def test_a_crash_half_way_up_leaves_nothing_after_down(after_s: float, wipe: bool, small: Cluster) -> None:
    crash(small, after_s)

    small.down(wipe)
    assert left_behind(small) == []
    assert small.layout.folder.exists() != wipe


def test_up_goes_on_where_it_crashed(small: Cluster) -> None:
    crash(small, 0.6)

    small.up(Settings(nodes=2))
    assert sorted(small.srun("--nodes=2", "hostname").split()) == ["n1", "n2"]


def crash(cluster: Cluster, after_s: float) -> None:
    """An `up` that is killed."""
    with subprocess.Popen(
        labs.command(SCRIPT, cluster.layout, "up", "--nodes=2"), stdout=subprocess.DEVNULL
    ) as coming_up:
        time.sleep(after_s)
        coming_up.kill()


def test_the_script_does_all_of_it(small: Cluster) -> None:
    up = script(small, "up", "--nodes=1", "--no-accounting", "--proctrack=linuxproc")
    assert up.returncode == 0, up.stderr
    assert "nodes" in up.stdout
    assert script(small, "env").stdout == f"export SLURM_CONF={small.layout.slurm_conf}\n"
    assert script(small, "exec", "n1", "hostname").stdout == "n1\n"
    assert script(small, "exec", "n1", "sh", "-c", "exit 7").returncode == 7
    assert script(small, "drain", "n1").returncode == 0
    assert "drained" in script(small, "status").stdout
    assert script(small, "power-off", "n1").returncode == 0
    assert "n1     off" in script(small, "status").stdout
    assert script(small, "power-on", "n1").returncode == 0
    assert "n1     slurmd up" in script(small, "status").stdout
    refused = script(small, "power-off", "n2")
    assert (refused.returncode, refused.stderr) == (1, "slurm-cluster: no node 'n2'; there are n1\n")
    assert script(small, "down", "--wipe").returncode == 0
    assert left_behind(small) == []
    assert "`scripts/slurm-cluster up` makes one" in script(small, "status").stderr
