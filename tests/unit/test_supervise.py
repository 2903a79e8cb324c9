"""The supervisor drives real processes, is killed at every one of its writes, and nothing is lost or doubled."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.backend import Handle
from launcher.backends.local import ECHO_S, LocalBackend, Machine
from launcher.driver import start_ticks, this_machine
from launcher.errors import NotTheDriver
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    Driver,
    Driving,
    ResumeRequested,
    RunEnded,
)
from launcher.layout import log_path
from launcher.policy import Cause, Phase, Seen
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import RunState
from launcher.storage import PosixStorage, Storage
from launcher.supervise import Supervisor

STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub_rank.py")))
KILLED = -signal.SIGKILL
PEER = ["fail", "peer", "DistBackendError", "Connection closed by peer"]
FOREVER = ["sleep", 60]
fork = multiprocessing.get_context("fork")
MakeRun = Callable[..., Run]


def local_backend() -> LocalBackend:
    return LocalBackend(Machine(cpus=2, gpus=()), worker=STUB)


def supervisor_of(run: Run, backend: LocalBackend | None = None) -> Supervisor:
    return Supervisor(run, JobSpec.model_validate(run.record.spec), backend or local_backend())


def drive(run: Run) -> RunEnded:
    return supervisor_of(run).drive()


def lines(run: Run, file: str) -> list[str]:
    try:
        return Path(run.storage.root, file).read_text().splitlines()
    except FileNotFoundError:
        return []


def started(run: Run) -> list[tuple[int, int]]:
    """Attempt and rank of each process that ever began."""
    return sorted((int(attempt), int(rank)) for attempt, rank, _ in map(str.split, lines(run, "started.log")))


def has_started(run: Run) -> bool:
    """Its supervisor has written down that the first attempt's ranks are there."""
    return any(isinstance(record.event, AttemptStarted) for record in run.ledger.records())


def causes(run: Run) -> list[str | None]:
    return [attempt.cause for attempt in run.ledger.refresh().attempts]


def left_over(run: Run) -> list[int]:
    """Pids of processes of any attempt of this run."""
    mark = f"LAUNCHER_MARK={run.storage.root}#".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and b"\0" + mark in b"\0" + (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if start_ticks(pid) is not None]


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def make(make_run: MakeRun) -> Iterator[MakeRun]:
    """A run of two ranks that do what `script` says; whatever a test may leave of it is killed."""
    made: list[Run] = []

    def make(run_id: str = "run", *, script: dict[str, Any], **sections: Any) -> Run:
        run = make_run(run_id, **{"resources": {"tasks_per_node": 2}, **sections})
        run.write_json("stub.json", script)
        made.append(run)
        return run

    yield make
    for run in made:
        for pid in left_over(run):
            os.kill(pid, signal.SIGKILL)


