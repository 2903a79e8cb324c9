"""Runs on a cluster: launch them, do things to them, and see what became of them.

Their ranks are stubs (tests/unit/stub_rank.py), which start at once, unless a test says otherwise. For that alone a run
is created and submitted by the functions that `launcher run` calls, and not by the command itself.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.commands import LAUNCHER, Done

from launcher.errors import LauncherError
from launcher.events import AttemptEnded, AttemptResumes, AttemptStarting, CheckpointSaved, Submitted
from launcher.events import Record as Entry
from launcher.layout import progress_path
from launcher.record import Record
from launcher.run import Run, create_run
from launcher.spec import JobSpec
from launcher.storage import PosixStorage
from slurm.cluster import Cluster, ClusterError
from slurm.scenarios import eventually

REPOSITORY = Path(__file__).parents[2]
STUB = (sys.executable, "-S", str(REPOSITORY / "tests/unit/stub_rank.py"))
TRAINS = {"*": [["train", 0.1, 5]]}
"""Steps of a tenth of a second, a checkpoint each five of them."""
SPEC: dict[str, Any] = {
    "model": {"class_path": "model.mnist.MNISTClassifier"},
    "resources": {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 0, "cpus_per_task": 2, "time": "10m"},
}
"""Takes all of two nodes."""
SETTLED_S = 120.0
"""What is of this age is not under way any more."""
SLOW_S = 150.0
"""Two ticks of Slurm's clock, and a start on a busy machine."""


