"""Runs on the fake Cloud TPU: launched, followed, disturbed. Their ranks are stubs, which start at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import snapshot, tree
from launcher.address import below
from launcher.record import Record
from launcher.run import Run, create_run
from launcher.spec import JobSpec
from tpu.cloud import Cloud
from tpu.slices import ZONE, eventually

HERE = Path(__file__).parent
JOB = HERE / "job"
LONG_S = 120.0
"""Machines come up, ranks start, on a machine that is busy with other things."""
QUICK = ("LOOK_S=0.5", "SILENT_S=8", "ECHO_S=2")


class Launch:
    """A run, and the processes that drive it, one after the other."""

    def __init__(self, cloud: Cloud, runs: str, name: str, folder: Path, **sections: Any) -> None:
        """
        Args:
            runs: the address of the folder of runs.
            folder: of this test.
        """
        self.cloud, self._folder, self._drivers = cloud, folder, list[subprocess.Popen[bytes]]()
        tpu = {"accelerator_type": "v4-16", "zone": ZONE, "project": "fake-project", "python": sys.executable}
        tpu |= sections.pop("tpu", {})
        body = {
            "name": name,
            "model": {"class_path": "gs_stub.None_"},
            "resources": {"cpus_per_task": 1},
            "tpu": tpu,
            **sections,
        }
        spec = JobSpec.model_validate(body)
        record = Record(
            id=name,
            name=name,
            created=time.time(),
            target="cloud",
            site={"kind": "tpu"},
            spec=body,
            spec_file=str(JOB / "job.yaml"),
            spec_text=json.dumps(body),
            import_path=(str(JOB),),
            workdir=str(JOB),
        )
        run_dir = below(runs, name)
        sources = tree.survey([JOB], exclude=(), max_bytes=1 << 20, run_dir=run_dir)
        with snapshot.staged(sources, run_dir, record.import_path, record.workdir) as staged:
            staged.publish()
            self.run: Run = create_run(runs, replace(record, code=staged.code))
        self.spec = spec

    # Its drivers

    def drive(self, *words: str, machine: str = "here") -> subprocess.Popen[bytes]:
        """In the background, as from a machine of this name."""
        home = self._folder / machine
        home.mkdir(exist_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "CLOUDSDK"))}
        env |= {"HOME": str(home), "XDG_STATE_HOME": str(home), "LAUNCHER_SCRATCH": str(home), **self.cloud.env}
        command = [sys.executable, str(HERE / "drive.py"), self.run.storage.root, *(words or QUICK)]
        with (self._folder / f"driver-{len(self._drivers)}.log").open("wb") as log:
            self._drivers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        return self._drivers[-1]

    def kill(self) -> None:
        """The driver, and no warning."""
        self._drivers[-1].send_signal(signal.SIGKILL)
        self._drivers[-1].wait()

    def wait(self, seconds: float = LONG_S) -> str:
        """What the driver said at last; it has left in peace."""
        code = self._drivers[-1].wait(seconds)
        assert code == 0, self.said
        return self.said

    @property
    def said(self) -> str:
        return (self._folder / f"driver-{len(self._drivers) - 1}.log").read_text()

    def close(self) -> None:
        for driver in self._drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()

    # What becomes of it

    def ends_after(self, steps: int) -> None:
        self.run.storage.replace("steps", str(steps).encode())

    def until(self, condition: Callable[[], object], awaited: str) -> None:
        """The driver lives until then."""

        def there() -> object:
            assert self._drivers[-1].poll() is None, self.said
            return condition()

        eventually(there, f"{awaited}; {self.said}", LONG_S)

    def until_step(self, step: int, attempt: int = 1) -> None:
        self.until(lambda: self._steps(attempt) >= step, f"step {step} of attempt {attempt}")

    def _steps(self, attempt: int) -> int:
        found = self.run.read_json(f"attempts/{attempt:03d}/progress.json")
        return int(found["step"]) if found else 0

    @property
    def steps(self) -> int:
        return self._steps(self.attempts[-1].number)

    @property
    def claim(self) -> dict[str, Any]:
        """Of the newest attempt; empty where it has not been written down."""
        return self.run.read_json(f"attempts/{self.attempts[-1].number:03d}/slice.json") or {}

    @property
    def hosts_up(self) -> bool:
        return bool(self.claim["ready"])

    @property
    def log_begins(self) -> bool:
        return bool(self.run.storage.list(f"attempts/{self.attempts[-1].number:03d}/logs/rank-00000.log"))

    @property
    def verdict(self) -> object:
        return self.claim["verdict"]

    @property
    def attempts(self) -> Sequence[Any]:
        return self.run.ledger.refresh().attempts

    @property
    def causes(self) -> list[str | None]:
        return [one.cause for one in self.attempts]

    @property
    def node(self) -> str:
        """Of the newest attempt."""
        return str(self.claim["name"])

    @property
    def asked_for(self) -> list[str]:
        """Names of all machines that were ever asked for, in their order."""
        return [
            one["query"]["queuedResourceId"]
            for one in self.requests
            if one["method"] == "queuedResources.create" and one["status"] == 200
        ]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Of this run alone, but for those that name nothing."""
        mine = f"{self.run.id}-"
        return [one for one in self.cloud.requests() if mine in one["path"] or mine in json.dumps(one["query"])]

    def nothing_left(self) -> bool:
        status = self.cloud.status()
        return not [one for key in ("nodes", "queuedResources") for one in status[key] if self.run.id in one["name"]]

    def log(self, attempt: int, rank: int) -> str:
        from launcher.output import parts

        path = f"attempts/{attempt:03d}/logs/rank-{rank:05d}.log"
        return b"".join(parts(self.run.storage, path)).decode()
