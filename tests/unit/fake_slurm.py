"""A fake Slurm for unit tests: programs on PATH under the names of Slurm's, which answer as they are told.

What they print was recorded on a cluster (recorded/slurm); nothing here queues or starts a job. `srun` alone does
something: it starts the ranks of a step on this machine (fake_srun.py).
"""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("recorded") / "slurm"
JOBS = json.loads((RECORDED / "jobs.json").read_text())
SILENT = "Unable to contact slurm controller (connect failure)"
"""What a command says when nobody answers."""
QUEUED = r"\037".join(["%s"] * 6) + r"\036\n"
"""printf's form of a record of squeue: id, name, comment, state, reason, start."""


class FakeSlurm:
    """Answers are queues, one for a program or for a program and its first argument; the last one stays."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("scontrol", "scancel", "squeue", "sacct", "sinfo", "sbatch"):
            self._program(name)
        self.answers("sinfo", "echo 8")  # nodes
        # submitit looks for it on PATH
        srun = folder / "bin/srun"
        srun.write_text(f'#!/bin/sh\n# A fake: see fake_srun.py.\nexec {_srun()} {shlex.quote(str(folder))} "$@"\n')
        srun.chmod(0o755)
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")

    def _program(self, name: str) -> None:
        program = self.folder / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f"""#!/bin/sh
# A fake: stands for Slurm's {name} in unit tests; what it answers, a test has said (fake_slurm.py).
cd {shlex.quote(str(self.folder))} || exit 99
echo "{name} $*" >> calls
env > "environment of {name}"
for queue in "answers/{name} $1" "answers/{name}"; do
    [ -d "$queue" ] || continue
    set -- "$queue" "$queue"/*
    if [ $# -gt 2 ]; then mv "$2" now; . ./now; else . "./$2"; fi
    exit
done
exit 0
"""
        )
        program.chmod(0o755)

    def answers(self, command: str, *scripts: str) -> None:
        """What `command` (`scancel`, `scontrol show`) does from now on, call by call: lines of sh."""
        queue = self.folder / "answers" / command
        for old in queue.glob("*"):
            old.unlink()
        queue.mkdir(parents=True, exist_ok=True)
        for number, script in enumerate(scripts):
            (queue / f"{number:03d}").write_text(f"{script}\n")

    def job_is(self, *cases: str, job: str = "7") -> None:
        """`scontrol show job` says of the job what was recorded in these cases, one after the other."""
        self.answers("scontrol show", *(prints(said(case, job)) for case in cases))

    def queue_is(self, *jobs: tuple[str, str, str, str, str]) -> None:
        """What squeue lists: id, comment, state, reason, start."""
        records = ([job, "name", comment or "(null)", *rest] for job, comment, *rest in jobs)
        self.answers("squeue", "\n".join(f"printf '{QUEUED}' {shlex.join(record)}" for record in records))

    @property
    def calls(self) -> list[str]:
        """All commands so far, with their arguments."""
        return _lines(self.folder / "calls")

    def called(self, name: str) -> list[str]:
        return [call for call in self.calls if call.startswith(name)]

    def environment_of(self, name: str) -> dict[str, str]:
        """That of the last call."""
        return dict(line.split("=", 1) for line in _lines(self.folder / f"environment of {name}") if "=" in line)

    def srun_then(self, *, log: str = "", code: int = 0) -> None:
        """srun starts nothing, and ends with this output and exit code."""
        (self.folder / "srun-log").write_text(log)
        (self.folder / "srun-code").write_text(str(code))

    @property
    def kills_the_step(self) -> str:
        """An answer of scancel's: the step's ranks are killed."""
        return f"kill -HUP $(cat {shlex.quote(str(self.folder / 'srun-pid'))})"


def said(case: str, job: str) -> str:
    """What scontrol said in this case, of the job with that id."""
    text = str(JOBS[case]["said"])
    return f"JobId={job} {text.partition(' ')[2]}"


def prints(text: str) -> str:
    return f"cat <<'END OF TEXT'\n{text}\nEND OF TEXT"


def fails(message: str, code: int = 1) -> str:
    return f"echo {shlex.quote(message)} >&2\nexit {code}"


def _srun() -> str:
    return shlex.join([sys.executable, "-S", str(Path(__file__).with_name("fake_srun.py"))])


def _lines(file: Path) -> list[str]:
    return file.read_text().rstrip("\n").split("\n") if file.exists() else []