class TestEnds:
    def test_ranks_that_finish_finish_the_run(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})

        ended = drive(run)

        assert ended == RunEnded(state="finished", reason="")
        assert started(run) == [(1, 0), (1, 1)]
        assert causes(run) == [Cause.FINISHED]
        assert left_over(run) == []

    def test_a_user_s_error_fails_at_once(self, make: MakeRun) -> None:
        run = make(script={"1.0": [["sleep", 0.1], PEER], "1.1": [["fail", "error", "KeyError", "'label'"]]})

        ended = drive(run)

        assert ended == RunEnded(state="failed", reason="attempt 1: rank 1: KeyError: 'label'")
        assert causes(run) == [Cause.ERROR]

    def test_leaving_with_0_is_not_finishing(self, make: MakeRun) -> None:
        run = make(script={"*": [["exit", 0]]}, retry={"infra": 0})

        ended = drive(run)

        assert ended.state == "failed"
        assert "before the end of training" in ended.reason

    def test_what_a_rank_printed_is_in_its_log(self, make: MakeRun) -> None:
        run = make(script={"*": [["no such action"]]})

        ended = drive(run)

        assert ended.reason == "attempt 1: rank 0 exited with code 1 and left no traceback; see its log"
        assert b"ValueError: no such action" in run.storage.read(log_path(1, 0))

    def test_what_ranks_leave_behind_is_ended_with_them(self, make: MakeRun) -> None:
        run = make(script={"*": [["leave behind"], ["finish"]]})

        drive(run)

        children = [int(pid) for pid in lines(run, "left_behind.log")]
        assert len(children) == 2
        assert within(2, lambda: all(start_ticks(pid) is None for pid in children))

    def test_every_rank_knows_its_place(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]}, resources={"nodes": 2, "tasks_per_node": 2}, env={"vars": {"X": "a b"}})

        drive(run)

        names = ("RANK", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "X")
        environments = [run.read_json(f"attempts/001/environment-{rank}.json") for rank in range(4)]
        assert [tuple(env[name] for name in names) for env in environments] == [
            ("0", "0", "0", "4", "2", "a b"),
            ("1", "0", "1", "4", "2", "a b"),
            ("2", "1", "0", "4", "2", "a b"),
            ("3", "1", "1", "4", "2", "a b"),
        ]
        assert len({env["MASTER_PORT"] for env in environments}) == 1

    def test_a_run_directory_with_a_hostile_name_is_driven(self, make: MakeRun, tmp_path: Path) -> None:
        made = make(script={"*": [["finish"]]})
        hostile = tmp_path / 'it\'s; "a" $HOME\nünd 日本'
        Path(made.storage.root).rename(hostile)
        run = Run(PosixStorage(hostile))

        assert drive(run).state == "finished"
        assert started(run) == [(1, 0), (1, 1)]


