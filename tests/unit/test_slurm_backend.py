"""Ranks under srun: plans are pure and held by golden files, attempts run under a fake srun (fake_slurm.py)."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import RECORDED, SILENT, FakeSlurm, fails

from launcher.backend import Ending, Handle, Plan
from launcher.backends.ranks import WORKER
from launcher.backends.slurm.allocation import Start
from launcher.backends.slurm.backend import SlurmBackend
from launcher.errors import UsageError
from launcher.events import AttemptEnded, AttemptStarted, AttemptStarting
from launcher.layout import log_path
from launcher.policy import Cause, Phase, Seen
from launcher.record import Code, Record, Tree
from launcher.run import Run
from launcher.spec import JobSpec

GOLDEN = Path(__file__).with_name("golden")
STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub_rank.py")))
HERE = Start(job="7", restarts=0, hosts=("n1", "n2"))
CONTAINER = {"image": "/images/torch.sqsh", "mounts": ["/data", "/scratch:/tmp:ro"]}
MakeRun = Callable[..., Run]


def plan(
    *,
    run_dir: str = "/runs/run",
    attempt: int = 1,
    ranks: int | None = None,
    env: dict[str, str] | None = None,
    code: Code | None = None,
    slurm: dict[str, Any] | None = None,
    **resources: Any,
) -> Plan:
    body = {
        "name": "test",
        "model": {"class_path": "a.B"},
        "resources": resources,
        "env": {"vars": env or {}},
        "slurm": slurm,
    }
    record = Record(
        id="run",
        name="test",
        created=0.0,
        target="lab",
        spec=body,
        spec_file="job.yaml",
        spec_text="",
        import_path=("/jobs", "/project"),
        workdir="/project",
        ranks=ranks,
        code=code,
        site={"kind": "slurm"},
    )
    return SlurmBackend().plan(run_dir, record, JobSpec.model_validate(body), attempt)


class TestPlan:
    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("slurm-least", lambda: plan()),
            (
                "slurm-2-nodes-of-4-gpus",
                lambda: plan(nodes=2, gpus_per_node=4, cpus_per_task=6, attempt=12, env={"MODE": "a b; 'c' $D"}),
            ),
            ("slurm-venv", lambda: plan(tasks_per_node=2, slurm={"venv": "/shared/venv", "srun_args": ["--mpi=pmix"]})),
            ("slurm-conda", lambda: plan(slurm={"conda": "torch"})),
            ("slurm-pyxis", lambda: plan(gpus_per_node=1, slurm={"container": CONTAINER})),
            (
                "slurm-apptainer",
                lambda: plan(gpus_per_node=1, slurm={"container": {**CONTAINER, "runtime": "apptainer"}}),
            ),
        ],
    )
    def test_it_is_what_it_was(self, name: str, make: Callable[[], Plan], request: pytest.FixtureRequest) -> None:
        planned = make()

        argv = tuple("PYTHON" if one == sys.executable else one for one in planned.argv)
        shown = json.dumps(replace(planned, argv=argv).as_json(), indent=1) + "\n"
        golden = GOLDEN / f"{name}.json"
        if request.config.getoption("--update-golden"):
            golden.write_text(shown)
        assert shown == golden.read_text(), "if this is meant: pytest --update-golden"

    def test_it_is_pure(self, tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        monkeypatch.chdir(empty)
        before = dict(os.environ)

        assert plan(nodes=2) == plan(nodes=2)

        assert dict(os.environ) == before
        assert list(empty.iterdir()) == []
        assert slurm.calls == []

    def test_only_the_attempt_differs_between_attempts(self) -> None:
        one, two = (json.dumps(plan(attempt=attempt).as_json()) for attempt in (1, 2))

        assert one != two
        assert two == (
            one.replace('"attempt": 1', '"attempt": 2')
            .replace("attempts/001/", "attempts/002/")
            .replace('"LAUNCHER_ATTEMPT": "1"', '"LAUNCHER_ATTEMPT": "2"')
            .replace("attempt-001", "attempt-002")
        )

    def test_the_launcher_s_own_python_runs_ranks_that_have_no_other(self) -> None:
        assert plan().argv == WORKER

    def test_ranks_are_numbered_along_the_nodes(self) -> None:
        planned = plan(nodes=2, tasks_per_node=2)

        assert [(one.rank, one.node, one.local_rank) for one in planned.ranks] == [
            (0, 0, 0),
            (1, 0, 1),
            (2, 1, 0),
            (3, 1, 1),
        ]
        assert [one.log for one in planned.ranks] == [log_path(1, rank) for rank in range(4)]

    def test_variables_of_the_spec_reach_ranks_and_none_of_ours_can_be_replaced(self) -> None:
        env = plan(env={"MODE": "x", "RANK": "7", "LOCAL_RANK": "7", "LAUNCHER_RUN_DIR": "/elsewhere"}).env

        assert env["MODE"] == "x"
        assert env["LAUNCHER_RUN_DIR"] == "/runs/run"
        assert not {"RANK", "LOCAL_RANK", "NODE_RANK"} & env.keys(), "srun says these"

    def test_the_code_s_copy_is_imported_from(self) -> None:
        tree = Tree(path="/project", folder="project")
        code = Code(digest="12ab", trees=(tree,), import_path=("project/src", "/outside"), workdir="project")

        planned = plan(code=code)

        assert planned.env["PYTHONPATH"] == "/runs/run/code/12ab/project/src:/outside"
        assert planned.workdir == "/runs/run/code/12ab/project", "/project is gone"

    @pytest.mark.parametrize("run_dir", ["gs://bucket/runs/run", "/runs/100%/run", "/runs/a\\b/run", "/runs/a\nb/run"])
    def test_a_run_directory_that_slurm_cannot_write_to_is_refused(self, run_dir: str) -> None:
        with pytest.raises(UsageError, match="all nodes see"):
            plan(run_dir=run_dir)

    def test_fewer_gpus_than_ranks_are_refused(self) -> None:
        with pytest.raises(UsageError, match="tasks_per_node is 4, gpus_per_node 2: every rank needs a GPU of its own"):
            plan(gpus_per_node=2, tasks_per_node=4)

    def test_a_number_of_ranks_that_the_run_cannot_go_on_with_is_refused(self) -> None:
        with pytest.raises(UsageError):
            plan(nodes=3, ranks=2)


class _Allocation:
    """Ends as it is told, once the ranks have left at a signal or at once."""

    def __init__(self, ending: Ending | None = None, *, told: bool = False) -> None:
        self._ending, self._known = ending, told

    def ranks_left(self) -> None:
        self._known = True

    def ending(self) -> Ending | None:
        return self._ending if self._known else None


PREEMPTED = Ending(cause=Cause.PREEMPTED, reason="job 7 was preempted")
CANCELLED = Ending(cause=Cause.CANCELLED, reason="job 7 was cancelled (scancel)")
BEFORE: Handle = {"job": "7", "restarts": 0, "step": "attempt-001"}
NODE_LOST = Ending(cause=Cause.INFRA, reason="job 7 has lost a node")


class Attempt:
    """One attempt under the fake srun."""

    def __init__(self, run: Run, allocation: _Allocation | None = None, number: int = 1) -> None:
        self.run, self.number = run, number
        self.backend = SlurmBackend(HERE, allocation, worker=STUB)
        spec = JobSpec.model_validate(run.record.spec)
        self.handle: Handle = self.backend.start(self.backend.plan(run.storage.root, run.record, spec, number))

    def poll(self) -> Seen:
        return self.backend.poll(self.run, self.number, self.handle)

    def end(self) -> Seen:
        assert within(10, lambda: self.poll().phase == Phase.ENDED), _log(self.run)
        return self.poll()


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def lines(run: Run, file: str) -> list[str]:
    with suppress(FileNotFoundError):
        return Path(run.storage.root, file).read_text().splitlines()
    return []


def _log(run: Run) -> str:
    return "\n".join(lines(run, "attempts/001/srun.log"))


@pytest.fixture
def make(make_run: MakeRun) -> MakeRun:
    """A run of four ranks on two nodes that do what `script` says."""

    def make(script: dict[str, Any], **sections: Any) -> Run:
        run = make_run("run", **{"resources": {"nodes": 2, "tasks_per_node": 2}, **sections})
        run.write_json("stub.json", script)
        return run

    return make


class TestAttempt:
    def test_each_rank_learns_who_it_is_from_srun(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make({"*": [["finish"]]}, env={"vars": {"MODE": "x"}})

        attempt = Attempt(run)
        attempt.end()

        told = [run.read_json(f"attempts/001/environment-{rank}.json") for rank in range(4)]
        assert [(one["RANK"], one["NODE_RANK"], one["LOCAL_RANK"]) for one in told] == [
            ("0", "0", "0"),
            ("1", "0", "1"),
            ("2", "1", "0"),
            ("3", "1", "1"),
        ]
        assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["MASTER_ADDR"], one["MODE"]) for one in told} == {
            ("4", "2", "n1", "x")
        }
        assert len({one["MASTER_PORT"] for one in told}) == 1
        assert attempt.handle == {"job": "7", "restarts": 0, "step": "attempt-001"}

    def test_what_the_submitting_shell_took_itself_for_is_no_rank_s_number(
        self, make: MakeRun, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """sbatch hands the whole environment on, and that of a torchrun has a RANK."""
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.setenv(name, "0")
        run = make({"*": [["finish"]]})

        Attempt(run).end()

        assert [run.read_json(f"attempts/001/environment-{rank}.json")["RANK"] for rank in range(4)] == list("0123")

    def test_what_a_rank_printed_is_in_its_log(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make({"*": [["no such action"]]})

        Attempt(run).end()

        assert any("no such action" in "".join(lines(run, log_path(1, rank))) for rank in range(4))

    def test_it_runs_as_long_as_srun_does(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make({"*": [["ready"], ["wait for", "go"], ["finish"]]})
        attempt = Attempt(run)
        assert within(10, lambda: len(lines(run, "ready.log")) == 4)

        assert attempt.poll() == Seen(Phase.RUNNING)

        run.write_json("go", {})
        attempt.end()

    def test_a_user_s_error_is_told_by_its_rank_and_ends_the_others(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make(
            {"1.2": [["wait for", "go"], ["fail", "error", "KeyError", "'label'"]], "*": [["ready"], ["sleep", 60]]}
        )
        attempt = Attempt(run, _Allocation(CANCELLED, told=True))
        assert within(10, lambda: len(lines(run, "ready.log")) == 3)
        run.write_json("go", {})

        seen = attempt.end()

        assert seen == Seen(Phase.ENDED, Cause.ERROR, "rank 2: KeyError: 'label'"), "whatever becomes of the job"

    def test_a_rank_that_was_killed_is_the_cause_and_those_that_srun_ended_are_not(
        self, make: MakeRun, slurm: FakeSlurm
    ) -> None:
        run = make({"1.1": [["wait for", "go"], ["die", 9]], "*": [["ready"], ["sleep", 60]]})
        attempt = Attempt(run)
        assert within(10, lambda: len(lines(run, "ready.log")) == 3)
        run.write_json("go", {})

        seen = attempt.end()

        assert (seen.cause, seen.reason) == (Cause.INFRA, "rank 1 was killed by SIGKILL; by the out-of-memory killer?")

    def test_at_a_stop_all_ranks_save_and_leave(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make({"*": [["obey"], ["ready"], ["sleep", 60]]})
        attempt = Attempt(run, _Allocation(PREEMPTED))
        assert within(10, lambda: len(lines(run, "ready.log")) == 4)

        attempt.backend.stop(attempt.handle)
        seen = attempt.end()

        assert seen == Seen(Phase.ENDED, Cause.PREEMPTED, "job 7 was preempted; saved and left at SIGUSR2")
        assert slurm.calls == [], "also while no controller answers"

    def test_that_ranks_left_in_a_job_that_goes_on_is_a_preemption_of_its_own(
        self, make: MakeRun, slurm: FakeSlurm
    ) -> None:
        run = make({"*": [["obey"], ["ready"], ["sleep", 60]]})
        attempt = Attempt(run, _Allocation())
        assert within(10, lambda: len(lines(run, "ready.log")) == 4)

        attempt.backend.stop(attempt.handle)

        assert attempt.end() == Seen(Phase.ENDED, Cause.PREEMPTED, "saved and left at SIGUSR2")

    def test_a_kill_ends_the_step_and_no_rank_is_to_blame(self, make: MakeRun, slurm: FakeSlurm) -> None:
        run = make({"*": [["ignore"], ["ready"], ["sleep", 60]]})
        attempt = Attempt(run)
        assert within(10, lambda: len(lines(run, "ready.log")) == 4)
        step = r"printf '7.batch\037batch\036\n7.0\037attempt-001\036\n'"
        slurm.answers("squeue", fails(SILENT), "exit 0", step)
        slurm.answers("scancel", slurm.kills_the_step)

        for _ in range(2):
            attempt.backend.kill(attempt.handle)
            assert attempt.poll().phase == Phase.RUNNING, "nobody answered, or the step was not known yet"
        attempt.backend.kill(attempt.handle)
        seen = attempt.end()

        assert slurm.called("scancel") == ["scancel --signal=KILL 7.0"]
        assert "killed" not in seen.reason


class TestHowItEnded:
    """By what srun printed on a cluster; no rank starts."""

    def end(self, run: Run, allocation: _Allocation | None = None) -> Seen:
        return Attempt(run, allocation).end()

    @pytest.mark.parametrize(
        ("case", "code", "reason"),
        [
            ("mem", 1, "srun: error: Unable to create step for job 50: Memory required by task is not available"),
            ("badlog", 0, "srun: error: task 0 launch failed: Slurmd could not connect IO"),
            ("noopt", 255, "srun: unrecognized option '--nope'"),
        ],
    )
    def test_a_step_that_did_not_start_is_no_error_of_the_user_s(
        self, make: MakeRun, slurm: FakeSlurm, case: str, code: int, reason: str
    ) -> None:
        slurm.srun_then(log=(RECORDED / f"{case}.log").read_text(), code=code)

        assert self.end(make({})) == Seen(Phase.ENDED, Cause.INFRA, reason)

    @pytest.mark.parametrize(("case", "hosts"), [("poweroff", ("n2",)), ("two", ("n15", "n16")), ("fail", ("n14",))])
    def test_lost_hosts_are_named_and_are_the_cause(
        self, make: MakeRun, slurm: FakeSlurm, case: str, hosts: tuple[str, ...]
    ) -> None:
        slurm.srun_then(log=(RECORDED / f"{case}.log").read_text(), code=1)

        seen = self.end(make({}), _Allocation(NODE_LOST, told=True))

        assert seen == Seen(Phase.ENDED, Cause.INFRA, f"{', '.join(hosts)} failed", hosts)

    def test_a_cancelled_job_outweighs_a_lost_host(self, make: MakeRun, slurm: FakeSlurm) -> None:
        slurm.srun_then(log=(RECORDED / "poweroff.log").read_text(), code=1)

        seen = self.end(make({}), _Allocation(CANCELLED, told=True))

        assert (seen.cause, seen.reason, seen.lost) == (Cause.CANCELLED, CANCELLED.reason, ("n2",))

    @pytest.mark.parametrize(
        ("case", "code", "cause", "reason"),
        [
            ("exit", 3, Cause.ERROR, "rank 1 exited with code 3 and left no traceback; see its log"),
            ("kill", 137, Cause.INFRA, "rank 1 was killed by SIGKILL; by the out-of-memory killer?"),
            ("oom", 137, Cause.INFRA, "rank 1 was killed by SIGKILL; by the out-of-memory killer?"),
            ("term", 143, Cause.PREEMPTED, "rank 1 was ended by SIGTERM"),
        ],
    )
    def test_the_first_rank_to_end_is_the_cause(
        self, make: MakeRun, slurm: FakeSlurm, case: str, code: int, cause: Cause, reason: str
    ) -> None:
        slurm.srun_then(log=(RECORDED / f"{case}.log").read_text(), code=code)

        assert self.end(make({})) == Seen(Phase.ENDED, cause, reason)

    def test_what_ranks_only_echo_the_end_of_the_job_explains(self, make: MakeRun, slurm: FakeSlurm) -> None:
        slurm.srun_then(log=(RECORDED / "kill.log").read_text(), code=137)

        seen = self.end(make({}), _Allocation(PREEMPTED, told=True))

        assert seen == Seen(Phase.ENDED, Cause.PREEMPTED, "job 7 was preempted")

    def test_a_host_where_a_rank_is_killed_in_two_attempts_in_a_row_is_at_fault(
        self, make: MakeRun, slurm: FakeSlurm
    ) -> None:
        slurm.srun_then(log="srun: error: n2: task 2: Killed\n", code=137)
        run = make({})
        lost = []
        for number in (1, 2, 3):
            run.ledger.append(AttemptStarting(attempt=number, target="lab"), after=run.ledger.refresh().version)
            attempt = Attempt(run, number=number)
            run.ledger.append(
                AttemptStarted(attempt=number, hosts=HERE.hosts, handle=attempt.handle),
                after=run.ledger.refresh().version,
            )
            plan = attempt.backend.plan(run.storage.root, run.record, JobSpec.model_validate(run.record.spec), number)
            run.write_json(f"attempts/{number:03d}/plan.json", plan.as_json())
            seen = attempt.end()
            lost.append(seen.lost)
            ended = AttemptEnded(attempt=number, cause=str(seen.cause), reason=seen.reason, step=0, lost=seen.lost)
            run.ledger.append(ended, after=run.ledger.refresh().version)

        assert lost == [(), ("n2",), ("n2",)]

    def test_an_srun_that_ends_without_a_word_is_pointed_at(self, make: MakeRun, slurm: FakeSlurm) -> None:
        slurm.srun_then(code=3)
        run = make({})

        seen = self.end(run)

        assert seen == Seen(
            Phase.ENDED, Cause.INFRA, f"srun ended with 3; see {run.storage.root}/attempts/001/srun.log"
        )

    @pytest.mark.parametrize(
        ("said", "left", "cause"),
        [("srun: error: n1: task 1: Exited with exit code 1\n", None, Cause.ERROR), ("", "SIGTERM", Cause.PREEMPTED)],
        ids=["by srun", "by its ranks"],
    )
    def test_what_is_said_at_the_very_end_is_heard(
        self, said: str, left: str | None, cause: Cause, make: MakeRun, slurm: FakeSlurm
    ) -> None:
        class Ending:
            """An srun of which the last words come between two looks, and with them its end."""

            def poll(self) -> int:
                Path(run.storage.root, "attempts/001/srun.log").write_text(said)
                run.write_json("attempts/001/progress.json", {"step": 7, "epoch": 0, "left": left})
                return 1 if said else 0

        slurm.srun_then()
        run = make({})
        attempt = Attempt(run)
        attempt.end()
        for name in ("srun.log", "progress.json"):
            Path(run.storage.root, "attempts/001", name).unlink(missing_ok=True)
        attempt.backend._srun = Ending()  # type: ignore[assignment]

        assert attempt.poll().cause == cause

    def test_ranks_that_leave_with_0_before_the_end_have_not_finished(self, make: MakeRun, slurm: FakeSlurm) -> None:
        slurm.srun_then()

        seen = self.end(make({}))

        assert (seen.phase, seen.cause) == (Phase.ENDED, Cause.INFRA)
        assert "before the end of training" in seen.reason


class TestEarlierStart:
    """An attempt of a start of the job that is over: nobody has seen how it ended."""

    @pytest.mark.parametrize("now", [replace(HERE, restarts=1), replace(HERE, job="8"), HERE, None])
    def test_it_ended_with_that(self, make: MakeRun, now: Start | None) -> None:
        seen = SlurmBackend(now).poll(make({}), 1, BEFORE)

        assert (seen.phase, seen.cause, seen.lost) == (Phase.ENDED, Cause.INFRA, ())
        assert "job 7 was ended by Slurm" in seen.reason

    @pytest.mark.parametrize("change", [{"restarts": 1}, {"job": "6"}])
    def test_it_is_not_taken_for_the_one_that_runs_now(
        self, make: MakeRun, slurm: FakeSlurm, change: dict[str, Any]
    ) -> None:
        slurm.srun_then(code=3)
        attempt = Attempt(make({}))
        attempt.end()

        seen = attempt.backend.poll(attempt.run, 1, {**attempt.handle, **change})

        assert "was ended by Slurm" in seen.reason

    def test_ranks_that_said_that_they_leave_have_saved(self, make: MakeRun) -> None:
        run = make({})
        run.write_json("attempts/001/progress.json", {"step": 7, "epoch": 0, "left": "SIGUSR2"})

        seen = SlurmBackend(replace(HERE, restarts=1)).poll(run, 1, BEFORE)

        assert seen == Seen(Phase.ENDED, Cause.PREEMPTED, "saved and left at SIGUSR2")

    def test_the_hosts_that_srun_had_named_are_known_all_the_same(self, make: MakeRun) -> None:
        run = make({})
        Path(run.storage.root, "attempts/001").mkdir(parents=True)
        Path(run.storage.root, "attempts/001/srun.log").write_text((RECORDED / "poweroff.log").read_text())

        assert SlurmBackend(replace(HERE, restarts=1)).poll(run, 1, BEFORE).lost == ("n2",)

    def test_none_is_found_that_lives(self, make: MakeRun) -> None:
        assert SlurmBackend(HERE).find(make({}).storage.root, 1) is None
