"""The job that a supervisor stands in, against programs that answer what was recorded (fake_slurm.py)."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_slurm import JOBS, SILENT, FakeSlurm, fails, prints, said

from launcher.backend import Ending
from launcher.backends.slurm import allocation as module
from launcher.backends.slurm.allocation import Interactive, JobAllocation, Start, this_start
from launcher.backends.slurm.commands import SlurmError
from launcher.events import AttemptEnded, AttemptStarting
from launcher.policy import Cause
from launcher.run import Run
from launcher.spec import JobSpec

MakeRun = Callable[..., Run]
LEAD_S = 20.0
START, END = (int(time) for time in re.findall(r" (?:StartTime|EndTime)=(\d+)", said("started", "7")))
"""Ten minutes."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question may follow the one before at once."""
    for name in ("_LOOK_S", "_END_S", "_ASK_AGAIN_S"):
        monkeypatch.setattr(module, name, 0.0)


@pytest.fixture
def resubmitted() -> list[Run]:
    """The runs for which another job was submitted."""
    return []


@pytest.fixture
def job(resubmitted: list[Run]) -> Callable[..., JobAllocation]:
    def make(restarts: int = 0, job: str = "7", lead_s: float = LEAD_S) -> JobAllocation:
        start = Start(job=job, restarts=restarts, hosts=("n1", "n2"))
        return JobAllocation(start, lead_s=lead_s, resubmit=lambda run, spec: resubmitted.append(run))

    return make


def spec_of(run: Run) -> JobSpec:
    return JobSpec.model_validate(run.record.spec)


