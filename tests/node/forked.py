"""Training in tests: real ranks and process groups, forked from the test process, which has imported torch already."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer  # noqa: F401 - imported here once, so that no rank has to

from launcher.backends.local import LocalBackend, Machine
from launcher.checkpoints import in_order
from launcher.driver import start_ticks
from launcher.events import RunEnded
from launcher.layout import log_path
from launcher.node import training, worker  # noqa: F401 - as above
from launcher.record import Record
from launcher.run import Run, create_run
from launcher.spec import JobSpec
from launcher.supervise import Supervisor

HERE = Path(__file__).parent

# A pool of OpenMP threads does not survive a fork: a rank that is forked after some test has computed with several
# threads waits for them forever.
torch.set_num_threads(1)


class ForkedProcess:
    """What shell.Process is, for a fork."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started = start_ticks(pid) or 0
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class ForkBackend(LocalBackend):
    """The local backend without the seconds that each rank spends on importing torch."""

    def __init__(self) -> None:
        super().__init__(Machine(cpus=2, gpus=()))

    def _spawn(self, argv: tuple[str, ...], env: Mapping[str, str], workdir: str, log: str) -> Any:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            _become_rank(env, workdir, log)
        return ForkedProcess(pid)


def _become_rank(env: Mapping[str, str], workdir: str, log: str) -> None:
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(workdir)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
        warnings.resetwarnings()
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
        code = worker.main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Training:
    """Drives specs to their end in a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, spec: Mapping[str, Any], name: str = "run") -> Run:
        body = {"name": "test", **spec}
        ranks = JobSpec.model_validate(body).resources.nodes * spec.get("resources", {}).get("tasks_per_node", 1)
        record = Record(
            id=name,
            name="test",
            created=0.0,
            target="local",
            spec=JobSpec.model_validate(body).model_dump(mode="json", exclude_unset=True),
            spec_file="",
            spec_text="",
            import_path=(str(HERE), str(HERE.parent.parent)),
            workdir=str(self.root),
            ranks=ranks,
        )
        return create_run(self.root / "runs", record)

    def drive(self, run: Run) -> RunEnded:
        spec = JobSpec.model_validate(run.now.spec)
        return Supervisor(run, spec, ForkBackend()).drive()

    def run(self, spec: Mapping[str, Any], name: str = "run") -> Run:
        """Create and drive; a run that does not finish fails the test with its log."""
        run = self.create(spec, name)
        ended = self.drive(run)
        assert ended.state == "finished", f"{ended}\n{log_of(run)}"
        return run


def log_of(run: Run, rank: int = 0) -> str:
    """All attempts' logs of one rank."""
    paths = [Path(run.storage.root) / log_path(one.number, rank) for one in run.ledger.refresh().attempts]
    return "\n".join(path.read_text() for path in paths if path.exists())


def last_checkpoint(run: Run) -> dict[str, Any]:
    saved = in_order(run.ledger.refresh())[-1]
    loaded: dict[str, Any] = torch.load(f"{run.storage.root}/{saved.path}", weights_only=True)
    return loaded


def same_weights(one: Run, other: Run) -> bool:
    """Bit for bit, over everything in the state dict."""
    a, b = last_checkpoint(one)["state_dict"], last_checkpoint(other)["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, over all tensors and values within."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
