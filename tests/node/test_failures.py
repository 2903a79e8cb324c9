"""What ranks make of their exceptions: provoked for real where that can be, else by texts seen elsewhere."""

import json
import logging
import os
import pickle
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import Training, log_of
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset
from toys import Classifier

from launcher.diagnosis import UNWRITABLE
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.events import ResumeRequested
from launcher.kinds import Kind, classified
from launcher.node import worker
from launcher.node.checkpoint_io import DurableCheckpointIO
from launcher.node.environment import Place
from launcher.node.instantiate import instantiate
from launcher.node.waiting import Unfit
from launcher.policy import Cause
from launcher.run import Run, failures

GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
GLOO_TAIL = " Check the logs of the remote worker before reporting an error. GLHF! 🏖️"

SEEN = [
    # torch 2.14.1, gloo, CPU, Linux: seen by what is provoked below
    (Kind.PEER, f"{GLOO}pair.cc:545] Read error [127.0.0.1]:16604: Connection reset by peer.{GLOO_TAIL}"),
    (Kind.PEER, f"{GLOO}pair.cc:561] Connection closed by peer [127.0.0.1]:3506.{GLOO_TAIL}"),
    (Kind.HANG, f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"),
    (Kind.HANG, "Timed out after 3 seconds waiting for clients. 1/2 clients joined."),
    (Kind.HANG, "The client socket has timed out after 2000ms while trying to connect to (127.0.0.1, 29912)."),
    (Kind.HANG, "wait timeout after 3000ms, keys: /default_pg/0//x"),
    (
        Kind.PEER,
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ),
    (
        Kind.PORT,
        "The server socket has failed to listen on any local network address. port: 60853, useIpv6: false, code: -98, "
        "name: EADDRINUSE, message: address already in use",
    ),
    (
        Kind.MEMORY,
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)",
    ),
    (Kind.DISK, "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    (Kind.LOADER, "DataLoader worker (pid 4537) is killed by signal: Killed. "),
    (Kind.LOADER, "DataLoader worker (pid(s) 4537) exited unexpectedly"),
    (
        Kind.LOADER,
        "DataLoader worker (pid 4545) exited unexpectedly with exit code 5. Details are lost due to multiprocessing. "
        "Rerunning with num_workers=0 may give better error trace.",
    ),
    (Kind.PREEMPTED, "DataLoader worker (pid 4539) is killed by signal: Terminated. "),
    (Kind.PREEMPTED, "DataLoader worker (pid 4541) is killed by signal: User defined signal 2. "),
    # the same, with /dev/shm of 1 MB
    (
        Kind.SHARED_MEMORY,
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_4581_3045199097_0>: "
        "No space left on device (28)\n",
    ),
    # not seen here: torch/utils/data/_utils/signal_handling.py and worker.py of torch 2.14
    (
        Kind.SHARED_MEMORY,
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ),
    # not seen here, for want of a GPU: pytorch/pytorch#16417 (2019 and 2024), pytorch/pytorch#111187
    (Kind.GPU_MEMORY, "CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity)"),
    (Kind.GPU_MEMORY, "CUDA error: out of memory"),
    (Kind.GPU_MEMORY, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (
        Kind.GPU_MEMORY,
        "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1331, unhandled cuda error\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    ),
    # NVIDIA/nccl#2076, NVIDIA/nccl#1514, NVIDIA/nccl#1241, hiyouga/LlamaFactory#7396
    (
        Kind.PEER,
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a "
        "network error, NCCL version 2.21.5\nncclRemoteError: A call failed possibly due to a network error or a "
        "remote process exiting prematurely.",
    ),
    (
        Kind.PEER,
        "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, internal error, NCCL version 2.14.3\n"
        "ncclInternalError: Internal check failed.\nLast error:\nNet : Connection closed by remote peer user<50260>",
    ),
    (
        Kind.ERROR,
        "NCCL error in: /opt/pytorch/pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1287, invalid usage, "
        "NCCL version 2.17.1\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
    ),
    (
        Kind.HANG,
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, "
        "NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 milliseconds before timing out.",
    ),
    # what users say themselves
    (Kind.ERROR, "Timed out waiting for the lock"),
    (Kind.ERROR, "Distributed package doesn't have NCCL built in"),
    (Kind.ERROR, "mat1 and mat2 shapes cannot be multiplied (8x16 and 15x32)"),
    (Kind.ERROR, "DataLoader timed out after 60 seconds"),
    (
        Kind.ERROR,
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/home/me/gloo/transport/broken pipe.py", line 3\nRuntimeError: no such sample\n',
    ),
]


@pytest.mark.parametrize(("kind", "text"), SEEN, ids=lambda value: value[:60] if len(value) > 20 else None)
def test_texts_are_known(kind: Kind, text: str) -> None:
    assert classified(RuntimeError(text))[0] == kind


def test_texts_of_torch_are_not_looked_for_in_the_user_s_own_exceptions() -> None:
    assert {classified(ValueError(text))[0] for _, text in SEEN} == {Kind.ERROR}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 22.78 GiB."), Kind.GPU_MEMORY),
        (torch.OutOfMemoryError("of another accelerator"), Kind.GPU_MEMORY),
        (dist.DistBackendError("something new"), Kind.PEER),
        (type("Drift", (LauncherError,), {})("torch 2.9 instead of 2.14"), Kind.DRIFT),
        (UsageError("trainer.precision: ..."), Kind.SPEC),
        (FormatTooNew("written by launcher 9"), Kind.ERROR),
        (LauncherError("rank 0 of attempt 1 did not say within 600 s where to begin; see its log"), Kind.HANG),
        (OSError(28, "No space left on device"), Kind.DISK),
        (OSError(122, "Disk quota exceeded"), Kind.DISK),
        (OSError(98, "Address already in use"), Kind.PORT),
        (OSError(12, "Cannot allocate memory"), Kind.MEMORY),
        (ConnectionResetError(104, "Connection reset by peer"), Kind.ERROR),
        (FileNotFoundError(2, "No such file or directory"), Kind.ERROR),
        (ModuleNotFoundError("No module named 'apex'"), Kind.IMPORT),
        (SystemExit(3), Kind.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_types_are_known(error: BaseException, kind: Kind) -> None:
    assert classified(error)[0] == kind


def raised(raise_: Callable[[], Any]) -> BaseException:
    """The exception that it raises, with its traceback and chain."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        raise_()
    return caught.value


class TestChain:
    def test_what_came_first_is_told_and_not_what_became_of_it(self) -> None:
        def save() -> None:
            with Path("/dev/full").open("wb") as file:
                torch.save({"a": torch.ones(100_000)}, file)

        error = raised(save)
        kind, first = classified(error)

        assert (kind, type(first), str(first)) == (Kind.DISK, OSError, "[Errno 28] No space left on device")

    def test_an_exception_while_a_lost_peer_is_handled_is_an_echo(self) -> None:
        def handle() -> None:
            try:
                raise RuntimeError(SEEN[0][1])
            except RuntimeError:
                {}["state"]

        assert classified(raised(handle))[0] == Kind.PEER

    def test_memory_is_told_though_it_only_shows_inside_a_constructor(self) -> None:
        spec = {"class_path": "test_failures.Huge", "init_args": {}}

        assert classified(raised(lambda: instantiate(spec, "model")))[0] == Kind.MEMORY

    def test_an_import_error_that_was_handled_is_no_cause(self) -> None:
        def handle() -> None:
            try:
                import surely_not_installed  # noqa: F401
            except ImportError:
                raise ValueError("apex is needed for fused=True")  # noqa: B904

        assert classified(raised(handle))[0] == Kind.ERROR

    def test_a_chain_that_bites_its_tail_comes_to_an_end(self) -> None:
        one, other = ValueError(), KeyError()
        one.__context__, other.__context__ = other, one

        assert classified(one)[0] == Kind.ERROR


class Huge(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.empty(10**15)


class TestSpec:
    @pytest.mark.parametrize(
        ("class_path", "init_args", "kind"),
        [
            ("toys.Clasifier", {}, Kind.SPEC),
            ("toys.Classifier", {"lrr": 1}, Kind.SPEC),
            ("toys.Fussy", {"size": -1}, Kind.SPEC),
            ("toyz.Classifier", {}, Kind.IMPORT),
            ("broken_module.Net", {}, Kind.IMPORT),
            ("user_typo.Net", {}, Kind.ERROR),
            ("user_name.Net", {}, Kind.IMPORT),
        ],
    )
    def test_what_does_not_fit(
        self, class_path: str, init_args: dict[str, Any], kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "user_typo.py").write_text("def f(:\n")
        (tmp_path / "user_name.py").write_text("from os import nowhere\n")
        spec = {"class_path": class_path, "init_args": init_args}

        assert classified(raised(lambda: instantiate(spec, "model")))[0] == kind


class TestMemory:
    def test_an_allocation_of_torch_fails(self) -> None:
        assert classified(raised(lambda: torch.empty(10**15)))[0] == Kind.MEMORY

    def test_an_allocation_of_python_fails(self) -> None:
        assert classified(raised(lambda: bytearray(10**17)))[0] == Kind.MEMORY

    def test_an_allocation_of_numpy_fails(self) -> None:
        assert classified(raised(lambda: np.ones(10**15)))[0] == Kind.MEMORY

    def test_a_limit_on_memory(self) -> None:
        def limited() -> Any:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE") + (1 << 28)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            return torch.ones(1 << 28)

        assert provoke(limited)[0]["kind"] == Kind.MEMORY


class Bad(Dataset[Any]):
    """Ends the process that draws from it, or what the test wants."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.act()


class TestLoader:
    """Each in a process of its own, for what torch leaves behind."""

    def of(self, act: Callable[[], Any], **more: Any) -> dict[str, Any]:
        return provoke(lambda: list(DataLoader(Bad(act), num_workers=1)), **more)[0]

    def test_a_killed_worker(self) -> None:
        assert self.of(lambda: os.kill(os.getpid(), signal.SIGKILL))["kind"] == Kind.LOADER

    def test_a_worker_that_the_out_of_memory_killer_ended(self) -> None:
        assert self.of(lambda: os.kill(os.getpid(), signal.SIGKILL), oom_kills=1)["kind"] == Kind.MEMORY
        assert self.of(lambda: os._exit(5), oom_kills=1)["kind"] == Kind.LOADER

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
    def test_a_worker_that_the_scheduler_s_signal_reached(self, number: signal.Signals) -> None:
        found = self.of(lambda: [os.kill(os.getpid(), number), time.sleep(9)])

        assert found["kind"] == Kind.PREEMPTED
        assert "is killed by signal" in found["message"]  # and not what became of it

    @pytest.mark.parametrize(
        ("path", "kind"), [("/dev/full", Kind.DISK), ("/nowhere/at/all", Kind.ERROR)], ids=["full", "absent"]
    )
    def test_an_exception_in_a_worker(self, path: str, kind: Kind) -> None:
        assert self.of(lambda: Path(path).write_text("1" * 100_000))["kind"] == kind


class TestPeers:
    """Two processes and gloo."""

    def test_a_killed_peer(self) -> None:
        echo, killed = collective(lambda: dist.all_reduce(ONES), lambda: os.kill(os.getpid(), signal.SIGKILL))

        assert (echo["kind"], killed) == (Kind.PEER, -signal.SIGKILL)

    def test_a_peer_that_leaves(self) -> None:
        echo, _ = collective(lambda: dist.all_gather_object([None, None], {}), lambda: os._exit(0))

        assert echo["kind"] == Kind.PEER

    def test_a_peer_that_does_not_come(self) -> None:
        waited, late = collective(
            lambda: dist.all_reduce(ONES), lambda: [time.sleep(10), dist.all_reduce(ONES)], patience=4
        )

        assert "Timed out waiting" in waited["message"]
        assert (waited["kind"], late["kind"]) == (Kind.HANG, Kind.PEER)

    def test_a_store_that_does_not_come(self) -> None:
        assert provoke(lambda: join(1, free_port(), 1))[0]["kind"] == Kind.HANG

    def test_clients_that_do_not_come(self) -> None:
        assert provoke(lambda: join(0, free_port(), 1))[0]["kind"] == Kind.HANG

    def test_a_port_in_use(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]

            assert provoke(lambda: join(0, port, 1))[0]["kind"] == Kind.PORT


ONES = torch.ones(1000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def join(rank: int, port: int, seconds: float) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))


def collective(*acts: Callable[[], Any], patience: float = 60) -> list[Any]:
    """What becomes of two ranks that met and then do this.

    Args:
        patience: seconds that they wait for each other.
    """
    port = free_port()

    def rank(number: int) -> Callable[[], Any]:
        def run() -> Any:
            join(number, port, patience)
            dist.all_reduce(torch.ones(1))
            return acts[number]()

        return run

    return provoke(*map(rank, range(len(acts))))


def provoke(*acts: Callable[[], Any], oom_kills: int | None = None) -> list[Any]:
    """Do each in a fork of this process.

    Returns:
        Of each the kind and message of its exception, or its exit code if it raised none.
    """
    children = []
    for act in acts:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            try:
                act()
            except BaseException as error:
                kind, first = classified(error, oom_kills=oom_kills)
                os.write(writer, json.dumps({"kind": kind, "message": str(first)[:2000]}).encode())
            os._exit(0)
        os.close(writer)
        os.set_blocking(reader, False)
        children.append((pid, reader))
    return [_outcome(pid, reader) for pid, reader in children]


def _outcome(pid: int, reader: int) -> Any:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # workers of a DataLoader outlive it by seconds
    with os.fdopen(reader, "rb") as told:
        text = told.read()
    return json.loads(text) if text else code


# -- whole runs

SPEC: dict[str, Any] = {
    "model": {"class_path": "test_failures.Resized"},
    "data": {"class_path": "toys.NoisyData"},
    "trainer": {"max_epochs": 1, "logger": False, "enable_model_summary": False},
    "resources": {"tasks_per_node": 2},
    "checkpoint": {"every_n_steps": 5},
    "retry": {"infra": 0},
}


class Resized(Classifier):
    """Has another size from the second attempt on, as if the user had changed the code."""

    def __init__(self, layers: int = 0) -> None:
        super().__init__()
        attempt = int(os.environ["LAUNCHER_ATTEMPT"])
        self.net[0], self.net[3] = nn.Linear(16, 31 + attempt), nn.Linear(31 + attempt, 2)


class Reshaped(Resized):
    """The same weights, but other groups of the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0], self.net[3] = nn.Linear(16, 32), nn.Linear(32, 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if os.environ["LAUNCHER_ATTEMPT"] == "1":
            return super().configure_optimizers()
        return torch.optim.Adam(self.net[0].parameters(), 1e-2)


class Does(Callback):
    """Something bad in rank 1 after the sixth step."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 6 and trainer.global_rank == 1:
            getattr(self, self.what)()

    def fill(self) -> None:
        Path("/dev/full").write_text("1" * 100_000)

    def fail(self) -> None:
        raise ValueError(f"PYTHONSAFEPATH: {os.environ.get('PYTHONSAFEPATH')}")

    def exit(self) -> None:
        os._exit(3)


def doing(what: str, **more: Any) -> Mapping[str, Any]:
    callback = {"class_path": "test_failures.Does", "init_args": {"what": what}}
    return {**SPEC, "trainer": {**SPEC["trainer"], "callbacks": [callback]}, **more}


def kinds(run: Run, attempt: int = 1) -> dict[int, str]:
    return {record["rank"]: record["kind"] for record in failures(run, attempt)}


def test_a_full_disk_is_the_cause_and_the_lost_peer_its_echo(launch: Training) -> None:
    run = launch.create(doing("fill"))

    ended = launch.drive(run)

    assert ended.reason == "attempt 1: rank 1: OSError: [Errno 28] No space left on device", log_of(run)
    assert run.ledger.refresh().attempts[0].cause == Cause.INFRA
    assert kinds(run) == {0: "peer", 1: "disk"}


def test_a_rank_that_exits_without_a_word_is_the_cause(launch: Training) -> None:
    run = launch.create(doing("exit"))

    assert "rank 1 exited with code 3" in launch.drive(run).reason
    assert kinds(run) == {0: "peer"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Resized", "state_dict for Resized: size mismatch for net.0.weight: copying a param with shape"),
        ("Reshaped", "ValueError: loaded state dict contains a parameter group that doesn't match"),
    ],
)
def test_a_checkpoint_of_another_model_is_told_from_the_user_s_error(
    launch: Training, model: str, message: str
) -> None:
    spec = doing("fail", model={"class_path": f"test_failures.{model}"}, env={"vars": {"PYTHONSAFEPATH": "1"}})
    run = launch.create(spec)
    # The variable was for the interpreter's start: the user's own code does not inherit it.
    assert launch.drive(run).reason == "attempt 1: rank 1: ValueError: PYTHONSAFEPATH: None"

    run.ledger.append(ResumeRequested(by="test"), after=run.ledger.refresh().version)
    ended = launch.drive(run)

    assert message in ended.reason
    assert run.ledger.refresh().attempts[1].cause == Cause.ERROR
    assert set(kinds(run, 2).values()) == {"checkpoint"}


@pytest.mark.parametrize("content", [b"", os.urandom(1000), pickle.dumps({"a": 1})], ids=["empty", "noise", "pickle"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "noise.ckpt"
    file.write_bytes(content)
    trainer = Trainer(logger=False, enable_checkpointing=False, plugins=[DurableCheckpointIO()])

    error = raised(lambda: trainer._checkpoint_connector.resume_start(str(file), weights_only=True))

    assert classified(error)[0] == Kind.CHECKPOINT
    # The user's own weights, by contrast, are the user's affair.
    assert classified(raised(lambda: torch.load(file, weights_only=True)["a"]["b"]))[0] == Kind.ERROR


# -- the record itself

PLACE = Place(
    run_dir="",
    attempt=1,
    rank=0,
    world_size=1,
    local_rank=0,
    local_world_size=1,
    node_rank=0,
    accelerator="cpu",
    main_address="",
    main_port=0,
)


def test_a_rank_that_finds_hosts_unfit_says_which(launch: Training) -> None:
    run = launch.create(SPEC)

    worker._record_failure(run, PLACE, Unfit("n2 has no code", {1}), stopping=False, killed=None)

    (record,) = failures(run, PLACE.attempt)
    assert (record["kind"], record["nodes"]) == (Kind.HOSTS, [1])


def test_the_record_says_whether_the_rank_was_to_stop_and_what_the_kernel_counted(launch: Training) -> None:
    run = launch.create(SPEC)

    code = worker._record_failure(run, PLACE, KeyError("label"), stopping=True, killed=2)

    (record,) = failures(run, 1)
    assert code == 1
    assert (record["kind"], record["type"], record["stopping"], record["oom_kills"]) == ("error", "KeyError", True, 2)


def test_the_record_tells_what_came_first_unless_the_launcher_put_it_into_words_itself(launch: Training) -> None:
    run = launch.create(SPEC)
    became, said = RuntimeError("unexpected pos 704 vs 598"), UsageError("model: toys.Net could not be made: OSError")
    became.__context__ = said.__cause__ = OSError(28, "No space left on device")

    for attempt, error in ((1, became), (2, said)):
        worker._record_failure(run, replace(PLACE, attempt=attempt), error, stopping=False, killed=None)

    (first,), (second,) = failures(run, 1), failures(run, 2)
    assert (first["kind"], first["type"], first["message"]) == ("disk", "OSError", "[Errno 28] No space left on device")
    assert (second["kind"], second["type"], second["message"]) == ("disk", "UsageError", str(said))
    assert "RuntimeError: unexpected pos" in first["traceback"]


def test_a_record_that_cannot_be_written_is_told_by_the_exit_code(
    launch: Training, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = launch.create(SPEC)
    monkeypatch.setattr(run, "write_json", lambda path, body: Path("/dev/full").write_text(json.dumps(body)))
    monkeypatch.setattr(logging.getLogger("launcher"), "propagate", True)

    assert worker._record_failure(run, PLACE, KeyError("label"), stopping=False, killed=None) == UNWRITABLE
    assert "cannot write to the run directory: [Errno 28] No space left on device" in caplog.text