@dataclass(frozen=True)
class Launch:
    """A run that has been submitted."""

    cluster: Cluster
    run: Run
    nodes: tuple[str, ...]
    """The only ones that it may run on."""

    # What it does

    @property
    def jobs(self) -> list[int]:
        """Of all its submissions, the newest last."""
        return [int(one.event.job) for one in self.entries() if isinstance(one.event, Submitted)]

    @property
    def job(self) -> int:
        return self.jobs[-1]

    @property
    def causes(self) -> list[str | None]:
        return [attempt.cause for attempt in self.run.ledger.refresh().attempts]

    @property
    def status(self) -> Any:
        """As `launcher status --json` has it."""
        done = self.launcher("status", "--json")
        assert done.code == 0, done.err
        return done.answer

    @property
    def saved(self) -> int:
        """The furthest step of which there is a checkpoint."""
        return self.run.ledger.refresh().best_step

    def entries(self) -> tuple[Entry, ...]:
        return self.run.ledger.records()

    def noted(self) -> list[tuple[int, int]]:
        """Attempt and number of each step, in the order in which they were done."""
        return [(int(attempt), int(step)) for attempt, step in map(str.split, self._lines("steps.log"))]

    def started(self) -> list[tuple[int, int]]:
        """Attempt and rank of each process that ever began."""
        return sorted((int(attempt), int(rank)) for attempt, rank, _ in map(str.split, self._lines("started.log")))

    def trains(self, attempt: int = 1, steps: int = 0) -> bool:
        """That attempt or a later one is at work, has saved a checkpoint of its own and got so far."""
        state = self.run.ledger.refresh()
        now = state.attempts[-1] if state.attempts else None
        if now is None or now.ended is not None or now.number < attempt:
            return False
        reached = (self.run.read_json(progress_path(now.number)) or {}).get("step", 0)
        return reached >= steps and any(one.attempt == now.number for one in state.checkpoints)

    def processes(self, rank: int) -> list[int]:
        """Pids, as this machine has them, of a rank and of all that it started."""
        marks = (f"LAUNCHER_RUN_DIR={self.run.storage.root}".encode(), f"SLURM_PROCID={rank}".encode())
        return [pid for pid, environ in _ranks() if all(mark in environ for mark in marks)]

    def logs(self) -> list[Path]:
        """Files of jobs and of srun; not those of ranks."""
        root = Path(self.run.storage.root)
        found = {*root.rglob("*.out"), *root.rglob("*.err"), *root.rglob("*.log")}
        return sorted(path for path in found if not path.name.startswith("rank-") and "code" not in path.parts)

    # What is done to it

    def launcher(self, verb: str, *words: str, seconds: float = 150) -> Done:
        """A command of the user's about this run, on the login node."""
        root, run_id = os.path.split(self.run.storage.root)
        return launcher(self.cluster, verb, run_id, *words, "--runs-root", root, seconds=seconds)

    def age(self) -> None:
        """All that happened to it is so long ago that nobody takes it for being under way."""
        for path in Path(self.run.storage.root, "events").iterdir():
            told = json.loads(path.read_text())
            path.write_text(json.dumps({**told, "time": told["time"] - SETTLED_S}))
        Path(self.run.storage.root, "lease.json").unlink(missing_ok=True)

    def enough(self) -> None:
        """It comes to its end with the next step."""
        self.run.write_json("enough", {})

    def kill(self, rank: int) -> None:
        """-9."""
        eventually(lambda: self.processes(rank), f"rank {rank}\n{self.told()}")
        for pid in self.processes(rank):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def preempt(self) -> None:
        """A job of the partition high takes all of its nodes, and has ended when this returns."""
        whole = ["--ntasks-per-node=1", f"--cpus-per-task={self.cluster.settings.cpus}"]
        where = [f"--nodes={len(self.nodes)}", f"--nodelist={','.join(self.nodes)}"]
        high = self.cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", *where, *whole)
        try:
            self.cluster.wait(high, "COMPLETED", seconds=90)
        except ClusterError as error:
            raise AssertionError(f"the nodes were not left: {error}\n{self.told()}") from None

    def run_out_of_time(self) -> None:
        """Its allocation ends now, which Slurm sees within 30 s; the next one is as long as ever."""
        job, attempt = self.job, self.run.ledger.refresh().attempts[-1].number
        limit = self.cluster.job(job)["TimeLimit"]
        end = time.strftime("%FT%T", time.localtime(time.time() + 2))
        self.cluster.scontrol("update", f"jobid={job}", f"endtime={end}")
        self.until(lambda: self.causes[attempt - 1], "its time to be over", SLOW_S)
        self.cluster.wait(job, "PENDING")
        self.cluster.scontrol("update", f"jobid={job}", f"timelimit={limit}")  # else it keeps the shorter one

    def finish(self, attempt: int = 1, seconds: float = SLOW_S) -> "Launch":
        """Let that attempt or a later one do some work, then come to its end."""
        self.until(partial(self.trains, attempt), f"attempt {attempt} to train", seconds)
        self.enough()
        return self.end()

    # What becomes of it

    def until(self, condition: Callable[[], object], awaited: str, seconds: float = 150) -> None:
        try:
            eventually(lambda: bool(condition()), awaited, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def end(self, seconds: float = SLOW_S) -> "Launch":
        """Wait until the run has ended, and its job with it."""
        self.until(lambda: self.run.ledger.refresh().ended, "the run to end", seconds)
        self.until(lambda: not self.in_queue(), "its job to end")
        return self

    def in_queue(self) -> list[int]:
        """Its jobs that wait or run."""
        said = self.cluster.output("squeue", "--noheader", "--format=%A", f"--name={self.run.id}")
        return [int(job) for job in said.split()]

    def disorder(self) -> list[str]:
        """What must never be: two attempts at once, an attempt that begins before or behind the newest checkpoint, a
        checkpoint of an attempt that is over, a step that an attempt did twice or left out."""
        wrong, saved, newest, open_ = [], 0, 0, None
        for number, _, event in self.entries():
            match event:
                case AttemptStarting():
                    wrong += [f"{number}: starts during attempt {open_}"] if open_ else []
                    wrong += (
                        [f"{number}: attempt {event.attempt} after {newest}"] if event.attempt != newest + 1 else []
                    )
                    newest = open_ = event.attempt
                case AttemptEnded():
                    open_ = None
                case AttemptResumes():
                    wrong += [f"{number}: begins at {event.step}, not {saved}"] if event.step != saved else []
                case CheckpointSaved():
                    wrong += [f"{number}: of attempt {event.attempt}, not {newest}"] if event.attempt != newest else []
                    saved = max(saved, event.step)
        for attempt in self.run.ledger.refresh().attempts:
            steps = [step for number, step in self.noted() if number == attempt.number]
            if steps != list(range((attempt.first_step or 0) + 1, (attempt.first_step or 0) + 1 + len(steps))):
                wrong.append(f"attempt {attempt.number} from {attempt.first_step}: steps {steps}")
        doubled = [one for one, count in Counter(self.started()).items() if count > 1]
        return wrong + [f"attempt {attempt}: rank {rank} started twice" for attempt, rank in doubled]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Of the newest attempt."""
        return self.run.ledger.refresh().attempts[-1].hosts

    @property
    def lost(self) -> int:
        """Steps that were done more than once."""
        return sum(count - 1 for count in Counter(step for _, step in self.noted()).values())

    def told(self) -> str:
        """All that is known of it, for whoever has to find out why a test failed."""
        parts = ["EVENTS"]
        parts += [
            f"{one.number} {one.time:.1f} {type(one.event).__name__} {asdict(one.event)}" for one in self.entries()
        ]
        parts += [f"{path}\n{path.read_text(errors='replace')[-3000:]}" for path in self.logs()]
        for job in self.jobs:
            with suppress(ClusterError):
                parts.append(self.cluster.scontrol("show", "job", str(job)))
        return "\n".join(parts)

    def _lines(self, file: str) -> list[str]:
        path = Path(self.run.storage.root, file)
        return path.read_text().splitlines() if path.exists() else []


def launch(cluster: Cluster, nodes: tuple[str, ...], script: dict[str, Any] = TRAINS, **options: Any) -> Launch:
    """Submit a run that takes all of these nodes; the rest is as for `created`."""
    made = created(cluster, nodes, script, **options)
    done = submit(made)
    assert done.code == 0, f"{done.out}\n{done.err}"
    made.until(lambda: made.jobs, "its job to be known")
    return made


def created(
    cluster: Cluster,
    nodes: tuple[str, ...],
    script: dict[str, Any] = TRAINS,
    *,
    root: Path | None = None,
    workdir: Path | None = None,
    **sections: Any,
) -> Launch:
    """A run that has not been submitted.

    Args:
        script: what its ranks do, as stub_rank.py has it.
        root: where runs lie; nodes must see it.
        workdir: where the user was.
        sections: of the spec; their keys replace those of SPEC and of the nodes one by one.
    """
    name = f"r{time.monotonic_ns()}"
    sections = {"slurm": {}, **sections}
    sections["slurm"] = {"nodelist": list(nodes), "signal_delay": "10s", **sections["slurm"]}
    sections["resources"] = {**SPEC["resources"], "nodes": len(nodes), **sections.get("resources", {})}
    spec = JobSpec.model_validate({"name": name, **SPEC, **sections})
    record = Record(
        id=name,
        name=name,
        created=time.time(),
        target="slurm",
        spec=spec.model_dump(mode="json", exclude_unset=True),
        spec_file="",
        spec_text="",
        import_path=(str(REPOSITORY),),
        workdir=str(workdir or cluster.work),
        ranks=spec.resources.most_nodes * (spec.resources.tasks_per_node or 1),
        site={"kind": "slurm"},
    )
    run = create_run(root or cluster.work / "runs", record)
    run.write_json("stub.json", script)
    return Launch(cluster, run, nodes)


def submit(made: Launch, **env: str) -> Done:
    """By a process of its own, which has the cluster in its environment."""
    argv = [sys.executable, "-m", "slurm.launches", made.run.storage.root]
    return command(made.cluster, argv, Path(made.run.record.workdir), **env)


def launcher(cluster: Cluster, *words: str | Path, cwd: Path | None = None, seconds: float = 150, **env: str) -> Done:
    """A command of a user's on the login node."""
    return command(cluster, [LAUNCHER, *map(str, words)], cwd, seconds, **env)


def command(cluster: Cluster, argv: list[str], cwd: Path | None = None, seconds: float = 150, **env: str) -> Done:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    own = {"PYTHONPATH": path, "XDG_CONFIG_HOME": str(cluster.work / "config"), "TERM": "xterm"}
    done = subprocess.run(
        argv,
        cwd=cwd or cluster.work,
        env={**os.environ, **cluster.env, **own, **env},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def written(folder: Path, **sections: Any) -> Path:
    """A spec file (JSON is YAML)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(json.dumps({"name": "test", **SPEC, **sections}, indent=1))
    return path


def clear(cluster: Cluster) -> None:
    """Of all jobs: one that a failed test has left would keep nodes from the next."""
    if jobs := cluster.output("squeue", "--noheader", "--format=%A").split():
        cluster.scancel(*jobs)
        eventually(lambda: not cluster.output("squeue", "--noheader").strip(), "all jobs to end")


class Nodes:
    """Nodes of a cluster that tests which go on at once share out among themselves."""

    def __init__(self, names: tuple[str, ...], size: int) -> None:
        self._free: queue.Queue[tuple[str, ...]] = queue.Queue()
        for index in range(0, len(names), size):
            self._free.put(names[index : index + size])
        self.groups = self._free.qsize()

    @contextmanager
    def some(self) -> Iterator[tuple[str, ...]]:
        nodes = self._free.get()
        try:
            yield nodes
        finally:
            self._free.put(nodes)


def _ranks() -> Iterator[tuple[int, list[bytes]]]:
    """Pids and environments of all ranks on all nodes: their processes are seen from here."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                argv = (folder / "cmdline").read_bytes()
                is_worker = b"stub_rank.py" in argv or b"launcher.node.worker" in argv
                if is_worker and not argv.split(b"\0")[0].endswith(b"srun"):
                    yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")


def _submit(run_dir: str) -> None:
    from launcher.backends.slurm.backend import SlurmBackend
    from launcher.backends.slurm.submission import submit

    run = Run(PosixStorage(Path(run_dir)))
    spec = JobSpec.model_validate(run.now.spec)
    SlurmBackend().plan(run_dir, run.now, spec, 1)
    submit(run, spec, worker=STUB)


if __name__ == "__main__":
    try:
        _submit(sys.argv[1])
    except LauncherError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
