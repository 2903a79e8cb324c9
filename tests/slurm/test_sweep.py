"""Sweeps on a real cluster: their runs are elements of job arrays. Ranks are stubs (tests/unit/stub_cell.py)."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Done

from launcher.events import AttemptStarting, Submitted, Submitting
from launcher.run import Run
from launcher.storage import PosixStorage
from launcher.sweep import Sweep
from slurm.cluster import Cluster
from slurm.launches import SLOW_S, clear, launcher, written
from slurm.scenarios import eventually

pytestmark = pytest.mark.slurm

STUB = Path(__file__).parents[1] / "unit/stub_cell.py"
_KILLED_AT_THE_SECOND = """#!/bin/sh
case "$*" in *--test-only*|*--version*) exec /usr/bin/sbatch "$@" ;; esac
mkdir "{once}" 2>/dev/null && exec /usr/bin/sbatch "$@"
kill -9 $PPID
"""
_SETTLED_S = 61.0
"""A submission of this age is not under way any more."""


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    clear(cluster)


@dataclass
class Swept:
    """A sweep whose runs each take a node, until they are told that it is enough."""

    cluster: Cluster
    runs: int
    slurm: dict[str, Any] = field(default_factory=dict)
    on: str = "slurm"

    def __post_init__(self) -> None:
        self.name = f"s{time.monotonic_ns()}"
        self.folder = self.cluster.work / "specs" / self.name
        python = self.folder / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nexec {sys.executable} -S {STUB}\n")
        python.chmod(0o755)
        self.spec = written(
            self.folder,
            model={"class_path": "model.mnist.MNISTClassifier", "init_args": {"until": "", "loss": 0}},
            resources={"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 4, "time": "10m"},
            slurm={"venv": str(self.folder / "venv"), "signal_delay": "10s", **self.slurm},
            code={"snapshot": False},
            sweep={"list": [self._values(index) for index in range(self.runs)], "metric": "loss"},
        )

    def _values(self, index: int) -> dict[str, Any]:
        return {"model.init_args.loss": (3 - index) ** 2, "model.init_args.until": str(self.folder / f"enough-{index}")}

    def run(self, **env: str) -> Done:
        return self.launcher("run", str(self.spec), "--on", self.on, "--no-check", "--name", self.name, **env)

    def launcher(self, *words: str, seconds: float = 240, **env: str) -> Done:
        runs = str(self.cluster.work / "runs")
        return launcher(self.cluster, *words, "--runs-root", runs, seconds=seconds, **env)

    @property
    def sweep(self) -> Sweep:
        return Sweep(PosixStorage(self.cluster.work / "runs" / self.name))

    @property
    def status(self) -> Any:
        done = self.launcher("status", self.name, "--json")
        assert done.code == 0, done.err
        return done.answer

    @property
    def begun(self) -> dict[int, Run]:
        sweep = self.sweep
        return {cell.index: run for cell in sweep.cells if (run := sweep.cell(cell.index))}

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Jobs that were submitted for it, with the runs that they are for."""
        events = [one.event for one in self.sweep.ledger.records()]
        cells = {event.submission: event.cells for event in events if isinstance(event, Submitting)}
        return [(event.job, cells[event.submission]) for event in events if isinstance(event, Submitted)]

    def at_work(self) -> list[int]:
        """Runs of which an attempt has started and has not ended."""
        now = {index: run.ledger.refresh().open_attempt for index, run in self.begun.items()}
        return [index for index, attempt in now.items() if attempt and attempt.handle]

    def enough(self, *indices: int, how: str = "") -> None:
        """These come to their ends, or all."""
        for index in indices or range(self.runs):
            beside = self.folder / "almost"
            beside.write_text(how)
            beside.rename(self.folder / f"enough-{index}")

    def until(self, state: str, seconds: float = SLOW_S) -> Any:
        try:
            eventually(lambda: self.status["state"] == state, f"the sweep to be {state}", seconds)
            if state == "finished":  # so says the last rank; its job has a little to do yet
                eventually(lambda: all(run.ledger.refresh().ended for run in self.begun.values()), "the runs' ends")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None
        return self.status

    def told(self) -> str:
        """All that is known of it."""
        parts = [json.dumps(self.status, indent=1), self.cluster.output("squeue", "--array")]
        for run in self.begun.values():
            parts += [f"{run.id} {one.number} {one.event}" for one in run.ledger.records()]
        for log in sorted(Path(self.sweep.storage.root).rglob("*")):
            if log.suffix in (".out", ".log"):
                parts.append(f"{log}\n{log.read_text(errors='replace')[-2000:]}")
        return "\n".join(parts)


def all_at_work(swept: Swept) -> None:
    eventually(lambda: len(swept.at_work()) == swept.runs, f"all to be at work\n{swept.told()}", SLOW_S)


