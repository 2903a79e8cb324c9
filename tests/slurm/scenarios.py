"""What is done to jobs, and what they saw. Each scenario has a node of its own, so that all can go on at once."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import Cluster, ClusterError

RECORDER = Path(__file__).with_name("recorder.py")
FOR_EVER = "#!/bin/sh\nexec sleep 1000\n"


@dataclass(frozen=True)
class Event:
    time: float
    """Seconds since the epoch."""
    label: str
    restart: int
    what: str
    """"start", or the name of a signal."""


@dataclass(frozen=True)
class Recording:
    """A job whose batch process and step (one task under srun) write down what they get."""

    log: Path
    job: int

    def events(self, label: str | None = None, restart: int = 0) -> list[Event]:
        """In the order of their times; of one process, or of all."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        events = [Event(**json.loads(line)) for line in lines]
        mine = [event for event in events if event.restart == restart and label in (None, event.label)]
        return sorted(mine, key=lambda event: event.time)

    def started(self, restart: int = 0) -> bool:
        return {event.label for event in self.events(restart=restart)} == {"batch", "step"}

    def last_beat(self, label: str, restart: int = 0) -> float:
        """When the process was last alive: seconds since the epoch, to a tenth."""
        return Path(f"{self.log}.{label}.{restart}.alive").stat().st_mtime


@dataclass(frozen=True)
class Observed:
    """A recording of the job's first start, in seconds since the first signal that any of its processes got."""

    recording: Recording
    state: str
    """What Slurm called the job afterwards."""

    @property
    def at(self) -> float:
        return next(event.time for event in self.recording.events() if event.what != "start")

    def signals(self, label: str, begin: float = 0, end: float = float("inf")) -> set[str]:
        """That a process got between these seconds."""
        events = self.recording.events(label)
        return {event.what for event in events if event.what != "start" and begin <= event.time - self.at < end}

    def first(self, label: str) -> float:
        """Seconds until a process got its first signal."""
        return next(event.time for event in self.recording.events(label) if event.what != "start") - self.at

    def lived(self, label: str) -> float:
        """Seconds for which a process lived on."""
        return self.recording.last_beat(label) - self.at


def record(cluster: Cluster, *options: str, before: str = "exec ") -> Recording:
    """Submit a recorder and wait until all of it runs. `before`: what its script has before the batch process."""
    log = cluster.work / f"{time.monotonic_ns()}.log"
    python = shlex.join([sys.executable, str(RECORDER), str(log)])
    job = cluster.sbatch(f"#!/bin/sh\n{before}{python} batch srun {python} step\n", *options)
    recording = Recording(log, job)
    cluster.wait(job, "RUNNING")
    eventually(recording.started, f"both processes of {job}: {cluster.output_of(job)}")
    return recording


def eventually(condition: Callable[[], bool], awaited: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {awaited}"
        time.sleep(0.1)


def whole(cluster: Cluster, node: str) -> list[str]:
    """Options of a job that takes all of a node."""
    return [f"--nodelist={node}", f"--cpus-per-task={cluster.settings.cpus}"]


def preempted(cluster: Cluster, node: str, partition: str, *options: str) -> Observed:
    """A job has to make way for one of the partition high; a requeued one starts again when that has ended."""
    recording = record(cluster, f"--partition={partition}", *whole(cluster, node), *options)
    high = cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", *whole(cluster, node))
    cluster.wait(high, "COMPLETED", seconds=90)
    state = cluster.wait(recording.job, "PREEMPTED", "RUNNING")
    if state == "RUNNING":
        eventually(lambda: recording.started(restart=1), f"{recording.job} to start again")
        cluster.scancel(str(recording.job))
    return Observed(recording, state)


def timed_out(cluster: Cluster, node: str) -> Observed:
    """Limits are whole minutes; the end of a job that runs can be moved to any second. Slurm looks every 30 s."""
    recording = record(cluster, f"--nodelist={node}", "--time=1")
    end = time.strftime("%FT%T", time.localtime(time.time() + 2))
    cluster.scontrol("update", f"jobid={recording.job}", f"endtime={end}")
    return Observed(recording, cluster.wait(recording.job, "TIMEOUT", seconds=90))


def cancelled(cluster: Cluster, node: str, before: str) -> Observed:
    recording = record(cluster, f"--nodelist={node}", before=before)
    cluster.scancel(str(recording.job))
    state = cluster.wait(recording.job, "CANCELLED")
    eventually(lambda: not _completing(cluster, recording.job), f"the end of {recording.job}")
    return Observed(recording, state)


def requeued(cluster: Cluster, node: str) -> Observed:
    recording = record(cluster, f"--nodelist={node}")
    cluster.scontrol("requeue", str(recording.job))
    eventually(lambda: recording.started(restart=1), f"{recording.job} to start again")
    state = cluster.job(recording.job)["JobState"]
    cluster.scancel(str(recording.job))
    return Observed(recording, state)


def without_power(cluster: Cluster, node: str) -> dict[str, object]:
    """A node loses its power under a job, is found to be gone, and comes back."""
    recording = record(cluster, f"--nodelist={node}", "--requeue")
    cluster.power_off(node)
    at = time.time()
    state_at_once = cluster.job(recording.job)["JobState"]
    cluster.wait(recording.job, "PENDING", seconds=90)
    noticed = time.time() - at
    node_state = cluster.node(node)["State"]
    cluster.power_on(node)
    cluster.wait(recording.job, "RUNNING", seconds=90)
    eventually(lambda: recording.started(restart=1), f"{recording.job} to start again")
    cluster.scancel(str(recording.job))
    eventually(lambda: _all_starts(cluster, recording.job)[:1] == ["NODE_FAIL"], "the accounting to hear of it")
    return {
        "state at once": state_at_once,
        "noticed": noticed,
        "node": node_state,
        "lived": recording.last_beat("step") - at,
        "restarts": cluster.job(recording.job)["Restarts"],
        "accounting": [line.split()[0] for line in _all_starts(cluster, recording.job)],
    }


def without_network(cluster: Cluster, node: str) -> dict[str, object]:
    """A node is cut off under a job that is not requeued, given up, and comes back."""
    recording = record(cluster, f"--nodelist={node}", "--no-requeue")
    cluster.net_cut(node)
    at = time.time()
    state = cluster.wait(recording.job, "NODE_FAIL", seconds=90)
    given_up = time.time()
    eventually(lambda: recording.last_beat("step") > given_up + 1, "the job to go on after it was given up")
    cluster.net_restore(node)
    eventually(lambda: cluster.node(node)["State"] == "IDLE", f"{node} to come back", seconds=120)
    eventually(lambda: time.time() - recording.last_beat("step") > 2, "the job to be ended at last", seconds=30)
    return {"state": state, "noticed": given_up - at, "lived": recording.last_beat("step") - given_up}


def _completing(cluster: Cluster, job: int) -> bool:
    return bool(cluster.output("squeue", "--noheader", "--states=completing", f"--jobs={job}").strip())


def _all_starts(cluster: Cluster, job: int) -> list[str]:
    options = ["--noheader", "-X", "--duplicates", "--parsable2", "--format=State"]
    try:
        return cluster.output("sacct", *options, f"--jobs={job}").splitlines()
    except ClusterError as error:
        return [f"{error}"]
