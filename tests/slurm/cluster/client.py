"""What a user of a cluster does, for tests: submit, look, wait. It takes a slurm.conf and nothing else of it."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from machines.shell import output

from slurm.cluster.errors import ClusterError

_ENDED = frozenset({"CANCELLED", "COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"})
_SETTLES_S = 3.0
"""For so long may a job that is being requeued look like one that has ended."""


class Client:
    """Slurm's commands as a user has them on the login node. Each raises ClusterError when it fails or is silent."""

    def __init__(self, slurm_conf: Path, work: Path) -> None:
        self.env: Mapping[str, str] = {"SLURM_CONF": str(slurm_conf)}
        """To be added to the environment of a subprocess that is to use this cluster."""
        self.work = work
        """A folder that all nodes see (they do not share /tmp). Jobs run in it and write their output to it."""

    def output(self, *argv: str | Path, seconds: float = 90, stdin: str = "") -> str:
        """What a program on the login node prints, run in `work`."""
        return output(argv, seconds, self.env, stdin, self.work)

    def sbatch(self, script: str, *options: str) -> int:
        """Submit a script (its text, `#!` line included) and return the job's id. Its output: `output_of`."""
        own = ["--parsable", f"--output={self.work}/%j.out", "--open-mode=append"]
        return int(self.output("sbatch", *own, *options, stdin=script).strip().partition(";")[0])

    def output_of(self, job: int) -> str:
        """What a job has printed, over all its starts."""
        path = self.work / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def srun(self, *argv: str, seconds: float = 90) -> str:
        """What all tasks of a job print. Waits for nodes, not longer than that."""
        return self.output("srun", *argv, seconds=seconds)

    def scontrol(self, *argv: str) -> str:
        return self.output("scontrol", *argv)

    def scancel(self, *argv: str) -> None:
        self.output("scancel", *argv)

    def squeue(self) -> dict[int, str]:
        """State of each job that slurmctld still knows (it forgets those that ended 5 minutes ago)."""
        lines = self.output("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines()
        return {int(job): state for job, state in map(str.split, lines)}

    def job(self, job: int) -> dict[str, str]:
        """All that `scontrol show job` says of it."""
        return pairs(self.scontrol("show", "job", str(job), "--oneliner"))

    def node(self, name: str) -> dict[str, str]:
        """All that `scontrol show node` says of it."""
        return pairs(self.scontrol("show", "node", name, "--oneliner"))

    def sacct(self, job: int) -> str:
        """State of a job in the accounting, which hears of it a moment later; empty when it does not know it."""
        return self.output("sacct", "--noheader", "-X", "--parsable2", "--format=State", f"--jobs={job}").strip()

    def wait(self, job: int, *states: str, seconds: float = 150) -> str:
        """Until a job is in one of these states, which is returned.

        Raises ClusterError when the job has ended in another, or has not come to any after `seconds`.
        """
        deadline = time.monotonic() + seconds
        ended_at = None
        while (state := self.job(job)["JobState"]) not in states:
            now = time.monotonic()
            ended_at = (ended_at or now) if state in _ENDED else None
            if now > deadline or (ended_at and now - ended_at > _SETTLES_S):
                raise ClusterError(
                    f"job {job} is {state}, not {' or '.join(states)} (waited up to {seconds:.0f} s). It printed:\n"
                    f"{self.output_of(job)[-2000:]}"
                )
            time.sleep(0.1)
        return state


def pairs(line: str) -> dict[str, str]:
    """`Key=value Key=value`, where a value may hold blanks and further equal signs."""
    return {
        key: value.strip() for key, value in re.findall(r"(?:^|(?<=\s))([A-Z][\w:/]*)=(.*?)(?=\s[A-Z][\w:/]*=|$)", line)
    }