def small(cluster: Cluster, name: str, longest: int) -> str:
    """A target whose arrays are so short."""
    folder = cluster.work / "config/launcher/targets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text("kind: slurm\n")
    nodes = [{"count": 8, "cpus": 4, "memory_mb": 16000}]
    facts = {
        "probed": "2026-01-01T00:00:00Z",
        "cluster": "lab",
        "version": "22.05",
        "partitions": {"main": {"default": True, "nodes": nodes}},
        "accounting": True,
        "max_array_size": longest,
        "job_requeue": True,
        "kill_wait_s": 4,
        "user_signal": True,
    }
    (folder / f"{name}.facts.yaml").write_text(json.dumps(facts))
    return name


def test_all_runs_of_a_sweep_come_from_one_array_some_at_a_time_and_the_best_is_known(cluster: Cluster) -> None:
    swept = Swept(cluster, 6, {"array_parallelism": 3})
    done = swept.run()
    assert done.code == 0, done.err

    ((array, cells),) = swept.arrays
    assert cells == tuple(range(6))
    eventually(lambda: len(swept.at_work()) == 3, f"three to be at work\n{swept.told()}", SLOW_S)
    shown = swept.status
    assert (shown["state"], shown["counts"]) == ("running", {"running": 3, "queued": 3})
    assert "3 in the scheduler's queue" in shown["reason"]
    assert [one["job"] for one in shown["cells"]] == [f"{array}_{index}" for index in range(6)]
    eventually(
        lambda: "JobArrayTaskLimit" in swept.launcher("status", swept.name).out, "Slurm to say why the others wait"
    )
    swept.enough()

    shown = swept.until("finished")

    assert shown["best"]["index"] == 3
    assert [run.record.ranks for run in swept.begun.values()] == [1] * 6
    for index, run in swept.begun.items():
        events = [one.event for one in run.ledger.records()]
        assert events[:2] == [
            Submitting(submission=1, target="slurm"),
            Submitted(submission=1, job=f"{array}_{index}"),
        ]
        assert sum(isinstance(event, AttemptStarting) for event in events) == 1


def test_an_element_that_makes_way_comes_back_as_itself_and_the_others_are_not_touched(cluster: Cluster) -> None:
    swept = Swept(cluster, 3, {"partition": "low"})
    assert swept.run().code == 0
    all_at_work(swept)
    (host,) = swept.begun[1].ledger.refresh().attempts[0].hosts

    high = cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", f"--nodelist={host}", "--cpus-per-task=4")
    cluster.wait(high, "COMPLETED", seconds=90)
    eventually(lambda: len(swept.begun[1].ledger.refresh().attempts) == 2, f"it to be back\n{swept.told()}", SLOW_S)
    swept.enough()
    swept.until("finished")

    attempts = {index: run.ledger.refresh().attempts for index, run in swept.begun.items()}
    assert [one.cause for one in attempts[1]] == ["preempted", "finished"]
    assert [[one.cause for one in attempts[index]] for index in (0, 2)] == [["finished"]] * 2
    array = swept.arrays[0][0]
    assert {one.handle["job"] for one in attempts[1] if one.handle} == {f"{array}_1"}


def test_an_element_that_may_not_be_requeued_is_followed_by_a_job_of_its_own(cluster: Cluster) -> None:
    swept = Swept(cluster, 2, {"partition": "low"})
    assert swept.run().code == 0
    all_at_work(swept)
    array = swept.arrays[0][0]
    (host,) = swept.begun[1].ledger.refresh().attempts[0].hosts
    cluster.scontrol("update", f"jobid={array}_1", "requeue=0")

    high = cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", f"--nodelist={host}", "--cpus-per-task=4")
    cluster.wait(high, "COMPLETED", seconds=90)
    eventually(lambda: len(swept.begun[1].ledger.refresh().attempts) == 2, f"it to be back\n{swept.told()}", SLOW_S)
    again = swept.launcher("resume", swept.name)
    assert "nothing is missing" in again.out, again.out + again.err
    swept.enough()
    swept.until("finished")

    jobs = [one.event.job for one in swept.begun[1].ledger.records() if isinstance(one.event, Submitted)]
    assert jobs[0] == f"{array}_1"
    assert len(jobs) == 2
    assert f"#SBATCH --dependency=afterany:{array}_1\n" in (
        Path(swept.begun[1].storage.root, "slurm", f"{jobs[1]}_submission.sh").read_text()
    )
    assert len(swept.begun[0].ledger.refresh().attempts) == 1


