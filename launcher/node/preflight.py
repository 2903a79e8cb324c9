"""Whether the hosts of an attempt can train together, asked before they do: in the allocation, within seconds.

1. Before torch is imported, each rank reports to rank 0 at MASTER_ADDR and MASTER_PORT (rollcall.py). The first rank of
   each host also says which code and packages it finds, and leaves a small file in the run directory, which rank 0 must
   see. Rank 0 compares (hosts.py), names everything that is wrong at once, and else lets all go on.
2. With torch imported, all ranks meet at a store of their own, and a small all-reduce must succeed: over gloo on the
   CPU, and over NCCL on GPUs.

Whoever is there is through within 10 s. Whoever is not may be slow to start (a container that one host alone has to
fetch, imports from a busy file system) and has PATIENCE_S from when rank 0 is ready, for each of the two. A run on one
host skips both: its ranks are children of one process, and see the same.
"""

import logging
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import launcher
from launcher.address import is_local
from launcher.checkpoints import in_order, newest_attempt
from launcher.errors import LauncherError
from launcher.layout import attempt_folder, code_home, progress_path, spec_path
from launcher.node.environment import Place
from launcher.node.hosts import compare, hosts_of, named
from launcher.node.provenance import versions
from launcher.node.rollcall import Answers, Line, RollCall, connect, listen
from launcher.node.stop import StopFlag, Stopped
from launcher.run import Run

PATIENCE_S = 300.0
"""For ranks that have not come. One whose process has died is seen long before by whoever started it."""
SAY_S = 10.0
"""So often the log says who is waited for."""
REACH_S = 10.0
"""An address that was out of reach for so long stays so. Refused is another matter: rank 0 is not there yet."""
GLOO_S = 10.0
NCCL_S = 60.0
"""It takes seconds; a GPU's context and the discovery of the network grow with the number of hosts."""
LEAVE_S = 10.0
"""Ranks that were told to leave wait so long for one another."""
POLL_S = 0.05
LOOK_S = 5.0
"""How often the ledger is looked at for a newer attempt."""

log = logging.getLogger(__name__)


class Unfit(LauncherError):
    """Hosts that cannot train together; the message names each, and what to do."""


class NoRoom(LauncherError):
    """The next checkpoint would not fit."""