class TestRestarts:
    def test_a_killed_rank_takes_the_others_along_and_all_are_started_again(self, make: MakeRun) -> None:
        run = make(script={"1.0": [["progress", 42], ["ignore"], FOREVER], "1.1": [["die", 9]], "2": [["finish"]]})

        begun = time.monotonic()
        ended = drive(run)

        assert ended.state == "finished"
        assert time.monotonic() - begun < ECHO_S + 30, "it waited for a rank that would have slept for a minute"
        assert started(run) == [(1, 0), (1, 1), (2, 0), (2, 1)]
        first, second = run.ledger.refresh().attempts
        assert (first.cause, first.last_step) == (Cause.INFRA, 42)
        assert first.reason.startswith("rank 1 was killed by SIGKILL")
        assert second.cause == Cause.FINISHED
        assert left_over(run) == []

    def test_a_preemption_from_outside_restarts_at_once(self, make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("launcher.policy.BACKOFF_S", 60.0)
        run = make(script={"1": [["obey"], ["ready"], FOREVER], "2": [["finish"]]})
        sent = []

        def preempt(state: RunState) -> None:
            if len(lines(run, "ready.log")) == 2 and not sent:
                sent.extend(left_over(run))
                for pid in sent:
                    os.kill(pid, signal.SIGTERM)

        ended = supervisor_of(run).drive(preempt)

        assert ended.state == "finished"
        assert len(sent) == 2
        first, second = run.ledger.refresh().attempts
        assert (first.cause, first.reason, first.last_step) == (Cause.PREEMPTED, "saved and left at SIGTERM", 7)
        assert second.started - (first.ended or 0) < 30, "a preemption is not to wait for a back-off"

    def test_a_preemption_before_the_ranks_were_ready_restarts_too(self, make: MakeRun) -> None:
        run = make(script={"1": [["die", 15]], "2": [["finish"]]})

        assert drive(run).state == "finished"
        assert causes(run) == [Cause.PREEMPTED, Cause.FINISHED]

    def test_a_failure_waits_before_the_next_attempt(self, make: MakeRun) -> None:
        run = make(script={"1.0": [PEER], "1.1": [["die", 9]], "2": [["finish"]]})

        drive(run)

        first, second = run.ledger.refresh().attempts
        assert second.started - (first.ended or 0) >= 1.0

    def test_a_resumed_run_goes_on_with_the_next_attempt(self, make: MakeRun) -> None:
        run = make(script={"1": [["fail", "error", "KeyError", "x"]], "2": [["finish"]]})
        assert drive(run).state == "failed"

        run.ledger.append(ResumeRequested(by="test"), after=run.ledger.refresh().version)

        assert drive(run).state == "finished"
        assert causes(run) == [Cause.ERROR, Cause.FINISHED]


class TestTheUser:
    def test_stop_lets_ranks_save_and_leave(self, make: MakeRun) -> None:
        run = make(script={"*": [["obey"], ["ready"], FOREVER]})
        supervisor = supervisor_of(run)

        ended = supervisor.drive(lambda state: supervisor.stop() if len(lines(run, "ready.log")) == 2 else None)

        assert ended == RunEnded(state="stopped", reason="stopped by the user")
        assert not supervisor.killed
        (attempt,) = run.ledger.refresh().attempts
        assert (attempt.cause, attempt.last_step) == (Cause.STOPPED, 7)
        assert left_over(run) == []

    def test_stop_before_the_first_attempt_starts_none(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        supervisor = supervisor_of(run)
        supervisor.stop()

        ended = supervisor.drive()

        assert ended.state == "stopped"
        assert started(run) == []

    def test_a_run_that_finishes_while_it_is_stopped_is_finished(self, make: MakeRun) -> None:
        run = make(script={"*": [["ignore"], ["ready"], ["wait for", "go"], ["finish"]]})
        supervisor = supervisor_of(run)

        def stop_too_late(state: RunState) -> None:
            if len(lines(run, "ready.log")) == 2:
                supervisor.stop()
                run.write_json("go", {})

        assert supervisor.drive(stop_too_late).state == "finished"

    def test_kill_does_not_wait_for_ranks_that_do_not_listen(self, make: MakeRun) -> None:
        run = make(script={"*": [["ignore"], ["ready"], FOREVER]})
        supervisor = supervisor_of(run)
        since: list[float] = []

        def stop_then_kill(state: RunState) -> None:
            if len(lines(run, "ready.log")) == 2:
                since.append(time.monotonic())
                supervisor.stop()
                if time.monotonic() - since[0] > 0.5:
                    supervisor.kill()

        ended = supervisor.drive(stop_then_kill)

        assert 0.5 < time.monotonic() - since[0] < 30
        assert ended.state == "stopped"
        assert supervisor.killed
        assert run.ledger.refresh().attempts[0].reason == "killed by the user"
        assert left_over(run) == []

    def test_a_cancel_of_another_process_ends_the_run_at_once(self, make: MakeRun) -> None:
        run = make(script={"*": [["ignore"], ["ready"], FOREVER]})

        def cancel() -> None:
            assert within(10, lambda: len(lines(run, "ready.log")) == 2)
            Run(run.storage).ledger.append_while(lambda state: None, CancelRequested(by="other"))

        other = fork.Process(target=cancel)
        other.start()
        ended = drive(run)
        other.join()

        assert other.exitcode == 0
        assert ended == RunEnded(state="cancelled", reason="cancelled by the user")
        assert causes(run) == [Cause.CANCELLED]
        assert left_over(run) == []

    def test_a_cancel_before_the_first_attempt_starts_none(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        run.ledger.append(CancelRequested(by="me"), after=0)

        assert drive(run).state == "cancelled"
        assert started(run) == []


class _Blind(LocalBackend):
    """Cannot see anything for a while, as when a scheduler does not answer."""

    looks = 0

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        self.looks += 1
        return Seen(Phase.UNKNOWN) if self.looks < 8 else super().poll(run, attempt, handle)


def test_unknown_is_never_an_ending(make: MakeRun) -> None:
    run = make(script={"*": [["finish"]]})
    backend = _Blind(Machine(cpus=2, gpus=()), worker=STUB)
    open_while_unknown = []

    ended = supervisor_of(run, backend).drive(lambda state: open_while_unknown.append(bool(state.open_attempt)))

    assert ended.state == "finished"
    assert all(open_while_unknown[:8])
    assert causes(run) == [Cause.FINISHED]


def test_a_plan_is_stored_with_its_attempt(make: MakeRun) -> None:
    run = make(script={"*": [["finish"]]})

    drive(run)

    plan = run.read_json("attempts/001/plan.json")
    assert plan["argv"] == list(STUB)
    assert [rank["env"]["RANK"] for rank in plan["ranks"]] == ["0", "1"]


class TestOneDriver:
    def test_of_two_supervisors_one_drives_and_the_other_names_it(self, make: MakeRun) -> None:
        run = make(script={"*": [["wait for", "go"], ["finish"]]})
        ready = fork.Barrier(2)

        def compete(index: int) -> None:
            mine = Run(run.storage)
            supervisor = supervisor_of(mine)
            ready.wait()
            try:
                outcome = supervisor.drive().state
            except NotTheDriver as error:
                outcome = str(error)
            run.write_json(f"outcome-{index}.json", {"pid": os.getpid(), "outcome": outcome})

        supervisors = [fork.Process(target=compete, args=(index,)) for index in range(2)]
        for one in supervisors:
            one.start()
        assert within(10, lambda: any(run.read_json(f"outcome-{index}.json") for index in range(2)))
        run.write_json("go", {})
        for one in supervisors:
            one.join()

        outcomes = [run.read_json(f"outcome-{index}.json") for index in range(2)]
        (winner,) = [one for one in outcomes if one["outcome"] == "finished"]
        (loser,) = [one for one in outcomes if one != winner]
        assert f"process {winner['pid']} on {os.uname().nodename} drives this run already" in loser["outcome"]
        assert started(run) == [(1, 0), (1, 1)]
        assert sum(isinstance(record.event, Driving) for record in run.ledger.records()) == 1

    def test_a_supervisor_that_was_overtaken_leaves_and_its_ranks_with_it(self, make: MakeRun) -> None:
        run = make(script={"*": [["ignore"], ["ready"], FOREVER]})

        def overtaken() -> None:
            with pytest.raises(NotTheDriver, match="taken over by process 7 on there"):
                drive(Run(run.storage))

        supervisor = fork.Process(target=overtaken)
        supervisor.start()
        assert within(10, lambda: len(lines(run, "ready.log")) == 2 and has_started(run))
        taken_over = run.ledger.append(Driving(driver=_somebody_else()), after=run.ledger.refresh().version)
        supervisor.join()

        assert supervisor.exitcode == 0
        assert run.ledger.refresh() == taken_over, "it wrote although it was no longer the driver"
        assert within(2, lambda: not left_over(run))

    def test_a_supervisor_that_is_overtaken_between_looking_and_writing_writes_nothing(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        supervisor = supervisor_of(run)
        supervisor.take_over()
        version = run.ledger.refresh().version

        class Overtaken(LocalBackend):
            """Somebody takes over while it is planned what to start."""

            def plan(self, *args: Any) -> Any:
                Run(run.storage).ledger.append(Driving(driver=_somebody_else()), after=version)
                return super().plan(*args)

        supervisor._backend = Overtaken(Machine(cpus=2, gpus=()), worker=STUB)
        with pytest.raises(Exception, match="written by somebody else"):
            supervisor.step()
        with pytest.raises(NotTheDriver):
            supervisor.step()

        assert run.ledger.refresh().attempts == ()
        assert started(run) == []

    def test_a_run_that_has_ended_may_be_taken_over_from_a_living_process(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        drive(run)

        def again() -> None:
            assert drive(Run(run.storage)).state == "finished"

        other = fork.Process(target=again)
        other.start()
        other.join()

        assert other.exitcode == 0
        assert started(run) == [(1, 0), (1, 1)]


def _somebody_else() -> Driver:
    return Driver(host="there", machine="elsewhere", pid=7, started=1)


class TestAfterACrash:
    def test_ranks_die_with_their_supervisor_and_the_next_carries_on(self, make: MakeRun) -> None:
        run = make(script={"1": [["ignore"], ["progress", 5], ["ready"], FOREVER], "2": [["finish"]]})
        first = fork.Process(target=lambda: drive(run))
        first.start()
        assert within(10, lambda: len(lines(run, "ready.log")) == 2 and has_started(run))
        assert len(left_over(run)) == 2

        first.kill()
        first.join()
        died = within(2, lambda: not left_over(run))
        ended = drive(run)

        assert died
        assert ended.state == "finished"
        assert started(run) == [(1, 0), (1, 1), (2, 0), (2, 1)]
        attempt = run.ledger.refresh().attempts[0]
        assert (attempt.cause, attempt.last_step) == (Cause.INFRA, 5)
        assert attempt.reason == "the launcher that had started it died"

    def test_ranks_that_outlive_their_supervisor_are_waited_for(self, make: MakeRun) -> None:
        """As where the kernel cannot be asked: the next supervisor must not start beside them."""
        run = make(script={"*": [["finish"]]})
        survivor = fork.Process(target=time.sleep, args=(60,))
        survivor.start()
        assert survivor.pid
        pids = {"0": [survivor.pid, start_ticks(survivor.pid)]}
        for event in (
            Driving(driver=_somebody_else()),
            AttemptStarting(attempt=1, target="local"),
            AttemptStarted(attempt=1, hosts=(), handle={"machine": this_machine(), "pids": pids}),
        ):
            run.ledger.append(event, after=run.ledger.refresh().version)
        supervisor = supervisor_of(run)
        supervisor.take_over()

        for _ in range(3):
            supervisor.step()
        while_it_lives = run.ledger.refresh().open_attempt
        survivor.kill()
        survivor.join()
        supervisor.step()

        assert while_it_lives is not None
        assert run.ledger.refresh().open_attempt is None
        assert started(run) == []

    def test_ranks_of_another_supervisor_are_killed_on_cancel(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        survivor = fork.Process(target=time.sleep, args=(60,))
        survivor.start()
        assert survivor.pid
        pids = {"0": [survivor.pid, start_ticks(survivor.pid)], "1": [os.getpid(), 1]}  # 1: its pid is ours by now
        for event in (
            AttemptStarting(attempt=1, target="local"),
            AttemptStarted(attempt=1, hosts=(), handle={"machine": this_machine(), "pids": pids}),
            CancelRequested(by="me"),
        ):
            run.ledger.append(event, after=run.ledger.refresh().version)

        ended = drive(run)
        survivor.join()

        assert ended.state == "cancelled"
        assert survivor.exitcode == KILLED

    @pytest.mark.parametrize("ticks", [None, 1])
    def test_a_rank_that_died_while_it_was_looked_for_is_dead(self, make: MakeRun, ticks: int | None) -> None:
        run = make(script={"*": [["finish"]]})
        gone = fork.Process(target=int)
        gone.start()
        gone.join()

        seen = local_backend().poll(run, 1, {"machine": this_machine(), "pids": {"0": [gone.pid, ticks]}})

        assert (seen.phase, seen.cause) == (Phase.ENDED, Cause.INFRA)

    def test_an_attempt_that_finished_although_its_start_was_not_written_down_is_finished(self, make: MakeRun) -> None:
        run = make(script={"*": [["finish"]]})
        run.ledger.append(AttemptStarting(attempt=1, target="local"), after=0)
        run.write_json("attempts/001/finished.json", {"step": 10, "attempt": 1})

        ended = drive(run)

        assert ended.state == "finished"
        assert causes(run) == [Cause.FINISHED]
        assert started(run) == []

    def test_what_was_started_and_lives_is_found_by_its_mark(self, make: MakeRun) -> None:
        run = make(script={"*": [["ready"], FOREVER]})
        backend = local_backend()
        plan = backend.plan(run.storage.root, run.record, JobSpec.model_validate(run.record.spec), 1)

        handle = backend.start(plan)
        assert within(10, lambda: len(lines(run, "ready.log")) == 2)
        another = local_backend()
        found = another.find(run.storage.root, 1)

        assert found is not None
        assert sorted(found["pids"].values()) == sorted(handle["pids"].values())
        assert another.find(run.storage.root, 11) is None
        assert another.find(run.storage.root + "x", 1) is None
        backend.kill(handle)
        assert within(2, lambda: another.find(run.storage.root, 1) is None)
        assert within(2, lambda: backend.poll(run, 1, handle).phase == Phase.ENDED)


class CrashingStorage:
    """Kills its process at its k-th write: before it takes effect, some time before, or just after."""

    def __init__(self, storage: Storage, k: int, when: str) -> None:
        self._storage, self._left, self._when = storage, k, when

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._storage, name)
        if name not in ("create", "replace", "move", "delete"):
            return operation

        def crashing(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._when != "after":
                time.sleep(0.3 if self._when == "stalled" else 0.0)  # ranks may get far in this time
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*args)
            finally:
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        return crashing


CRASH_SCRIPT = {
    "1.0": [["save", 5], ["touch", "saved"], ["wait for", "dying"], PEER],
    "1.1": [["wait for", "saved"], ["touch", "dying"], ["die", 9]],
    "*": [["finish"]],
}
"""Attempt 1 saves a checkpoint and loses a rank; the next one finishes."""


def _crash_and_carry_on(run: Run, k: int, when: str) -> bool:
    """Returns whether the first supervisor was killed."""

    def first() -> None:
        ended = drive(Run(CrashingStorage(run.storage, k, when)))
        assert ended.state == "finished"

    crashing = fork.Process(target=first)
    crashing.start()
    crashing.join()
    assert crashing.exitcode in (0, KILLED)

    ended = drive(run)

    assert ended.state == "finished"
    twice = {one: times for one, times in Counter(started(run)).items() if times > 1}
    assert not twice, "an attempt was started twice"
    events = [record.event for record in run.ledger.records()]
    numbers = [event.attempt for event in events if isinstance(event, AttemptStarting)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) in (2, 3)
    assert [event.attempt for event in events if isinstance(event, AttemptEnded)] == numbers
    began = [event.attempt for event in events if isinstance(event, AttemptStarted)]
    assert len(began) == len(set(began))
    assert {attempt for attempt, _ in started(run)} <= set(numbers)
    assert causes(run)[-1] == Cause.FINISHED
    assert Cause.FINISHED not in causes(run)[:-1]
    assert sum(isinstance(event, RunEnded) for event in events) == 1
    assert within(2, lambda: not left_over(run)), "a process was left behind"
    return crashing.exitcode == KILLED


def _in_parallel(bodies: dict[str, Callable[[], bool]], folder: Path) -> dict[str, bool]:
    """Each in a process of its own, since nearly all of their time is spent waiting."""

    def write_down(name: str, body: Callable[[], bool]) -> None:
        try:
            outcome: bool | str = body()
        except BaseException:
            outcome = traceback.format_exc()
        (folder / f"{name}.json").write_text(json.dumps(outcome))

    processes = [fork.Process(target=write_down, args=item) for item in bodies.items()]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    outcomes = {name: json.loads((folder / f"{name}.json").read_text()) for name in bodies}
    failed = [f"{name}:\n{outcome}" for name, outcome in outcomes.items() if isinstance(outcome, str)]
    assert not failed, "\n".join(failed)
    return outcomes


def test_a_supervisor_that_dies_at_any_of_its_writes_loses_nothing_and_doubles_nothing(
    make: MakeRun, tmp_path: Path
) -> None:
    killed = {"before": 0, "stalled": 0, "after": 0}
    for first in range(1, 100, 4):
        cases = {f"{when}-{k}": (k, when) for k in range(first, first + 4) for when in killed}
        runs = {name: make(name, script=CRASH_SCRIPT) for name in cases}
        bodies = {name: partial(_crash_and_carry_on, runs[name], *case) for name, case in cases.items()}
        outcomes = _in_parallel(bodies, tmp_path)
        for name, was_killed in outcomes.items():
            killed[cases[name][1]] += was_killed
        if not any(outcomes.values()):
            break
    else:
        pytest.fail("there is no end to its writes")

    # Two writes to take over, four an attempt, one at the end; a slow machine also renews its lease.
    assert min(killed.values()) >= 11
