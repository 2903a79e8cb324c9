"""Hosts are compared before they train together: real processes, forked, which take themselves for ranks on hosts.

NCCL is not tried here, for want of GPUs: of the all-reduce, only gloo's part is.
"""

import json
import logging
import os
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked import Training, log_of

from launcher.address import storage_at
from launcher.errors import Fenced
from launcher.events import AttemptStarted, AttemptStarting, CheckpointSaved, Event
from launcher.kinds import Kind, classified
from launcher.layout import progress_path
from launcher.node import meeting, preflight, rollcall, training, waiting
from launcher.node.environment import Place
from launcher.node.hosts import Host, compare, named
from launcher.node.meeting import Meeting
from launcher.node.preflight import Preflight
from launcher.node.room import NoRoom, check_room
from launcher.node.stop import StopFlag, Stopped
from launcher.record import Code, Tree
from launcher.run import Run, create_run
from launcher.storage import PosixStorage

MakeRun = Callable[..., Run]
Fault = Callable[[], object]

VERSIONS = {"python": "3.11.7", "platform": "", "packages": {"torch": "2.9", "rich": "13"}}


class Outcome(NamedTuple):
    """What a rank made of it."""

    kind: str
    message: str
    log: str

    @property
    def has_passed(self) -> bool:
        return self.kind == "passed"


class Cluster:
    """Hosts with two ranks each, `n1` with ranks 0 and 1; each rank is a process, and may have faults of its own."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._pids: dict[int, int] = {}

    def place(self, rank: int, ranks: int, **changes: Any) -> Place:
        return Place(
            run_dir=self.run.storage.root,
            attempt=1,
            rank=rank,
            world_size=ranks,
            local_rank=rank % 2,
            local_world_size=2,
            node_rank=rank // 2,
            accelerator="cpu",
            main_address=changes.get("main_address", "127.0.0.1"),
            main_port=self.port,
        )

    def begin(self, ranks: int, faults: Mapping[int, Fault], absent: tuple[int, ...], **changes: Any) -> None:
        for rank in set(range(ranks)).difference(absent):
            pid = os.fork()
            if pid == 0:
                self._become(rank, ranks, faults.get(rank, lambda: None), **changes)
            self._pids[rank] = pid

    def end(self) -> dict[int, Outcome]:
        outcomes = {}
        for rank, pid in self._pids.items():
            os.waitpid(pid, 0)
            outcomes[rank] = Outcome(*json.loads((self.folder / f"outcome-{rank}").read_text()))
        return outcomes

    def fly(
        self, ranks: int = 4, faults: Mapping[int, Fault] | None = None, *, absent: tuple[int, ...] = (), **changes: Any
    ) -> dict[int, Outcome]:
        self.begin(ranks, faults or {}, absent, **changes)
        return self.end()

    def signal(self, rank: int) -> None:
        os.kill(self._pids[rank], signal.SIGTERM)

    def log(self, rank: int) -> str:
        path = self.folder / f"log-{rank}"
        return path.read_text() if path.exists() else ""

    def until(self, rank: int, text: str) -> None:
        for _ in range(1000):
            if text in self.log(rank):
                return
            time.sleep(0.01)
        raise AssertionError(f"{text} not in {self.log(rank)}")

    def _become(self, rank: int, ranks: int, fault: Fault, **changes: Any) -> None:
        try:
            patch = pytest.MonkeyPatch()
            patch.setattr(socket, "gethostname", lambda: f"n{1 + rank // 2}")
            patch.setattr(preflight, "versions", lambda: VERSIONS)
            log = logging.getLogger("launcher")
            log.handlers = [logging.FileHandler(self.folder / f"log-{rank}")]
            log.setLevel(logging.INFO)
            flag = StopFlag()
            flag.install()
            fault()
            kind, message = self._outcome(self.place(rank, ranks, **changes), flag, changes.get("run_dir"))
            if kind != "passed" and rank == 0:
                time.sleep(0.3)  # writes down what ended it, with its connections open
            (self.folder / f"outcome-{rank}").write_text(json.dumps([kind, message, self.log(rank)]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def _outcome(self, place: Place, flag: StopFlag, run_dir: Callable[[int], str] | None) -> tuple[str, str]:
        run = Run(storage_at(run_dir(place.rank))) if run_dir else self.run
        self.flying = Preflight(run, replace(place, run_dir=run.storage.root), flag)
        try:
            self.flying.compare_hosts()
            self.flying.all_reduce()
        except (Stopped, Fenced) as error:
            return type(error).__name__, str(error)
        except Exception as error:
            return classified(error)[0], str(error)
        return "passed", ""


@pytest.fixture
def cluster(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, seconds in (("PATIENCE_S", 60.0), ("SAY_S", 0.2), ("LOOK_S", 0.2)):
        monkeypatch.setattr(waiting, name, seconds)
    monkeypatch.setattr(preflight, "REACH_S", 0.5)
    run = make_run("run", AttemptStarting(attempt=1, target="local"))
    _specify(run)
    return Cluster(run, tmp_path)


@pytest.fixture
def impatient(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 4.0)
    monkeypatch.setattr(meeting, "GLOO_S", 2.0)


def _specify(run: Run, **sections: Any) -> None:
    run.write_json("attempts/001/spec.json", {"name": "test", "model": {"class_path": "toys.Classifier"}, **sections})


def _append(run: Run, event: Event) -> None:
    run.ledger.append(event, after=run.ledger.refresh().version)


def _has(**packages: str) -> Fault:
    """Patches a rank's view of what is installed."""

    def fault() -> None:
        now = {**VERSIONS, "packages": {**VERSIONS["packages"], **packages}}  # type: ignore[dict-item]
        preflight.versions = lambda: now

    return fault


