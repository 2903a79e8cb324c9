"""Whether the hosts of an attempt can train together, asked before they do: in the allocation, within seconds.

1. Before torch is imported, each rank reports to rank 0 at MASTER_ADDR and MASTER_PORT (rollcall.py). The first rank of
   each host also says which code and packages it finds, and leaves a small file in the run directory, which rank 0 must
   see. Rank 0 compares (hosts.py), names everything that is wrong at once, and else lets all go on.
2. With torch imported, all ranks meet at a store of their own (meeting.py), and a small all-reduce must succeed: over
   gloo on the CPU, and over NCCL on GPUs.

Whoever is there is through within 10 s. Whoever is not may be slow to start (a container that one host alone has to
fetch, imports from a busy file system) and has PATIENCE_S from when rank 0 is ready, for each of the two. A run on one
host skips both: its ranks are children of one process, and see the same.
"""

import logging
import socket
import time
from pathlib import Path
from typing import Any

import launcher
from launcher.errors import LauncherError
from launcher.layout import attempt_folder, code_home, spec_path
from launcher.node import waiting
from launcher.node.environment import Place
from launcher.node.hosts import compare, hosts_of
from launcher.node.meeting import Meeting
from launcher.node.provenance import versions
from launcher.node.rollcall import Answers, Line, RollCall, connect, listen
from launcher.node.stop import StopFlag
from launcher.node.waiting import LOGS, Unfit, Waiting
from launcher.run import Run

REACH_S = 10.0
"""An address that was out of reach for so long stays so. Refused is another matter: rank 0 is not there yet."""

log = logging.getLogger(__name__)


class Preflight:
    """Of one rank. To be kept until the process ends: the others take it for alive while its connections are open."""

    def __init__(self, run: Run, place: Place, flag: StopFlag) -> None:
        self._place, self._flag = place, flag
        self._wait = Waiting(run, place)
        self._meeting = Meeting(self._wait, place, flag)
        self._ours = {"run": run.id, "attempt": place.attempt}
        self._calls: RollCall | None = None
        self._answers: Answers | None = None
        self._store_listener: socket.socket | None = None
        self._store_port = 0

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
        self._wait.begin()
        calls.reports[0] = self._own_report()
        while (absent := self._wait.absent(calls.reports)) and not calls.gone and self._wait.is_patient(absent):
            calls.hear(waiting.POLL_S)
            self._wait.look_for_newer()
            if number := self._flag.signal or calls.stop:
                calls.answer({"stop": number})
                self._wait.leave(number)
        self._wait.look_for_newer(at_once=True)  # whoever is gone may have seen it first
        self._judge(calls, absent)
        self._store_listener = listen(0)
        self._store_port = self._store_listener.getsockname()[1]
        calls.answer({"store": self._store_port})
        calls.close()
        log.info("preflight: %d ranks on %d hosts agree, %.1f s", *self._wait.size, time.monotonic() - self._wait.began)

    def _judge(self, calls: RollCall, absent: set[int]) -> None:
        from launcher.spec import JobSpec  # pydantic; a rank on one host loads it beside its checkpoint

        hosts = hosts_of(calls.reports.values())
        seen = {host.node for host in hosts if self._sees_mark(host.node, host.name)}
        self._wait.run.storage.delete(_marks(self._place.attempt))
        drift = JobSpec.model_validate(self._wait.run.read_json(spec_path(self._place.attempt))).code.drift
        wrong, differing, faulty = compare(hosts, seen, self._wait.run.storage.root, drift)
        if absent and not calls.gone:
            faulty |= self._wait.nodes_of(absent)
            wrong.insert(0, f"{self._wait.named(absent)} did not report within {waiting.PATIENCE_S:g} s; see {LOGS}")
        for difference in differing:
            log.warning("preflight: %s", difference)
        if wrong:
            raise Unfit("; ".join(wrong), faulty)
        if calls.gone:
            raise LauncherError(f"{self._wait.named(calls.gone)} ended before all ranks had begun: Connection closed")

    def _report(self) -> None:
        report = self._own_report()
        self._answers = answers = Answers(self._reach())
        answers.say(report)
        while True:
            try:
                answer = answers.within(waiting.POLL_S)
            except LauncherError:
                self._wait.look_for_newer(at_once=True)  # rank 0 may have seen it first
                raise
            if answer and (number := answer.get("stop")):
                self._wait.leave(number)
            if answer:
                self._store_port = answer["store"]
                answers.close()
                return
            if self._flag.signal:
                answers.say({"stop": self._flag.signal})
            self._wait.look_for_newer()
            if time.monotonic() - self._wait.began > 2 * waiting.PATIENCE_S:
                raise LauncherError(
                    f"rank 0 did not say within {2 * waiting.PATIENCE_S:g} s whether to begin; see its log"
                )

    def _reach(self) -> Line:
        """Rank 0, once it listens."""
        address, port = self._place.main_address, self._place.main_port
        reachable_at = time.monotonic()
        while True:
            try:
                return connect(address, port)
            except (ConnectionRefusedError, ConnectionResetError):
                reachable_at = time.monotonic()
                since = f"nobody listened there for {waiting.PATIENCE_S:g} s"
                problem = f"{since}; see the log of rank 0, and the firewall of its host"
            except OSError as error:
                problem = f"{error.strerror or error}; see network, firewall and name resolution of these two hosts"
            now = time.monotonic()
            if now - reachable_at > REACH_S or now - self._wait.began > waiting.PATIENCE_S:
                said = f"{self._wait.where} cannot reach rank 0 at {address}, port {port}: {problem}"
                raise Unfit(said, [self._place.node_rank])
            if self._flag.signal:
                self._wait.leave(self._flag.signal)
            self._wait.look_for_newer()
            time.sleep(waiting.POLL_S)

    def _own_report(self) -> dict[str, Any]:
        place = self._place
        found = self._found() if place.local_rank == 0 else None
        return {**self._ours, "rank": place.rank, "node": place.node_rank, "host": self._wait.host, "found": found}

    def _found(self) -> dict[str, Any]:
        """What hosts.Host wants to know, and this rank alone can tell."""
        code = self._wait.run.now.code
        home = Path(code_home(self._place.run_dir, code)) if code else None
        unwritable = None
        try:
            self._wait.run.storage.replace(_mark(self._place.attempt, self._place.node_rank), self._wait.host.encode())
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
            return self._wait.run.storage.read(_mark(self._place.attempt, node)) == name.encode()
        except FileNotFoundError:
            return False

    def all_reduce(self) -> None:
        """Collective; raises as Meeting does."""
        if self._place.nodes > 1:
            self._meeting.all_reduce(self._store_port, self._store_listener)


def _marks(attempt: int) -> str:
    """Of all nodes; there for as long as it takes to compare them."""
    return f"{attempt_folder(attempt)}/preflight"


def _mark(attempt: int, node: int) -> str:
    return f"{_marks(attempt)}/node-{node:05d}"