def test_ranks_of_all_runs_import_from_the_one_copy_of_the_code(cluster: Cluster) -> None:
    """With real ranks: what the stubs leave out."""
    name = f"s{time.monotonic_ns()}"
    folder = cluster.work / "specs" / name
    trainer = {"max_steps": 2, "limit_val_batches": 0, "logger": False, "enable_progress_bar": False}
    spec = written(
        folder,
        model={"class_path": "own_net.Net"},
        data={"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
        trainer=trainer,
        resources={"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 4, "time": "10m"},
        sweep={"grid": {"seed_everything": [1, 2]}, "metric": "train_loss"},
    )
    source = "from lightning.pytorch.demos.boring_classes import BoringModel\n\nclass Net(BoringModel):\n    pass\n"
    (folder / "own_net.py").write_text(source)
    (folder / "pyproject.toml").write_text("")
    runs = ["--runs-root", str(cluster.work / "runs")]

    planned = launcher(cluster, "plan", str(spec), "--on", "slurm", *runs)
    done = launcher(
        cluster, "run", str(spec), "--on", "slurm", "--name", name, "--no-check", *runs, cwd=folder, seconds=120
    )
    assert done.code == 0, done.err
    (folder / "own_net.py").unlink()

    def shown() -> Any:
        return launcher(cluster, "status", name, "--json", *runs).answer

    eventually(lambda: shown()["state"] in ("finished", "failed"), "the sweep to end", 2 * SLOW_S)
    assert shown()["state"] == "finished", launcher(cluster, "why", f"{name}.0", *runs).out
    assert "#SBATCH --array=0-1%2" in planned.out
    home = cluster.work / "runs" / name
    paths = {json.loads((home / f"{n:04d}/attempts/001/plan.json").read_text())["env"]["PYTHONPATH"] for n in (0, 1)}
    assert len(paths) == 1
    assert paths.pop().startswith(f"{home}/code/")


def test_what_failed_is_started_again_alone(cluster: Cluster) -> None:
    swept = Swept(cluster, 3)
    assert swept.run().code == 0
    all_at_work(swept)
    swept.enough(0, 2)
    swept.enough(1, how="fail")
    assert swept.until("failed")["counts"] == {"finished": 2, "failed": 1}

    again = swept.launcher("resume", swept.name)
    assert "nothing is missing" in again.out, again.out + again.err
    swept.enough(1)
    assert swept.launcher("resume", swept.name, "--failed").code == 0

    assert swept.until("finished")["counts"] == {"finished": 3}
    (_, first), (job, second) = swept.arrays
    assert (first, second) == ((0, 1, 2), (1,))
    assert swept.status["cells"][1]["job"] is None
    assert [len(run.ledger.refresh().attempts) for run in swept.begun.values()] == [1, 2, 1]
    events = [one.event for one in swept.begun[1].ledger.records()]
    assert Submitted(submission=2, job=job) in events, "a single run is a plain job"


def test_cancel_ends_what_runs_and_what_waits(cluster: Cluster) -> None:
    swept = Swept(cluster, 4, {"array_parallelism": 2})
    assert swept.run().code == 0
    eventually(lambda: len(swept.at_work()) == 2, f"two to be at work\n{swept.told()}", SLOW_S)

    done = swept.launcher("cancel", swept.name)

    assert done.code == 0, done.err
    assert swept.status["counts"] == {"cancelled": 4}
    assert len(swept.begun) == 2
    eventually(lambda: not cluster.output("squeue", "--noheader").strip(), "all jobs to end")
    swept.enough()
    assert swept.launcher("resume", swept.name).code == 0
    swept.until("finished")
    assert swept.arrays[1][1] == (0, 1, 2, 3)


def test_more_runs_than_an_array_may_have_are_several_arrays(cluster: Cluster) -> None:
    swept = Swept(cluster, 5, on=small(cluster, "short", 2))
    swept.enough()

    done = swept.run()

    assert done.code == 0, done.err
    assert [cells for _, cells in swept.arrays] == [(0, 1), (2, 3), (4,)]
    swept.until("finished")


def test_cut_off_between_two_arrays_the_same_command_submits_what_is_missing(cluster: Cluster) -> None:
    swept = Swept(cluster, 4, on=small(cluster, "short", 2))
    fake = swept.folder / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(_KILLED_AT_THE_SECOND.format(once=swept.folder / "once"))
    fake.chmod(0o755)
    assert swept.run(PATH=f"{fake.parent}:{os.environ['PATH']}").code == -signal.SIGKILL
    killed = time.monotonic()
    assert [cells for _, cells in swept.arrays] == [(0, 1)]

    early = swept.run()
    assert early.code == 1
    assert "try again in a minute" in early.err
    time.sleep(max(0.0, killed + _SETTLED_S - time.monotonic()))
    swept.enough(0)
    again = swept.run()

    assert again.code == 0, again.err
    assert [cells for _, cells in swept.arrays] == [(0, 1), (2, 3)]
    swept.enough()
    swept.until("finished")
    assert [len(run.ledger.refresh().attempts) for run in swept.begun.values()] == [1, 1, 1, 1]