def at(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock shows when the case was recorded."""
    monkeypatch.setattr("launcher.backends.slurm.allocation.time.time", lambda: JOBS[case]["now"])


def test_a_start_is_told_by_the_environment_that_slurm_gives_a_job() -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[09-10],x1"}

    assert this_start(env) == Start(job="7", restarts=0, hosts=("n09", "n10", "x1"))
    assert this_start({**env, "SLURM_RESTART_COUNT": "2"}).as_json() == {"job": "7", "restarts": 2}
    with pytest.raises(KeyError, match="SLURM_JOB_ID"):
        this_start({})


def test_an_element_of_an_array_is_known_by_both_numbers() -> None:
    env = {"SLURM_JOB_ID": "27", "SLURM_ARRAY_JOB_ID": "24", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "n1"}

    assert this_start(env).job == "24_3"


class TestWhyItEnds:
    def test_slurm_is_not_asked_as_long_as_nobody_was_told_anything(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm
    ) -> None:
        slurm.job_is("scancel")

        assert job().ending() is None
        assert slurm.calls == []

    @pytest.mark.parametrize(
        ("case", "ending"),
        [
            ("scancel", Ending(cause=Cause.CANCELLED, reason="job 7 was cancelled (scancel)")),
            ("limit-stay", Ending(cause=Cause.TIMEOUT, reason="the time of job 7 is over")),
            ("lowcancel-stay", Ending(cause=Cause.PREEMPTED, reason="job 7 was preempted")),
            ("requeue", Ending(cause=Cause.PREEMPTED, reason="job 7 was requeued by Slurm", comes_back=True)),
            ("fail-norequeue", Ending(cause=Cause.INFRA, reason="job 7 has lost a node")),
        ],
    )
    def test_at_a_signal_it_is_what_slurm_says(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, case: str, ending: Ending
    ) -> None:
        slurm.job_is(case)
        here = job()

        here.tell()

        assert here.ending() == ending
        assert slurm.calls == ["scontrol show job 7 --oneliner"]

    @pytest.mark.parametrize(("case", "cause"), [("limit-leave", Cause.TIMEOUT), ("low-leave", Cause.PREEMPTED)])
    def test_that_the_ranks_left_at_a_signal_is_told_from_the_limit(
        self,
        job: Callable[..., JobAllocation],
        slurm: FakeSlurm,
        monkeypatch: pytest.MonkeyPatch,
        case: str,
        cause: str,
    ) -> None:
        slurm.job_is(case)
        at(case, monkeypatch)
        here = job()

        here.ranks_left()

        ending = here.ending()
        assert ending is not None
        assert (ending.cause, ending.comes_back) == (cause, False)

    def test_a_signal_that_ends_nothing_is_none(self, job: Callable[..., JobAllocation], slurm: FakeSlurm) -> None:
        slurm.job_is("started")
        here = job()

        here.tell()

        assert here.ending() is None

    def test_slurm_is_asked_until_it_knows_why(self, job: Callable[..., JobAllocation], slurm: FakeSlurm) -> None:
        slurm.answers("scontrol show", fails(SILENT), prints(said("started", "7")), prints(said("scancel", "7")))
        here = job()
        here.tell()

        seen = [here.ending() for _ in range(4)]

        assert [one and one.cause for one in seen] == [None, None, Cause.CANCELLED, Cause.CANCELLED]
        assert len(slurm.calls) == 3, "what is known is not asked again"

    def test_it_is_not_asked_for_ever_after_a_signal_that_ended_nothing(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that was suspended and goes on has got a SIGCONT, and may run for days."""
        monkeypatch.setattr(module, "_HEEDED_S", 0.0)
        slurm.job_is("started")
        here = job()
        here.tell()

        time.sleep(0.01)
        assert here.ending() is None
        assert slurm.calls == []
        monkeypatch.setattr(module, "_HEEDED_S", 60.0)
        here.tell()
        assert here.ending() is None
        assert len(slurm.calls) == 1, "the next signal counts again"

    def test_it_is_not_asked_at_each_look(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_LOOK_S", 60.0)
        slurm.job_is("started")
        here = job()
        here.tell()

        assert [here.ending() for _ in range(3)] == [None] * 3
        assert len(slurm.calls) == 1
        slurm.job_is("scancel")
        here.ranks_left()
        assert here.ending(), "the ranks have left: that is news"

    def test_ranks_do_not_leave_for_nothing_though_nobody_says_why(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm
    ) -> None:
        slurm.answers("scontrol show", fails(SILENT), prints(said("limit-stay", "7")))
        here = job()
        here.ranks_left()

        first, second = here.ending(), here.ending()

        assert first is not None
        assert (first.cause, first.comes_back) == (Cause.PREEMPTED, False)
        assert SILENT in first.reason
        assert second is not None
        assert second.cause == Cause.TIMEOUT

    def test_a_second_start_is_not_ended_by_the_requeue_that_it_comes_from(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm
    ) -> None:
        slurm.job_is("low-stay, started again")
        first, second = job(restarts=0), job(restarts=1)
        first.tell()
        second.tell()

        assert first.ending() is not None
        assert second.ending() is None


class TestItsTime:
    def test_ranks_are_to_stop_shortly_before_it_is_over(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slurm.job_is("started")
        here = job()

        for before_s, soon in ((LEAD_S + 1, False), (LEAD_S - 1, True)):
            monkeypatch.setattr("launcher.backends.slurm.allocation.time.time", lambda at=END - before_s: at)
            assert here.stops_soon() == soon

    def test_that_is_never_more_than_a_fifth_of_it(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An administrator has shortened it, or it is the partition's default."""
        slurm.job_is("started")
        here = job(lead_s=END - START)

        for before_s, soon in ((121, False), (119, True)):
            monkeypatch.setattr("launcher.backends.slurm.allocation.time.time", lambda at=END - before_s: at)
            assert here.stops_soon() == soon

    def test_a_signal_that_slurm_sends_too_early_for_it_is_said_and_ends_nothing(
        self,
        job: Callable[..., JobAllocation],
        slurm: FakeSlurm,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        slurm.job_is("started")
        monkeypatch.setattr("launcher.backends.slurm.allocation.time.time", lambda: START + 20)
        here = job(lead_s=END - START)

        here.ranks_left()

        assert [here.ending() for _ in range(3)] == [None] * 3
        assert len(slurm.calls) == 1, "nothing is left to ask about"
        assert "job 7 has less time than slurm.signal_delay needs" in caplog.text

    def test_while_nobody_answers_what_was_known_holds(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm
    ) -> None:
        slurm.answers("scontrol show", fails(SILENT), prints(said("limit-stay", "7")), fails(SILENT))
        here = job()

        assert [here.stops_soon() for _ in range(3)] == [False, True, True], "that end is long past"

    def test_a_job_without_a_limit_stops_at_none(self, job: Callable[..., JobAllocation], slurm: FakeSlurm) -> None:
        slurm.job_is("low-stay, seconds later")  # EndTime=Unknown

        assert not job().stops_soon()


class TestFaultyHosts:
    @pytest.mark.parametrize(
        ("case", "there", "sections", "left"),
        [
            ("started", 4, {}, True),
            ("started", 2, {"resources": {"nodes": 2}}, False),  # there are no others
            ("started", 4, {"slurm": {"nodelist": ["n[1-2]"]}}, False),  # the spec wants it
            ("grace-scancel-requeue", 4, {}, False),  # it ends anyway
        ],
    )
    def test_it_is_left_for_others_where_that_is_possible(
        self,
        job: Callable[..., JobAllocation],
        slurm: FakeSlurm,
        make_run: MakeRun,
        case: str,
        there: int,
        sections: dict[str, Any],
        left: bool,
    ) -> None:
        slurm.job_is(case)
        slurm.answers("sinfo", f"echo {there}")

        ending = job().unfit(spec_of(make_run("run", **sections)), ["n2"], ["n2"])

        assert (ending is not None) == left
        if ending:
            assert ending == Ending(cause=Cause.INFRA, reason="job 7 is left: ranks keep failing on n2")

    def test_a_host_that_slurm_has_taken_away_is_no_reason(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        slurm.job_is("started")
        slurm.answers("sinfo", "echo 8")

        assert job().unfit(spec_of(make_run()), ["n5"], ["n5"]) is None

    def test_a_silent_controller_is_none_either(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        slurm.answers("scontrol show", fails(SILENT))

        assert job().unfit(spec_of(make_run()), ["n2"], ["n2"]) is None


class TestGoesOn:
    def test_the_same_job_is_requeued(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun, resubmitted: list[Run]
    ) -> None:
        run = make_run()
        slurm.job_is("limit-leave")

        job().renew(run, spec_of(run))

        assert slurm.calls == ["scontrol requeue 7"]
        assert resubmitted == []

    def test_an_element_of_an_array_is_requeued_alone(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        lost = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2",))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), lost)

        job(job="24_3").renew(run, spec_of(run))

        assert slurm.called("scontrol") == ["scontrol requeue 24_3", "scontrol update JobId=24_3 ExcNodeList=n2"]

    def test_hosts_that_failed_under_the_run_are_excluded(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        ended = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2", "n5"))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), ended)
        slurm.job_is("limit-leave")

        job().renew(run, spec_of(run))

        assert slurm.calls[-1] == "scontrol update JobId=7 ExcNodeList=n2,n5"

    def test_beside_those_that_the_spec_excludes(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        ended = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2",))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), ended, slurm={"exclude": ["n7"]})
        slurm.job_is("limit-leave")

        job().renew(run, spec_of(run))

        assert slurm.calls[-1] == "scontrol update JobId=7 ExcNodeList=n7,n2"

    def test_a_job_is_not_left_without_nodes(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun
    ) -> None:
        ended = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2",))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), ended, resources={"nodes": 2})
        slurm.job_is("limit-leave")
        slurm.answers("sinfo", "echo 2")

        job().renew(run, spec_of(run))

        assert not slurm.called("scontrol update")

    def test_that_they_could_not_be_excluded_stops_nothing(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun, resubmitted: list[Run]
    ) -> None:
        ended = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2",))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), ended)
        slurm.job_is("limit-leave")
        slurm.answers("scontrol update", fails("slurm_update error: Job is not pending"))

        job().renew(run, spec_of(run))

        assert resubmitted == []

    def test_a_job_that_may_not_be_requeued_is_replaced_by_another(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun, resubmitted: list[Run]
    ) -> None:
        run = make_run()
        slurm.job_is("low-norequeue")
        slurm.answers("scontrol requeue", fails("Requested operation is presently disabled for job 7"))

        job().renew(run, spec_of(run))

        assert resubmitted == [run]
        assert len(slurm.called("scontrol requeue")) == 1

    def test_a_controller_that_is_silent_is_waited_for(
        self, job: Callable[..., JobAllocation], slurm: FakeSlurm, make_run: MakeRun, resubmitted: list[Run]
    ) -> None:
        run = make_run()
        slurm.answers("scontrol requeue", fails(SILENT), "exit 0")

        job().renew(run, spec_of(run))

        assert resubmitted == []
        assert len(slurm.called("scontrol requeue")) == 2

    def test_but_not_for_ever(
        self,
        job: Callable[..., JobAllocation],
        slurm: FakeSlurm,
        make_run: MakeRun,
        resubmitted: list[Run],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
        run = make_run()
        slurm.answers("scontrol requeue", fails(SILENT))

        with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
            job().renew(run, spec_of(run))

        assert resubmitted == []


class TestInteractive:
    """An allocation of the user's own."""

    here = Interactive(Start(job="7", restarts=0, hosts=("n1", "n2")))

    def test_goes_on_as_long_as_slurm_says_so_or_nothing(self, slurm: FakeSlurm) -> None:
        slurm.answers("scontrol show", prints(said("started", "7")), fails(SILENT))

        assert self.here.ending() is None
        assert self.here.ending() is None

    def test_stops_the_run_with_its_own_end(self, slurm: FakeSlurm) -> None:
        slurm.answers("scontrol show", prints(said("scancel", "7")))

        ending = self.here.ending()

        assert ending == Ending(cause=Cause.STOPPED, reason="job 7 is over, an allocation of the user's own")
