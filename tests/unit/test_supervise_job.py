"""A supervisor that stands in a scheduler's job: who may drive, and how the run goes on when the job ends.

Backend and allocation are played by objects that do what a test says; no process is started.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from launcher import supervise
from launcher.backend import Ending, Handle, Plan
from launcher.driver import renew_lease, this_process
from launcher.errors import LauncherError, LedgerConflict, NotTheDriver
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    Driver,
    Driving,
    Event,
    ResumeRequested,
    RunEnded,
    Submitted,
    Submitting,
)
from launcher.policy import Cause, Phase, Seen
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import Submission
from launcher.storage import PosixStorage
from launcher.supervise import Place, Supervisor, submit

MakeRun = Callable[..., Run]
RUNNING = Seen(Phase.RUNNING)
SUBMITTING = Submitting(submission=1, target="slurm")
SUBMITTED = Submitted(submission=1, job="7")
PREEMPTED = Ending(cause=Cause.PREEMPTED, reason="job 7 was preempted")
REQUEUED = Ending(cause=Cause.PREEMPTED, reason="job 7 was requeued by Slurm", comes_back=True)
CANCELLED = Ending(cause=Cause.CANCELLED, reason="job 7 was cancelled (scancel)")
SAVED = Seen(Phase.ENDED, Cause.CANCELLED, "job 7 was cancelled (scancel); saved and left at SIGTERM")
LEFT = Seen(Phase.ENDED, Cause.PREEMPTED, "job 7 was preempted; saved and left at SIGUSR2")


@dataclass
class Ranks:
    """A backend whose attempts are seen as they are listed, look by look; the last look is repeated."""

    looks: list[Seen] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What it was told to do."""

    def plan(self, run_dir: str, record: Record, spec: JobSpec, attempt: int) -> Plan:
        return Plan(
            target="slurm",
            run_dir=run_dir,
            attempt=attempt,
            hosts=("n1",),
            workdir="/",
            env={},
            launch=(),
            argv=(),
            accelerator="cpu",
            archive=None,
            ranks=(),
        )

    def start(self, plan: Plan) -> Handle:
        self.said.append(f"start {plan.attempt}")
        return {"attempt": plan.attempt}

    def find(self, run_dir: str, attempt: int) -> Handle | None:
        return None

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def stop(self, handle: Handle) -> None:
        self.said.append("stop")

    def kill(self, handle: Handle) -> None:
        self.said.append("kill")


@dataclass
class Allocation:
    """Ends as it is told, look by look; the last look is repeated."""

    endings: list[Ending | None] = field(default_factory=lambda: [None])
    soon: bool = False
    renewed: list[str] = field(default_factory=list)
    refused: str = ""

    def ending(self) -> Ending | None:
        return self.endings.pop(0) if len(self.endings) > 1 else self.endings[0]

    def stops_soon(self) -> bool:
        return self.soon

    def renew(self, run: Run, spec: JobSpec) -> None:
        self.renewed.append(run.id)
        if self.refused:
            raise LauncherError(self.refused)


def supervisor(run: Run, ranks: Ranks, allocation: Allocation, *, submission: int = 1, job: str = "7") -> Supervisor:
    spec = JobSpec.model_validate(run.record.spec)
    return Supervisor(run, spec, ranks, Place(submission=submission, job=job, allocation=allocation))


def drive(run: Run, ranks: Ranks, allocation: Allocation | None = None, **place: Any) -> RunEnded | None:
    return supervisor(run, ranks, allocation or Allocation(), **place).drive()


def events(run: Run) -> list[Event]:
    return [record.event for record in run.ledger.records()]


def kinds(run: Run) -> list[str]:
    return [type(event).__name__ for event in events(run)]


def ended(run: Run) -> list[tuple[str, str]]:
    return [(event.cause, event.reason) for event in events(run) if isinstance(event, AttemptEnded)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PosixStorage, "pause_s", 0.001)


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """It was submitted as job 7."""
    return make_run("run", SUBMITTING, SUBMITTED)