def _cannot_write() -> None:
    def replace(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    PosixStorage.replace = replace  # type: ignore[method-assign,assignment]


class TestHosts:
    def test_that_are_alike_pass_within_seconds(self, cluster: Cluster) -> None:
        began = time.monotonic()

        outcomes = cluster.fly(6)

        assert all(one.has_passed for one in outcomes.values()), outcomes
        assert time.monotonic() - began < 40  # and not only after the patience for one that is late
        assert "preflight: 6 ranks on 3 hosts agree" in outcomes[0].log
        assert "preflight: all-reduce of 6 ranks on 3 hosts" in outcomes[0].log
        assert cluster.run.storage.list("attempts/001") == ["spec.json"]

    def test_may_come_in_any_order(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, {0: partial(time.sleep, 0.5), 3: partial(time.sleep, 0.3)})

        assert all(one.has_passed for one in outcomes.values()), outcomes

    def test_with_another_torch_are_named_by_rank_0_and_the_others_echo_it(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(6, {2: _has(torch="2.8"), 4: _has(torch="2.8")})

        assert outcomes[0].kind == Kind.HOSTS
        assert outcomes[0].message == (
            "n2 (ranks 2-3), n3 (ranks 4-5): other versions than on n1: torch 2.9 -> 2.8; "
            "have all hosts use the same installation"
        )
        assert {outcomes[rank].kind for rank in range(1, 6)} == {Kind.PEER}

    def test_with_another_launcher_do_not_pass(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        outcomes = cluster.fly(4, {2: lambda: setattr(preflight.launcher, "__version__", "0.0.1")})

        assert outcomes[0].kind == Kind.HOSTS
        assert " -> 0.0.1" in outcomes[0].message

    def test_with_another_package_that_computes_nothing_pass_with_a_warning(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, {2: _has(rich="14")})

        assert all(one.has_passed for one in outcomes.values()), outcomes
        assert "n2 (ranks 2-3): other versions than on n1: rich 13 -> 14" in outcomes[0].log

    def test_with_any_other_package_do_not_pass_if_the_spec_says_so(self, cluster: Cluster) -> None:
        _specify(cluster.run, code={"drift": "fail"})

        assert "rich 13 -> 14" in cluster.fly(4, {2: _has(rich="14")})[0].message

    def test_without_the_code_are_named(self, cluster: Cluster, runs_root: Path) -> None:
        tree = Tree(path="/project", folder="copy")
        code = Code(digest="12ab", trees=(tree,), import_path=("copy",), workdir=None)
        cluster.run = create_run(runs_root, replace(cluster.run.record, id="coded", code=code))
        _specify(cluster.run)
        home = f"{cluster.run.storage.root}/code/12ab"
        Path(home).mkdir(parents=True)

        outcomes = cluster.fly(4, {2: lambda: setattr(preflight, "code_home", lambda *_: f"{home}-not")})

        assert (
            outcomes[0].message == f"n2 (ranks 2-3): the code is not there: no {home}-not; see how it is mounted there"
        )
        assert all(one.has_passed for one in Cluster(cluster.run, cluster.folder).fly().values())

    def test_that_write_to_a_folder_of_their_own_are_named(self, cluster: Cluster) -> None:
        root = cluster.run.storage.root
        shutil.copytree(root, f"{root}-local")

        outcomes = cluster.fly(4, run_dir=lambda rank: root if rank < 2 else f"{root}-local")

        assert outcomes[0].kind == Kind.HOSTS
        assert outcomes[0].message.startswith(f"n2 (ranks 2-3): n1 does not see what was written there to {root}: ")

    def test_that_cannot_write_are_named(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, {2: _cannot_write})

        assert outcomes[0].message.startswith("n2 (ranks 2-3): cannot write to ")
        assert "Permission denied" in outcomes[0].message

    @pytest.mark.usefixtures("impatient")
    def test_are_all_named_at_once_with_all_that_is_wrong(self, cluster: Cluster) -> None:
        _append(cluster.run, AttemptStarted(attempt=1, hosts=("n1", "n2", "n3", "n4"), handle={}))

        outcomes = cluster.fly(8, {2: _cannot_write, 4: _has(numpy="2")}, absent=(6, 7))

        assert [rank for rank, one in outcomes.items() if one.kind == Kind.HOSTS] == [0]
        said = outcomes[0].message
        assert said.startswith("ranks 6-7 on n4 did not report within 4 s; see their logs")
        assert "; n2 (ranks 2-3): cannot write to " in said
        assert "; n3 (ranks 4-5): other versions than on n1: numpy not installed -> 2; " in said


class TestRanks:
    @pytest.mark.usefixtures("impatient")
    def test_that_do_not_come_are_said_early_and_named_at_last(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, absent=(3,))

        assert outcomes[0].kind == Kind.HOSTS
        assert outcomes[0].message.startswith("rank 3 did not report within 4 s")
        assert "preflight: waiting for rank 3" in outcomes[0].log

    def test_that_do_not_reach_rank_0_say_so_themselves(self, cluster: Cluster) -> None:
        began = time.monotonic()

        outcomes = cluster.fly(4, absent=(0, 1, 3), main_address="host.invalid")

        assert outcomes[2].kind == Kind.HOSTS
        assert outcomes[2].message.startswith(
            f"rank 2 on n2 cannot reach rank 0 at host.invalid, port {cluster.port}: Name or service not known; "
        )
        assert time.monotonic() - began < 20  # and not only after the patience for one that is late

    @pytest.mark.usefixtures("impatient")
    def test_wait_for_rank_0_and_name_where_it_should_have_listened(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, absent=(0, 1, 3))

        assert outcomes[2].kind == Kind.HOSTS
        assert f"at 127.0.0.1, port {cluster.port}: nobody listened there for 4 s" in outcomes[2].message

    def test_that_end_meanwhile_are_the_cause_and_no_host_is_blamed(self, cluster: Cluster) -> None:
        cluster.begin(6, {}, (2, 3))
        cluster.until(0, "waiting for ranks 2-3\n")
        began = time.monotonic()
        os.kill(cluster._pids[5], signal.SIGKILL)
        (cluster.folder / "outcome-5").write_text('["killed", "", ""]')

        outcomes = cluster.end()

        assert (outcomes[0].kind, outcomes[4].kind) == (Kind.PEER, Kind.PEER)
        assert outcomes[0].message.startswith("rank 5 ended before all ranks had begun")
        assert time.monotonic() - began < 20  # and not only when patience has come to its end

    @pytest.mark.usefixtures("impatient")
    def test_that_import_torch_for_too_long_are_named(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, {3: _slow_to_import(9.0)})

        assert outcomes[0].kind == Kind.HOSTS
        assert outcomes[0].message.startswith("rank 3 had not imported torch after 4 s")

    @pytest.mark.parametrize("rank", [0, 2])
    @pytest.mark.usefixtures("impatient")
    def test_whose_all_reduce_does_not_end_say_so(self, cluster: Cluster, rank: int) -> None:
        outcomes = cluster.fly(4, {3: lambda: setattr(Meeting, "_sum", lambda *_: time.sleep(9))})

        assert outcomes[rank].kind == Kind.HOSTS
        said = f"rank {rank} on n{1 + rank // 2}: an all-reduce over gloo of 4 ranks on 2 hosts "
        assert outcomes[rank].message.startswith(said)
        assert "GLOO_SOCKET_IFNAME" in outcomes[rank].message

    def test_whose_all_reduce_gives_another_sum_do_not_pass(self, cluster: Cluster) -> None:
        outcomes = cluster.fly(4, {3: lambda: setattr(torch, "ones", torch.zeros)})

        assert {one.kind for one in outcomes.values()} == {Kind.HOSTS}
        assert "4 ones add up to 3 on cpu" in outcomes[0].message

    def test_of_other_attempts_and_strangers_do_not_count(self, cluster: Cluster) -> None:
        cluster.begin(4, {}, (3,))
        cluster.until(0, "waiting for rank 3")
        for sent in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            b'{"run": "run", "attempt": 2, "rank": 3, "found": null}\n',
            b"",
        ):
            with socket.create_connection(("127.0.0.1", cluster.port)) as stranger:
                stranger.sendall(sent)
        cluster.begin(4, {}, (0, 1, 2))

        assert all(one.has_passed for one in cluster.end().values())

    def test_on_one_host_neither_report_nor_wait(self, cluster: Cluster) -> None:
        cluster.begin(2, {}, (1,))

        assert cluster.end()[0] == Outcome("passed", "", "")

    def test_leave_a_port_that_torch_can_take_at_once(self, cluster: Cluster) -> None:
        def flown() -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(cluster.port))
            all_reduce = Preflight.all_reduce

            def then_train(self: Preflight) -> None:
                all_reduce(self)
                patience = timedelta(seconds=5)
                torch.distributed.init_process_group("gloo", rank=self._place.rank, world_size=4, timeout=patience)
                torch.distributed.all_reduce(torch.ones(1))

            Preflight.all_reduce = then_train  # type: ignore[method-assign]

        outcomes = cluster.fly(4, dict.fromkeys(range(4), flown))

        assert all(one.has_passed for one in outcomes.values()), outcomes


def _slow_to_import(seconds: float) -> Fault:
    def fault() -> None:
        compare_hosts = Preflight.compare_hosts

        def slow(self: Preflight) -> None:
            compare_hosts(self)
            logging.getLogger("launcher").info("imports")
            until = time.monotonic() + seconds
            while time.monotonic() < until and not self._flag.signal:
                time.sleep(0.01)

        Preflight.compare_hosts = slow  # type: ignore[method-assign]

    return fault


class TestStop:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_while_a_rank_is_waited_for_has_all_leave_in_peace(self, cluster: Cluster, rank: int) -> None:
        cluster.begin(4, {}, (3,))
        cluster.until(0, "waiting for rank 3")
        cluster.signal(rank)

        assert {one.kind for one in cluster.end().values()} == {"Stopped"}
        assert cluster.run.read_json(progress_path(1))["left"] == "SIGTERM"

    def test_reaches_a_rank_that_has_not_found_rank_0(self, cluster: Cluster) -> None:
        cluster.begin(4, {2: lambda: logging.getLogger("launcher").info("begins")}, (0, 1, 3))
        cluster.until(2, "begins")
        cluster.signal(2)

        assert cluster.end()[2].kind == "Stopped"

    @pytest.mark.parametrize("rank", [0, 1])
    def test_while_a_rank_imports_torch_has_all_leave_in_peace(self, cluster: Cluster, rank: int) -> None:
        cluster.begin(4, {3: _slow_to_import(4.0)}, ())
        cluster.until(3, "imports")
        cluster.until(0, "agree")
        cluster.signal(rank)

        assert {one.kind for one in cluster.end().values()} == {"Stopped"}
        assert cluster.run.read_json(progress_path(1))["left"] == "SIGTERM"

    def test_of_all_while_one_imports_torch_does_not_have_it_wait_for_the_others(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(meeting, "LEAVE_S", 0.2)
        slow = _slow_to_import(9.0)

        def slow_and_late() -> None:
            slow()
            all_reduce = Preflight.all_reduce

            def late(self: Preflight) -> None:
                time.sleep(1.5)  # longer than the others wait for it
                all_reduce(self)

            Preflight.all_reduce = late  # type: ignore[method-assign]

        cluster.begin(4, {3: slow_and_late}, ())
        cluster.until(3, "imports")
        cluster.until(0, "agree")
        began = time.monotonic()
        for rank in range(4):
            cluster.signal(rank)

        assert {one.kind for one in cluster.end().values()} == {"Stopped"}
        assert time.monotonic() - began < 6

    def test_a_newer_attempt_ends_the_waiting(self, cluster: Cluster) -> None:
        cluster.begin(4, {2: lambda: setattr(preflight, "LOOK_S", 9.0)}, (3,))  # it hears of it by rank 0's end
        cluster.until(0, "waiting for rank 3")
        _append(cluster.run, AttemptStarting(attempt=2, target="local"))

        assert {one.kind for one in cluster.end().values()} == {"Fenced"}


class TestRoom:
    @pytest.fixture
    def saved(self, make_run: MakeRun) -> Run:
        path = "checkpoints/step-00000001-a001/checkpoint.ckpt"
        event = CheckpointSaved(attempt=1, step=1, epoch=0, path=path, bytes=10_000_000_000, complete=False)
        return make_run("run", AttemptStarting(attempt=1, target="local"), event)

    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        usage = shutil.disk_usage("/")
        return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(size)))

    def test_for_less_than_one_checkpoint_is_a_full_disk(self, saved: Run, free: Callable[[float], None]) -> None:
        free(9.9e9)

        with pytest.raises(
            NoRoom, match=r"run has room for 9\.9 GB, and a checkpoint takes 10\.0 GB: make room"
        ) as raised:
            check_room(saved, 3)
        assert classified(raised.value)[0] == Kind.DISK

    def test_for_fewer_than_will_be_kept_is_worth_a_warning(
        self, saved: Run, free: Callable[[float], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        free(29.9e9)
        check_room(saved, 3)

        (said,) = caplog.messages
        assert said.endswith(
            "a checkpoint takes 10.0 GB: 3 more are to be kept; make room, or lower checkpoint.keep_last"
        )

    def test_for_all_of_them_is_not_worth_a_line(
        self, saved: Run, free: Callable[[float], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        free(30e9)
        check_room(saved, 3)
        free(10e9)
        check_room(saved, 1)

        assert caplog.messages == []

    def test_is_not_asked_for_when_nobody_knows_how_much(
        self, make_run: MakeRun, free: Callable[[float], None]
    ) -> None:
        free(0)
        check_room(make_run(), 3)


SPEC = {
    "model": {"class_path": "toys.Classifier"},
    "data": {"class_path": "toys.NoisyData", "init_args": {"size": 32}},
    "trainer": {"max_epochs": 1},
    "resources": {"nodes": 2, "tasks_per_node": 1},
}


def test_a_run_on_two_nodes_flies_and_trains(launch: Training) -> None:
    run = launch.run(SPEC)

    assert "preflight: 2 ranks on 2 hosts agree" in log_of(run)
    assert "preflight: all-reduce of 2 ranks on 2 hosts" in log_of(run)


def test_a_run_asks_for_room_before_it_trains(launch: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise NoRoom("none at all")

    monkeypatch.setattr(training, "check_room", none)
    run = launch.create({**SPEC, "resources": {"nodes": 1, "tasks_per_node": 1}, "retry": {"infra": 0}})

    assert "NoRoom: none at all" in launch.drive(run).reason


def test_a_run_whose_hosts_differ_ends_with_what_differs(launch: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preflight.versions()
    other = {**found, "python": "3.9.1"}
    monkeypatch.setattr(preflight, "versions", lambda: found if os.environ["NODE_RANK"] == "0" else other)
    run = launch.create({**SPEC, "retry": {"infra": 0}})

    ended = launch.drive(run)

    assert ended.state == "failed"
    (attempt,) = run.ledger.refresh().attempts
    assert attempt.cause == "infra"
    assert (attempt.reason or "").startswith(f"rank 0: Unfit: {socket.gethostname()} (rank 1): other versions than on ")


# -- pure


def host(node: int, **changes: Any) -> Host:
    ranks = (2 * node, 2 * node + 1)
    common: dict[str, Any] = {"versions": VERSIONS, "code": "12ab", "missing": None, "unwritable": None}
    return Host(**{"node": node, "name": f"n{node + 1}", "ranks": ranks, **common, **changes})


def test_hosts_with_other_code_are_named() -> None:
    wrong, _, faulty = compare([host(0), host(1, code="34cd", missing="/x")], {0, 1}, "/runs/run", "warn")

    assert wrong == ["n2 (ranks 2-3): would run the code 34cd, n1 12ab: the run directory is not seen the same"]
    assert faulty == {1}


def test_many_differences_are_counted() -> None:
    other = {**VERSIONS, "packages": {f"p{number:02d}": "1" for number in range(12)}}

    (wrong,), _, _ = compare([host(0), host(1, versions=other)], {0, 1}, "/runs/run", "fail")

    assert wrong.endswith("p09 not installed -> 1 and 4 more; have all hosts use the same installation")


@pytest.mark.parametrize(
    ("ranks", "name"), [({3}, "rank 3"), ({1, 0}, "ranks 0-1"), ({7, 2, 3}, "ranks 2-3, 7"), ({0, 2}, "ranks 0, 2")]
)
def test_ranks_are_named_by_their_stretches(ranks: set[int], name: str) -> None:
    assert named(ranks) == name


def test_the_kernel_s_joining_a_socket_to_itself_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = socket.socket()
    joined.bind(("127.0.0.1", 0))
    joined.connect(joined.getsockname())
    monkeypatch.setattr(socket, "create_connection", lambda *_: joined)

    with pytest.raises(ConnectionRefusedError):
        rollcall.connect(*joined.getsockname())
