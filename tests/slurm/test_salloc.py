"""Within `salloc`: a run uses that allocation, as long as there is one."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cli.commands import LAUNCHER

from launcher.errors import RESUMABLE
from launcher.runs import open_run
from slurm.cluster import Cluster
from slurm.launches import STUB, TRAINS, Launch, clear, command, written
from slurm.scenarios import eventually

pytestmark = pytest.mark.slurm

NODES = ("n7", "n8")


@pytest.fixture(scope="module")
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    clear(cluster)


class Shell:
    """Of a user who has made an allocation, and calls the launcher in it."""

    def __init__(self, cluster: Cluster, script: dict[str, Any]) -> None:
        self.cluster, self.name = cluster, f"i{time.monotonic_ns()}"
        self.folder, self.runs = cluster.work / "specs" / self.name, cluster.work / "runs"
        python = self.folder / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexec {' '.join(STUB)}\n")
        python.chmod(0o755)
        self.sections = {"slurm": {"venv": str(self.folder / "venv")}, "code": {"snapshot": False}}
        (self.runs / self.name).mkdir(parents=True)
        (self.runs / self.name / "stub.json").write_text(json.dumps(script))

    def within(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a command of the launcher's in an allocation that ends with it."""
        mine = [f"--nodelist={','.join(NODES)}", "--nodes=2", f"--ntasks={2 * 2}", "--cpus-per-task=2"]
        done = command(self.cluster, ["salloc", *mine, LAUNCHER, *words, "--runs-root", str(self.runs)], seconds=120)
        return done.code, done.out + done.err

    def run(self, **sections: object) -> tuple[int, str]:
        spec = written(self.folder, **self.sections, **sections)
        return self.within("run", str(spec), "--on", "slurm", "--no-check", "--name", self.name)


@pytest.fixture(scope="module")
def shell(cluster: Cluster, cleared: None) -> Shell:
    """One rank is killed once all are there."""
    there = {f"1.{rank}": [["touch", f"there-{rank}"], ["train", 0.05, 5]] for rank in range(3)}
    killed = [*(["wait for", f"there-{rank}"] for rank in range(3)), ["die", 9]]
    return Shell(cluster, {**there, "1.3": killed, "*": [["train", 0.05, 5, 12]]})


def test_a_run_uses_the_allocation_and_comes_back_in_it(shell: Shell) -> None:
    code, said = shell.run()
    run = Launch(shell.cluster, open_run(shell.runs, shell.name), NODES)
    print(said, run.told())

    assert code == 0
    assert run.causes == ["infra", "finished"]
    assert run.hosts == NODES
    assert run.started() == [(attempt, rank) for attempt in (1, 2) for rank in range(4)]
    assert run.jobs == []
    handles = [attempt.handle for attempt in run.run.ledger.refresh().attempts]
    assert all(handle and f"Granted job allocation {handle['job']}" in said for handle in handles)
    assert run.disorder() == []


def test_a_run_stops_with_the_allocation_and_goes_on_in_another_one(cluster: Cluster, cleared: None) -> None:
    shell = Shell(cluster, TRAINS)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(shell.run)
        eventually((shell.runs / shell.name / "run.json").exists, "the run")
        run = Launch(cluster, open_run(shell.runs, shell.name), NODES)
        run.until(run.trains, "the run to train")
        handle = run.run.ledger.refresh().attempts[0].handle
        assert handle
        cluster.scancel(handle["job"])  # as Slurm itself does when its time is over
        code, said = first.result()
        assert run.causes == ["stopped"], said + run.told()
        assert f"job {handle['job']} is over" in said
        assert code == RESUMABLE

        second = pool.submit(shell.within, "resume", shell.name)
        run.until(lambda: run.trains(2), "the run to train again")
        run.enough()
        code, said = second.result()

    assert code == 0, said
    assert run.causes == ["stopped", "finished"]
    assert run.disorder() == []


def test_a_sweep_is_refused_there_by_name(shell: Shell) -> None:
    name = f"{shell.name}s"
    spec = written(shell.folder / "sweep", **shell.sections, sweep={"grid": {"seed_everything": [1, 2]}})

    code, said = shell.within("run", str(spec), "--on", "slurm", "--no-check", "--name", name)

    assert code == 64
    assert f"{name}: this shell stands in job" in said
    assert "env -u SLURM_JOB_ID" in said
    assert not (shell.runs / name).exists()