class TestTakeOver:
    def test_the_driver_says_which_job_it_is(self, run: Run) -> None:
        supervisor(run, Ranks(), Allocation()).take_over()

        driver = run.ledger.refresh().driver
        assert driver is not None
        assert driver.job == "7"

    def test_a_job_whose_number_nobody_wrote_down_writes_it_down_itself(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING)

        supervisor(run, Ranks(), Allocation()).take_over()

        assert events(run)[1] == SUBMITTED
        assert kinds(run) == ["Submitting", "Submitted", "Driving"]

    def test_the_one_who_submits_writes_it_down_too_without_harm(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING)

        def send(number: int, exclude: tuple[str, ...]) -> str:
            supervisor(Run(run.storage), Ranks(), Allocation(), submission=number).take_over()
            return "7"

        assert submit(run, "slurm", send) == "7"
        state = run.ledger.refresh()
        assert state.submission is not None
        assert (state.submission.number, state.submission.job) == (2, "7")

    @pytest.mark.parametrize(
        "later",
        [
            [Submitting(submission=2, target="slurm")],
            [Submitting(submission=2, target="slurm"), Submitted(submission=2, job="8")],
            [RunEnded(state="stopped", reason=""), ResumeRequested(by="me")],
            [Submitted(submission=1, job="8")],  # two elements for one run of a sweep: the first has it
        ],
    )
    def test_a_job_that_the_run_does_not_wait_for_any_more_leaves(self, make_run: MakeRun, later: list[Event]) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, *later)
        before = run.ledger.refresh()
        ranks = Ranks()

        with pytest.raises(NotTheDriver, match="run: job 7 is not the one that it waits for any more"):
            drive(run, ranks)

        assert run.ledger.refresh() == before
        assert ranks.said == []

    def test_the_one_that_it_waits_for_instead_drives(self, make_run: MakeRun) -> None:
        later = (Submitting(submission=2, target="slurm"), Submitted(submission=2, job="8"))
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=somebody(job="7")), *later)

        supervisor(run, Ranks(), Allocation(), submission=2, job="8").take_over()

        driver = run.ledger.refresh().driver
        assert driver is not None
        assert driver.job == "8"

    def test_what_drove_before_is_not_waited_for_though_its_lease_has_not_lapsed(self, run: Run) -> None:
        """It was an earlier start of this job, on another node, and Slurm has ended it."""
        before = somebody(job="7")
        run.ledger.append(Driving(driver=before), after=2)
        renew_lease(run.storage, before)

        supervisor(run, Ranks(), Allocation()).take_over()

        assert run.ledger.refresh().driver == this_process("7")

    def test_without_a_job_it_is_waited_for(self, run: Run) -> None:
        before = somebody(job="7")
        run.ledger.append(Driving(driver=before), after=2)
        renew_lease(run.storage, before)

        with pytest.raises(NotTheDriver, match="process 7 on there drives this run already"):
            Supervisor(run, JobSpec.model_validate(run.record.spec), Ranks()).take_over()

    def test_somebody_who_writes_in_between_is_heard(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A newer submission that comes between looking and writing: this job is not the one any more."""
        monkeypatch.setattr(supervise, "renew_lease", overtaking(run, Submitting(submission=2, target="slurm")))

        with pytest.raises(NotTheDriver, match="not the one"):
            supervisor(run, Ranks(), Allocation()).take_over()

        assert "Driving" not in kinds(run)

    def test_a_run_that_has_ended_meanwhile_is_left_alone(self, run: Run) -> None:
        run.ledger.append(RunEnded(state="cancelled", reason="cancelled by the user"), after=2)
        ranks = Ranks()

        assert drive(run, ranks) == RunEnded(state="cancelled", reason="cancelled by the user")
        assert ranks.said == []


def somebody(job: str = "") -> Driver:
    return Driver(host="there", machine="elsewhere", pid=7, started=1, job=job)


def overtaking(run: Run, event: Event) -> Callable[..., None]:
    """Somebody writes this event, once, while another process thinks."""
    once = iter([event])

    def write(*_: object) -> None:
        for one in once:
            other = Run(run.storage)
            other.ledger.append(one, after=other.ledger.refresh().version)

    return write


class TestTheJobEnds:
    def test_the_run_goes_on_in_another_allocation(self, run: Run) -> None:
        ranks, allocation = Ranks([RUNNING, LEFT]), Allocation([None, None, PREEMPTED])

        assert drive(run, ranks, allocation) is None

        assert allocation.renewed == ["run"]
        assert ranks.said == ["start 1"], "no attempt starts in a job that ends"
        assert ended(run) == [(Cause.PREEMPTED, LEFT.reason)]
        assert run.ledger.refresh().ended is None

    def test_slurm_brings_it_back_by_itself(self, run: Run) -> None:
        allocation = Allocation([None, REQUEUED])

        assert drive(run, Ranks([LEFT]), allocation) is None
        assert allocation.renewed == []

    def test_it_was_cancelled_and_so_is_the_run(self, run: Run) -> None:
        allocation = Allocation([CANCELLED])
        ranks = Ranks()

        assert drive(run, ranks, allocation) == RunEnded(state="cancelled", reason="job 7 was cancelled (scancel)")
        assert (ranks.said, allocation.renewed) == ([], [])

    @pytest.mark.parametrize(
        ("gone", "renewed", "outcome"),
        [
            (Ending(cause=Cause.INFRA, reason="job 7 has lost a node"), ["run"], None),
            (CANCELLED, [], RunEnded(state="cancelled", reason=CANCELLED.reason)),
        ],
    )
    def test_the_wait_before_another_attempt_is_not_spent_in_a_job_that_ends(
        self,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        gone: Ending,
        renewed: list[str],
        outcome: RunEnded | None,
    ) -> None:
        """Slurm would end this process before the wait is over, and nobody would have the run go on."""
        monkeypatch.setattr("launcher.policy.BACKOFF_S", 60.0)
        lost = Seen(Phase.ENDED, Cause.INFRA, "n2 failed", ("n2",))
        allocation = Allocation([None, gone])
        here = supervisor(run, Ranks([lost]), allocation)
        here.take_over()

        for _ in range(3):
            here.step()

        assert allocation.renewed == renewed
        state = run.ledger.refresh()
        assert (state.ended, state.excluded, ended(run)) == (outcome, ("n2",), [(Cause.INFRA, "n2 failed")])

    def test_a_run_that_is_over_ends_in_it(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, retry={"preemption": 0})
        allocation = Allocation([None, PREEMPTED])

        outcome = drive(run, Ranks([LEFT]), allocation)

        assert outcome is not None
        assert outcome.state == "failed"
        assert allocation.renewed == []

    def test_that_the_scheduler_refuses_is_an_error_and_the_run_has_not_ended(self, run: Run) -> None:
        allocation = Allocation([None, PREEMPTED], refused="sbatch: no more credit")

        with pytest.raises(LauncherError, match="no more credit"):
            drive(run, Ranks([LEFT]), allocation)

        state = run.ledger.refresh()
        assert state.ended is None
        assert state.open_attempt is None

    def test_an_end_that_is_not_one_after_all_is_none(self, run: Run) -> None:
        """Ranks had left at a signal, and the job goes on: the next attempt starts in it."""
        failed = Seen(Phase.ENDED, Cause.ERROR, "rank 0: KeyError: 1")
        ranks = Ranks([LEFT, failed])

        outcome = drive(run, ranks, Allocation())

        assert ranks.said == ["start 1", "start 2"]
        assert outcome is not None
        assert outcome.state == "failed"


class TestWhileRanksRun:
    def test_they_are_asked_once_to_stop_when_the_time_is_nearly_over(self, run: Run) -> None:
        ranks = Ranks([RUNNING] * 4 + [LEFT])
        allocation = Allocation([None] * 5 + [PREEMPTED], soon=True)

        assert drive(run, ranks, allocation) is None
        assert ranks.said == ["start 1", "stop"]

    def test_of_a_preempted_job_they_are_left_to_save(self, run: Run) -> None:
        ranks = Ranks([RUNNING] * 4 + [LEFT])

        assert drive(run, ranks, Allocation([None, PREEMPTED])) is None
        assert ranks.said == ["start 1"], "Slurm has told them"

    def test_of_a_cancelled_job_they_are_waited_for_and_the_wish_is_written_down_at_once(self, run: Run) -> None:
        ranks = Ranks([RUNNING, RUNNING, SAVED])

        outcome = drive(run, ranks, Allocation([None, CANCELLED]))

        assert kinds(run)[4:] == ["AttemptStarted", "CancelRequested", "AttemptEnded", "RunEnded"]
        assert CancelRequested(by=CANCELLED.reason, checkpoint=True) in events(run)
        assert outcome == RunEnded(state="cancelled", reason=SAVED.reason)
        assert ranks.said == ["start 1"], "they are not killed: Slurm does that in its time"

    def test_but_not_until_slurm_kills_this_process(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervise, "LAST_WORDS_S", 0.05)

        outcome = drive(run, Ranks([RUNNING]), Allocation([None, CANCELLED]))

        assert ended(run) == [(Cause.CANCELLED, "job 7 was cancelled (scancel)")]
        assert outcome is not None
        assert outcome.state == "cancelled"

    def test_what_the_ranks_save_is_waited_for_also_when_the_user_had_asked_before(self, run: Run) -> None:
        """`launcher cancel --checkpoint`, and then scancel: the last words are counted from the latter."""
        run.ledger.append(CancelRequested(by="me", checkpoint=True), after=2)
        run.ledger.append(AttemptStarting(attempt=1, target="slurm"), after=3)
        run.ledger.append(AttemptStarted(attempt=1, hosts=(), handle={"attempt": 1}), after=4)

        drive(run, Ranks([RUNNING] * 3 + [SAVED]), Allocation([CANCELLED]))

        assert ended(run) == [(Cause.CANCELLED, SAVED.reason)]

    def test_a_cancel_that_saves_first_asks_and_one_that_does_not_kills(self, make_run: MakeRun) -> None:
        for checkpoint, word in ((True, "stop"), (False, "kill")):
            run = make_run(f"run-{word}", SUBMITTING, SUBMITTED)
            ranks = Ranks([RUNNING, RUNNING, LEFT])
            asked = overtaking(run, CancelRequested(by="me", checkpoint=checkpoint))
            looks = itertools.count()

            supervisor(run, ranks, Allocation()).drive(lambda _, looks=looks, asked=asked: next(looks) and asked())

            assert set(ranks.said) == {"start 1", word}
            assert ended(run) == [(Cause.CANCELLED, "cancelled by the user")]


class TestSubmit:
    def test_intent_effect_outcome(self, make_run: MakeRun) -> None:
        run = make_run()
        there: list[list[str]] = []

        def send(number: int, exclude: tuple[str, ...]) -> str:
            there.append(kinds(Run(run.storage)))
            return "7"

        assert submit(run, "slurm", send) == "7"
        assert there == [["Submitting"]]
        state = run.ledger.refresh()
        assert (state.submission and state.submission.job, state.submissions) == ("7", 1)

    def test_numbers_go_on_and_hosts_that_failed_are_told(self, make_run: MakeRun) -> None:
        lost = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2",))
        run = make_run("run", SUBMITTING, SUBMITTED, AttemptStarting(attempt=1, target="slurm"), lost)
        sent: list[tuple[int, tuple[str, ...]]] = []

        submit(run, "slurm", lambda number, exclude: (sent.append((number, exclude)), "8")[1])

        assert sent == [(2, ("n2",))]
        assert Submitting(submission=2, target="slurm", exclude=("n2",)) in events(run)

    def test_where_somebody_else_acts_on_the_run_nothing_is_submitted(self, make_run: MakeRun) -> None:
        run = make_run()
        sent: list[int] = []
        state = run.ledger.refresh()
        overtaking(run, CancelRequested(by="other"))()

        with pytest.raises(LedgerConflict):
            submit(run, "slurm", lambda number, exclude: (sent.append(number), "8")[1], after=state.version)

        assert sent == []
        assert kinds(run) == ["CancelRequested"]

    def test_what_is_refused_leaves_an_intent_without_an_outcome(self, make_run: MakeRun) -> None:
        run = make_run()

        def refuse(number: int, exclude: tuple[str, ...]) -> str:
            raise LauncherError("sbatch: no")

        with pytest.raises(LauncherError, match="sbatch: no"):
            submit(run, "slurm", refuse)

        submission = run.ledger.refresh().submission
        assert isinstance(submission, Submission)
        assert submission.job is None
