"""What the command line makes of runs that have jobs: status, list's hints, cancel, reconcile; Slurm is a fake."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import SILENT, FakeSlurm, fails, prints, said

from launcher.cli import cancel as cancel_module
from launcher.cli import scheduler
from launcher.cli.cancel import cancel
from launcher.cli.reconcile import reconcile
from launcher.cli.terminal import clock
from launcher.cli.views import list_runs
from launcher.cli.views import status as show_status
from launcher.driver import renew_lease, this_process
from launcher.errors import LauncherError, UsageError
from launcher.events import (
    AttemptEnded,
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
from launcher.ledger import Ledger
from launcher.run import Run
from launcher.status import status
from launcher.storage import PosixStorage

MakeRun = Callable[..., Run]
LONG_AGO = time.time() - 3600
SUBMITTING = Submitting(submission=1, target="slurm")
SUBMITTED = Submitted(submission=1, job="7")
THERE = Driver(host="n1", machine="elsewhere", pid=12, started=1, job="7")
STARTING = AttemptStarting(attempt=1, target="slurm")
LOST = AttemptEnded(attempt=1, cause="infra", reason="n2 failed", step=0, lost=("n2",))
RUNNING = ("7", "launcher:run:1", "RUNNING", "None", "1795890595")
PENDING = ("7", "launcher:run:1", "PENDING", "Priority", "1795890595")
TAKEN = "echo Submitted batch job 8"
FORGOTTEN = fails("slurm_load_jobs error: Invalid job id specified")


def call(run: Run | None = None, *, root: Path | None = None, **options: Any) -> argparse.Namespace:
    runs_root = root or Path(run.storage.root).parent if run or root else None
    values = {"run": run and run.id, "runs_root": str(runs_root), "json": False, "checkpoint": False}
    return argparse.Namespace(**{**values, **options})


def events(run: Run) -> list[Event]:
    return [record.event for record in run.ledger.records()]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PosixStorage, "pause_s", 0.001)


@pytest.fixture
def aged(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """As make_run; the events happened an hour ago."""

    def make(*events: Event, run_id: str = "run", **sections: Any) -> Run:
        with monkeypatch.context() as patch:
            patch.setattr("launcher.ledger.time.time", lambda: LONG_AGO)
            return make_run(run_id, *events, **sections)

    return make


class TestStatus:
    def seen(self, run: Run) -> tuple[str, str]:
        shown = status(run)
        return shown["state"], shown["reason"]

    def test_a_submitted_run_waits_for_its_job(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED)

        assert self.seen(run) == ("queued", "job 7 is to start")
        assert status(run)["job"] == "7"

    def test_of_one_that_is_being_submitted_nobody_knows_the_job(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING)

        assert self.seen(run) == ("queued", "submission 1 was begun, and nobody knows whether it was taken")
        assert status(run)["job"] is None

    def test_one_that_nobody_submitted_is_driven_by_nobody(self, make_run: MakeRun) -> None:
        assert self.seen(make_run()) == ("queued", "nobody drives it yet")

    def test_between_two_starts_of_its_job_it_is_queued_though_the_lease_has_not_lapsed(
        self, make_run: MakeRun
    ) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE), STARTING, LOST)
        renew_lease(run.storage, THERE)

        assert self.seen(run) == ("queued", "job 7 is to start")

    def test_in_its_job_it_runs(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE), STARTING)
        renew_lease(run.storage, THERE)

        assert self.seen(run) == ("running", "")

    def test_one_whose_job_fell_silent_may_come_back(self, make_run: MakeRun) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE), STARTING)

        state, reason = self.seen(run)

        assert state == "unknown"
        assert "its scheduler starts job 7 again, or else `launcher reconcile run` has it go on" in reason

    def test_one_that_was_submitted_again_after_that_is_queued(self, make_run: MakeRun) -> None:
        again = (Submitting(submission=2, target="slurm"), Submitted(submission=2, job="8"))
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE), STARTING, *again)

        assert self.seen(run) == ("queued", "job 8 is to start")

    def test_without_a_job_only_the_user_brings_it_back(self, make_run: MakeRun) -> None:
        gone = Driver(host="n1", machine="elsewhere", pid=12, started=1)

        state, reason = self.seen(make_run("run", Driving(driver=gone), STARTING))

        assert (state, reason.partition("; ")[2]) == ("unknown", "`launcher resume run`")


class TestHints:
    def test_a_job_s_state_is_what_the_queue_says(self, slurm: FakeSlurm) -> None:
        slurm.queue_is(PENDING, ("8", "", "RUNNING", "None", "N/A"))

        assert scheduler.Scheduler().hints({"7", "8", "9"}) == {
            "7": {"state": "PENDING", "reason": "Priority", "start": 1795890595.0},
            "8": {"state": "RUNNING", "reason": "None", "start": None},
            "9": {"state": "GONE", "reason": "", "start": None},
        }
        assert len(slurm.calls) == 1, "one question for all"

    def test_without_jobs_nobody_is_asked(self, slurm: FakeSlurm) -> None:
        assert scheduler.Scheduler().hints(set()) == {}
        assert slurm.calls == []

    def test_no_answer_is_no_error(self, slurm: FakeSlurm) -> None:
        slurm.answers("squeue", fails(SILENT))

        hint = scheduler.Scheduler().hints({"7"})["7"]

        assert hint["state"] == "UNKNOWN"
        assert SILENT in hint["reason"]

    @pytest.mark.parametrize(
        ("hint", "words"),
        [
            ({"state": "RUNNING", "reason": "None", "start": 1.0}, "job 7 RUNNING"),
            ({"state": "GONE", "reason": "", "start": None}, "job 7 GONE"),
            ({"state": "PENDING", "reason": "Priority", "start": None}, "job 7 PENDING (Priority)"),
            (
                {"state": "PENDING", "reason": "Priority", "start": 1795890595.0},
                f"job 7 PENDING (Priority) expected to start {clock(1795890595.0)}",
            ),
        ],
    )
    def test_in_words(self, hint: scheduler.Hint, words: str) -> None:
        assert scheduler.in_words("7", hint) == words

    def test_list_and_status_say_why_a_run_waits(
        self, make_run: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED)
        make_run("other", SUBMITTING, Submitted(submission=1, job="9"))
        slurm.queue_is(PENDING)

        list_runs(call(run))
        listed = capsys.readouterr().out
        show_status(call(run, json=True))
        shown = json.loads(capsys.readouterr().out)

        assert "job 7 PENDING (Priority)" in listed
        assert "job 9 GONE" in listed
        assert shown["scheduler"] == {"state": "PENDING", "reason": "Priority", "start": 1795890595.0}


class TestCancel:
    def test_a_job_that_waits_is_taken_out_of_the_queue(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED)
        slurm.answers("scontrol show", prints(said("started", "7").replace("=RUNNING", "=PENDING")))

        assert cancel(call(run)) == 0

        assert "scancel 7" in slurm.calls
        assert run.ledger.refresh().ended == RunEnded(state="cancelled", reason="cancelled by the user")

    def test_a_job_that_slurm_has_forgotten_is_none(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE))
        slurm.answers("scontrol show", FORGOTTEN)
        slurm.answers("scancel", fails("scancel: error: Kill job error on job id 7: Invalid job id specified"))

        assert cancel(call(run)) == 0

    @pytest.mark.parametrize("checkpoint", [False, True])
    def test_a_job_that_runs_is_told_and_ends_the_run_itself(
        self, make_run: MakeRun, slurm: FakeSlurm, tmp_path: Path, checkpoint: bool
    ) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE))
        beside = Ledger(PosixStorage(tmp_path / "beside"))
        ended = RunEnded(state="cancelled", reason="cancelled by the user")
        for number, event in enumerate([*events(run), CancelRequested(by="me"), ended]):
            beside.append(event, after=number)
        runs = prints(said("started", "7"))
        supervisor_ends_it = f"cp {tmp_path}/beside/events/00000005.json {run.storage.root}/events/\n{runs}"
        slurm.answers("scontrol show", runs, supervisor_ends_it, runs)

        assert cancel(call(run, checkpoint=checkpoint)) == 0

        asked, last = events(run)[3:]
        assert isinstance(asked, CancelRequested)
        assert (asked.checkpoint, last) == (checkpoint, ended)
        assert slurm.calls[-1] == "scancel 7", "what is left of the job"
        assert len(slurm.called("scancel")) == 1

    def test_one_that_hears_nothing_is_ended_without_its_help(
        self, make_run: MakeRun, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cancel_module, "_PATIENCE_S", 0.1)
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE))
        slurm.job_is("started")

        assert cancel(call(run)) == 0

        assert [type(event) for event in events(run)[3:]] == [CancelRequested, RunEnded]
        assert "scancel 7" in slurm.calls

    def test_while_slurm_is_silent_the_wish_is_written_down_and_the_run_has_not_ended(
        self, make_run: MakeRun, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cancel_module, "_PATIENCE_S", 0.1)
        run = make_run("run", SUBMITTING, SUBMITTED, Driving(driver=THERE))
        for command in ("scontrol show", "scancel"):
            slurm.answers(command, fails(SILENT))

        with pytest.raises(LauncherError, match="Unable to contact slurm controller"):
            cancel(call(run))

        state = run.ledger.refresh()
        assert (state.cancelling, state.ended) == (True, None)

    def test_a_run_that_has_ended_is_not_cancelled(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run("run", SUBMITTING, SUBMITTED, RunEnded(state="failed", reason="why"))

        with pytest.raises(UsageError, match="has ended already: failed"):
            cancel(call(run))

        assert slurm.calls == []


class TestReconcile:
    def done(self, run: Run, capsys: pytest.CaptureFixture[str]) -> str:
        """What it says that it did."""
        assert reconcile(call(run, json=True)) == 0
        done = json.loads(capsys.readouterr().out)
        assert len(done) <= 1
        return str(done[0]["done"]) if done else ""

    def has_a_pickle(self, run: Run, job: str = "7") -> None:
        folder = Path(run.storage.root, "slurm")
        folder.mkdir()
        (folder / f"{job}_submitted.pkl").touch()

    def test_where_all_is_well_nothing_is_done(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED)
        self.has_a_pickle(run)
        slurm.queue_is(PENDING)
        before = run.ledger.refresh()

        assert reconcile(call(run)) == 0

        assert "nothing is amiss" in capsys.readouterr().out
        assert run.ledger.refresh() == before
        assert [one.split()[0] for one in slurm.calls] == ["squeue"]

    def test_a_job_that_no_run_names_is_known_by_its_comment(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = aged(SUBMITTING)
        self.has_a_pickle(run)
        slurm.queue_is(("6", "launcher:run:2", "PENDING", "None", "N/A"), RUNNING)

        assert self.done(run, capsys) == "job 7 is its own"

        assert events(run) == [SUBMITTING, SUBMITTED]
        assert slurm.called("sbatch") == []

    def test_a_submission_that_did_not_arrive_is_made_again(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("submitit")
        run = aged(SUBMITTING)
        slurm.answers("sbatch", TAKEN)

        assert self.done(run, capsys) == "its submission did not arrive; submitted as job 8"

        state = run.ledger.refresh()
        assert state.submission is not None
        assert (state.submission.number, state.submission.job) == (2, "8")

    def test_unless_it_may_still_be_under_way(
        self, make_run: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for run_id, job in (("coming", None), ("pickle-to-come", "7")):
            run = make_run(run_id, SUBMITTING)
            slurm.queue_is(*([(job, f"launcher:{run_id}:1", "PENDING", "None", "N/A")] if job else []))

            assert self.done(run, capsys) == ""

        assert {one.split()[0] for one in slurm.calls} == {"squeue"}

    def test_a_run_whose_job_was_lost_with_its_node_gets_another(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("submitit")
        run = aged(SUBMITTING, SUBMITTED, Driving(driver=THERE), STARTING, LOST)
        slurm.answers("scontrol show", FORGOTTEN)
        slurm.answers("sacct", prints("NODE_FAIL"))
        slurm.answers("sbatch", TAKEN)

        assert self.done(run, capsys) == "job 7 ended as NODE_FAIL; submitted as job 8"
        assert Submitting(submission=2, target="local", exclude=("n2",)) in events(run)

    def test_a_job_that_was_cancelled_while_it_waited_ends_its_run(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED)
        slurm.answers("scontrol show", FORGOTTEN)
        slurm.answers("sacct", prints("CANCELLED by 1000"))

        assert self.done(run, capsys) == "job 7 was cancelled (scancel), and the run with it"
        assert run.ledger.refresh().ended == RunEnded(state="cancelled", reason="job 7 was cancelled (scancel)")
        assert slurm.called("sbatch") == []

    @pytest.mark.parametrize(
        ("accounting", "said"),
        [
            (prints("FAILED"), "job 7 ended as FAILED"),
            (fails("sacct: error: Slurm accounting storage is disabled"), "does not know any more how it ended"),
        ],
    )
    def test_a_job_that_may_fail_again_is_left_to_the_user(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], accounting: str, said: str
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED)
        slurm.answers("scontrol show", FORGOTTEN)
        slurm.answers("sacct", accounting)

        told = self.done(run, capsys)

        assert said in told
        assert told.endswith("launcher resume run")
        assert slurm.called("sbatch") == []

    def test_unless_somebody_drives_it_here(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED, Driving(driver=this_process()))

        assert self.done(run, capsys) == ""
        assert slurm.called("sbatch") == []

    def test_a_job_that_has_nothing_to_run_is_cancelled_and_replaced(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever submitted it died before submitit had put the pickle beside it."""
        pytest.importorskip("submitit")
        run = aged(SUBMITTING)
        slurm.queue_is(PENDING)
        slurm.answers("sbatch", TAKEN)

        assert self.done(run, capsys) == "job 7 had nothing to run and is cancelled; submitted as job 8"
        assert slurm.called("scancel") == ["scancel 7"]

    @pytest.mark.parametrize(
        "later",
        [
            [CancelRequested(by="me")],
            [RunEnded(state="finished", reason="")],
            [RunEnded(state="stopped", reason=""), ResumeRequested(by="me")],
        ],
    )
    def test_a_run_that_needs_no_job_gets_none_and_nobody_is_asked(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], later: list[Event]
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED, *later)

        assert self.done(run, capsys) == ""
        assert slurm.calls == []

    def test_one_that_ends_while_the_queue_is_asked_gets_none(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        run = aged(SUBMITTING, SUBMITTED)
        beside = Ledger(PosixStorage(tmp_path / "beside"))
        for number, event in enumerate([SUBMITTING, SUBMITTED, RunEnded(state="finished", reason="")]):
            beside.append(event, after=number)
        slurm.answers("squeue", f"cp {tmp_path}/beside/events/00000003.json {run.storage.root}/events/")

        assert self.done(run, capsys) == ""
        assert slurm.called("sbatch") == []

    def test_one_that_another_reconcile_submits_just_now_is_not_submitted_twice(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Both saw the job without its pickle; the other was faster to cancel it."""
        run = aged(SUBMITTING, SUBMITTED)
        beside = Ledger(PosixStorage(tmp_path / "beside"))
        for number, event in enumerate([SUBMITTING, SUBMITTED, Submitting(submission=2, target="slurm")]):
            beside.append(event, after=number)
        slurm.queue_is(PENDING)
        slurm.answers("scancel", f"cp {tmp_path}/beside/events/00000003.json {run.storage.root}/events/")

        assert self.done(run, capsys) == "somebody else acts on it just now"
        assert slurm.called("sbatch") == []

    def test_all_runs_are_held_against_one_answer_and_one_error_does_not_hide_the_others(
        self, aged: MakeRun, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], runs_root: Path
    ) -> None:
        pytest.importorskip("submitit")
        for run_id in ("run-a", "run-b"):
            aged(SUBMITTING, SUBMITTED, run_id=run_id)
        (runs_root / "damaged").mkdir()
        (runs_root / "damaged/run.json").write_text("{")
        slurm.answers("scontrol show", FORGOTTEN)
        slurm.answers("sacct", prints("NODE_FAIL"))
        slurm.answers("sbatch", fails("sbatch: error: no more credit"), TAKEN)

        assert reconcile(call(root=runs_root)) == 0

        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("run-")
        assert "no more credit" in first + second
        assert "job 7 ended as NODE_FAIL; submitted as job 8" in first + second
        assert len(slurm.called("squeue")) == 1

    def test_without_an_answer_nothing_is_done(self, aged: MakeRun, slurm: FakeSlurm) -> None:
        run = aged(SUBMITTING, SUBMITTED)
        slurm.answers("squeue", fails(SILENT))

        with pytest.raises(LauncherError, match="Unable to contact slurm controller"):
            reconcile(call(run))

        assert slurm.called("sbatch") == []