class Preflight:
    """Of one rank. To be kept until the process ends: the others take it for alive while its connections are open."""

    def __init__(self, run: Run, place: Place, flag: StopFlag) -> None:
        # A ledger of its own, where it needs one: another thread chooses a checkpoint meanwhile.
        self._run = Run(run.storage) if place.nodes > 1 else run
        self._place, self._flag = place, flag
        self._host = socket.gethostname()
        self._where = f"rank {place.rank} on {self._host}"
        self._ours = {"run": run.id, "attempt": place.attempt}
        self._calls: RollCall | None = None
        self._answers: Answers | None = None
        self._store_listener: socket.socket | None = None
        self._store_port = 0
        self._store: Any = None
        self._looked_at = self._began = self._say_at = time.monotonic()

    # -- without torch

    def compare_hosts(self) -> None:
        """Collective.

        Raises:
            Unfit: on rank 0, which has compared; on any other, that it does not reach rank 0.
            Stopped: some rank was told to leave.
            Fenced: a newer attempt has begun.
            LauncherError: an echo of another rank's end.
            OSError: rank 0's port is taken; or the storage fails.
        """
        if self._place.nodes == 1:
            return
        if self._place.rank == 0:
            self._hear()
        else:
            self._report()

    def _hear(self) -> None:
        self._calls = calls = RollCall(self._place.main_port, self._ours)
        self._begin_to_wait()
        calls.reports[0] = self._own_report()
        while (absent := self._absent(calls.reports)) and not calls.gone and self._is_patient(absent):
            calls.hear(POLL_S)
            self._look_for_newer()
            if number := self._flag.signal or calls.stop:
                calls.answer({"stop": number})
                self._leave(number)
        self._look_for_newer(at_once=True)  # whoever is gone may have seen it first
        self._judge(calls, absent)
        self._store_listener = listen(0)
        self._store_port = self._store_listener.getsockname()[1]
        calls.answer({"store": self._store_port})
        calls.close()
        log.info("preflight: %d ranks on %d hosts agree, %.1f s", *self._size, time.monotonic() - self._began)

    def _judge(self, calls: RollCall, absent: set[int]) -> None:
        from launcher.spec import JobSpec  # pydantic; a rank on one host loads it beside its checkpoint

        hosts = hosts_of(calls.reports.values())
        seen = {host.node for host in hosts if self._sees_mark(host.node, host.name)}
        self._run.storage.delete(_marks(self._place.attempt))
        drift = JobSpec.model_validate(self._run.read_json(spec_path(self._place.attempt))).code.drift
        wrong, differing = compare(hosts, seen, self._run.storage.root, drift)
        if absent and not calls.gone:
            wrong.insert(0, f"{self._named(absent)} did not report within {PATIENCE_S:g} s; see {_LOGS}")
        for difference in differing:
            log.warning("preflight: %s", difference)
        if wrong:
            raise Unfit("; ".join(wrong))
        if calls.gone:
            raise LauncherError(f"{self._named(calls.gone)} ended before all ranks had begun: Connection closed")

    def _report(self) -> None:
        report = self._own_report()
        self._answers = answers = Answers(self._reach())
        answers.say(report)
        while True:
            try:
                answer = answers.within(POLL_S)
            except LauncherError:
                self._look_for_newer(at_once=True)  # rank 0 may have seen it first
                raise
            if answer and (number := answer.get("stop")):
                self._leave(number)
            if answer:
                self._store_port = answer["store"]
                answers.close()
                return
            if self._flag.signal:
                answers.say({"stop": self._flag.signal})
            self._look_for_newer()
            if time.monotonic() - self._began > 2 * PATIENCE_S:
                raise LauncherError(f"rank 0 did not say within {2 * PATIENCE_S:g} s whether to begin; see its log")

    def _reach(self) -> Line:
        """Rank 0, once it listens."""
        address, port = self._place.main_address, self._place.main_port
        reachable_at = time.monotonic()
        while True:
            try:
                return connect(address, port)
            except (ConnectionRefusedError, ConnectionResetError):
                reachable_at = time.monotonic()
                problem = (
                    f"nobody listened there for {PATIENCE_S:g} s; see the log of rank 0, and the firewall of its host"
                )
            except OSError as error:
                problem = f"{error.strerror or error}; see network, firewall and name resolution of these two hosts"
            now = time.monotonic()
            if now - reachable_at > REACH_S or now - self._began > PATIENCE_S:
                raise Unfit(f"{self._where} cannot reach rank 0 at {address}, port {port}: {problem}")
            if self._flag.signal:
                self._leave(self._flag.signal)
            self._look_for_newer()
            time.sleep(POLL_S)

    def _own_report(self) -> dict[str, Any]:
        place = self._place
        found = self._found() if place.local_rank == 0 else None
        return {**self._ours, "rank": place.rank, "node": place.node_rank, "host": self._host, "found": found}

    def _found(self) -> dict[str, Any]:
        """What hosts.Host wants to know, and this rank alone can tell."""
        code = self._run.now.code
        home = Path(code_home(self._place.run_dir, code)) if code else None
        unwritable = None
        try:
            self._run.storage.replace(_mark(self._place.attempt, self._place.node_rank), self._host.encode())
        except OSError as error:
            unwritable = error.strerror or str(error)
        now = versions()
        return {
            "versions": {**now, "packages": {**now["packages"], "launcher": launcher.__version__}},
            "code": code.digest if code else None,
            "missing": str(home) if home and not home.is_dir() else None,
            "unwritable": unwritable,
        }

    def _sees_mark(self, node: int, name: str) -> bool:
        try:
            return self._run.storage.read(_mark(self._place.attempt, node)) == name.encode()
        except FileNotFoundError:
            return False

    # -- with torch

    def all_reduce(self) -> None:
        """Collective.

        Raises:
            Unfit: a rank did not come, or the all-reduce did not succeed.
            Stopped, Fenced: as above.
            RuntimeError: an echo of another rank's end.
        """
        if self._place.nodes == 1:
            return
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        told = self._flag.signal
        try:
            self._store = TCPStore(
                self._place.main_address,
                self._store_port,
                is_master=self._place.rank == 0,
                timeout=timedelta(seconds=LEAVE_S if told else PATIENCE_S),
                wait_for_workers=False,
                master_listen_fd=self._store_listener.detach() if self._store_listener else None,
            )
        except RuntimeError:
            if told:  # rank 0 was told too, and has left
                self._leave(told)
            raise
        self._begin_to_wait()
        self._meet()
        began = time.monotonic()
        self._add_up()
        if self._place.rank == 0:
            log.info("preflight: all-reduce of %d ranks on %d hosts, %.1f s", *self._size, time.monotonic() - began)

    def _meet(self) -> None:
        """Wait until all ranks have imported torch, or one is told to leave: the first to say so decides for all."""
        store, rank, size = self._store, self._place.rank, self._place.world_size
        store.set(f"here-{rank}", "")
        if store.add("here", 1) == size:
            store.compare_set("agreed", "", "go")
        while not store.check(["agreed"]):
            if self._flag.signal:
                store.compare_set("agreed", "", str(self._flag.signal))
            self._look_for_newer()
            if rank == 0 and time.monotonic() - self._began > SAY_S:
                absent = {one for one in range(size) if not store.check([f"here-{one}"])}
                if not self._is_patient(absent):
                    late = f"{self._named(absent)} had not imported torch after {PATIENCE_S:g} s; see {_LOGS}"
                    raise Unfit(late)
            time.sleep(POLL_S)
        if (agreed := store.get("agreed").decode()) != "go":
            store.add("leaving", 1)
            until = time.monotonic() + LEAVE_S
            while rank == 0 and store.add("leaving", 0) < size and time.monotonic() < until:  # the store ends with it
                time.sleep(POLL_S)
            self._leave(int(agreed))

    def _add_up(self) -> None:
        on_gpu = self._place.accelerator == "gpu"
        network, seconds = ("gloo and NCCL", NCCL_S) if on_gpu else ("gloo", GLOO_S)
        try:
            _within(seconds, lambda: self._sum(on_gpu, timedelta(seconds=seconds)))
        except TimeoutError:
            problem = f"has not come to its end after {seconds:g} s"
            raise Unfit(self._not_summed(network, problem)) from None
        except RuntimeError as error:
            raise Unfit(self._not_summed(network, f"failed: {error}")) from error

    def _sum(self, on_gpu: bool, timeout: timedelta) -> None:
        import torch
        import torch.distributed as dist

        place = self._place
        devices = ["cpu", f"cuda:{place.local_rank}"] if on_gpu else ["cpu"]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("sum", self._store),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
        for device in devices:
            total = torch.ones(1, device=device)
            dist.all_reduce(total)
            if total.item() != place.world_size:
                raise RuntimeError(f"{place.world_size} ones add up to {total.item():g} on {device}")
        dist.destroy_process_group()  # Lightning makes its own, as trainer.strategy says

    def _not_summed(self, network: str, problem: str) -> str:
        return (
            f"{self._where}: an all-reduce over {network} of {self._place.world_size} ranks on {self._place.nodes} "
            f"hosts {problem}; hosts must reach one another at all ports; if they have several networks, name the "
            "interface: env.vars.GLOO_SOCKET_IFNAME, env.vars.NCCL_SOCKET_IFNAME"
        )

    # -- common to both

    @property
    def _size(self) -> tuple[int, int]:
        return self._place.world_size, self._place.nodes

    def _absent(self, present: Iterable[int]) -> set[int]:
        return set(range(self._place.world_size)).difference(present)

    def _is_patient(self, absent: Iterable[int]) -> bool:
        now = time.monotonic()
        if now > self._say_at:
            self._say_at = now + SAY_S
            log.info("preflight: waiting for %s", self._named(absent))
        return now - self._began < PATIENCE_S

    def _begin_to_wait(self) -> None:
        self._began = time.monotonic()
        self._say_at = self._began + SAY_S

    def _named(self, ranks: Iterable[int]) -> str:
        """With their hosts, where the ledger knows them."""
        started = {one.number: one.hosts for one in self._run.ledger.refresh().attempts}
        hosts = started.get(self._place.attempt, ())
        if len(hosts) != self._place.nodes:
            return named(ranks)
        on = dict.fromkeys(hosts[rank // self._place.local_world_size] for rank in sorted(ranks))
        return f"{named(ranks)} on {', '.join(on)}"

    def _look_for_newer(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            newest_attempt(self._place.attempt)(self._run.ledger.refresh())

    def _leave(self, number: int) -> None:
        """As Session does between two steps, but for the checkpoint: there is nothing new to save."""
        if self._place.rank == 0:
            left = {"stage": "preflight", "left": signal.Signals(number).name, "time": time.time()}
            self._run.write_json(progress_path(self._place.attempt), left)
        raise Stopped


_LOGS = "their logs, and whether these hosts are up"


def _marks(attempt: int) -> str:
    """Of all nodes; there for as long as it takes to compare them."""
    return f"{attempt_folder(attempt)}/preflight"


def _mark(attempt: int, node: int) -> str:
    return f"{_marks(attempt)}/node-{node:05d}"


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Raises TimeoutError; the action may then go on until the process ends."""
    beside = ThreadPoolExecutor(1)
    beside.submit(action).result(seconds)
    beside.shutdown()


# -- room


def check_room(run: Run, keep_last: int) -> None:
    """Whether the checkpoints that are to come fit, if the last one tells how large they are. Quotas are not seen.

    Raises:
        NoRoom: not even the next one fits.
    """
    checkpoints = in_order(run.ledger.refresh())
    if not checkpoints or not is_local(run.storage.root):
        return
    size, free = checkpoints[-1].bytes, shutil.disk_usage(run.storage.root).free
    to_come = max(1, keep_last + 1 - len(checkpoints))  # one more than is kept: it is pruned after the next is written
    said = f"{run.storage.root} has room for {free / 1e9:.1f} GB, and a checkpoint takes {size / 1e9:.1f} GB"
    if free < size:
        raise NoRoom(f"{said}: make room, or have the run elsewhere")
    if free < to_come * size:
        log.warning("%s: %d more are to be kept; make room, or lower checkpoint.keep_last", said, to_come)
