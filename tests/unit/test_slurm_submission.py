"""A job is submitted by submitit to a fake sbatch (fake_slurm.py)."""

import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, fails

from launcher.backends.slurm.commands import SlurmError
from launcher.backends.slurm.job import comment
from launcher.backends.slurm.submission import FOLDER, script_text, submit
from launcher.events import AttemptEnded, AttemptStarting, Submitted, Submitting
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import Submission

pytest.importorskip("submitit")
GOLDEN = Path(__file__).with_name("golden")
TAKEN = "echo Submitted batch job 7"
MakeRun = Callable[..., Run]


def spec_of(run: Run) -> JobSpec:
    return JobSpec.model_validate(run.record.spec)


def script(run: Run) -> str:
    """What sbatch was given."""
    return Path(run.storage.root, FOLDER, "7_submission.sh").read_text()


class TestSubmit:
    def test_the_job_is_written_down_before_and_after(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run()
        slurm.answers("sbatch", f"ls {run.storage.root}/events > events\n{TAKEN}")

        assert submit(run, spec_of(run)) == "7"

        assert (Path(slurm.folder) / "events").read_text() == "00000001.json\n", "the intent comes before the effect"
        events = [record.event for record in run.ledger.records()]
        assert events == [Submitting(submission=1, target="local"), Submitted(submission=1, job="7")]

    def test_what_the_job_runs_is_told_the_run_and_the_number_of_its_submission(
        self, make_run: MakeRun, slurm: FakeSlurm
    ) -> None:
        run = make_run("run", Submitting(submission=1, target="local"))
        slurm.answers("sbatch", TAKEN)

        submit(run, spec_of(run), worker=("python3", "rank.py"))

        with Path(run.storage.root, FOLDER, "7_submitted.pkl").open("rb") as file:
            function = pickle.load(file).function
        assert (function.run_dir, function.submission) == (run.storage.root, 2)
        assert function.worker == ("python3", "rank.py")
        assert f"--comment={comment('run', 2)}" in script(run)

    def test_the_first_job_of_a_run_starts_when_it_can_and_a_later_one_after_the_earlier(
        self, make_run: MakeRun, slurm: FakeSlurm
    ) -> None:
        first, later = make_run("first"), make_run("later")
        slurm.answers("sbatch", TAKEN)

        submit(first, spec_of(first))
        submit(later, spec_of(later), behind="24_3")

        assert "dependency" not in script(first)
        assert "#SBATCH --dependency=afterany:24_3\n" in script(later)
        assert "#SBATCH --job-name=later\n" in script(later)

    def test_hosts_that_failed_under_the_run_are_avoided(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        lost = AttemptEnded(attempt=1, cause="infra", reason="", step=0, lost=("n2", "n5"))
        run = make_run("run", AttemptStarting(attempt=1, target="slurm"), lost)
        slurm.answers("sbatch", TAKEN)

        submit(run, spec_of(run))

        assert "#SBATCH --exclude=n2,n5\n" in script(run)
        assert Submitting(submission=1, target="local", exclude=("n2", "n5")) in [
            record.event for record in run.ledger.records()
        ]

    def test_that_sbatch_refuses_is_said_in_its_words(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run()
        slurm.answers("sbatch", fails("sbatch: error: invalid partition specified: gpus"))

        with pytest.raises(SlurmError, match=r"^sbatch: .*invalid partition specified: gpus"):
            submit(run, spec_of(run))

        submission = run.ledger.refresh().submission
        assert submission is not None
        assert (submission.number, submission.job) == (1, None)

    def test_an_answer_that_names_no_job_is_an_error(self, make_run: MakeRun, slurm: FakeSlurm) -> None:
        run = make_run()
        slurm.answers("sbatch", "echo Welcome to the cluster")

        with pytest.raises(SlurmError, match="Welcome to the cluster"):
            submit(run, spec_of(run))

    def test_where_there_is_no_slurm_that_is_said(
        self, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        run = make_run()

        with pytest.raises(SlurmError, match="srun"):
            submit(run, spec_of(run))


class TestEnvironment:
    """sbatch hands its environment on to the job."""

    def test_what_the_shell_knows_of_a_job_around_it_does_not_reach_sbatch_and_stays_in_the_shell(
        self, make_run: MakeRun, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "SLURM_CONF", "MY_OWN"):
            monkeypatch.setenv(name, "1")
        before = dict(os.environ)
        run = make_run()
        slurm.answers("sbatch", TAKEN)

        submit(run, spec_of(run))

        told = slurm.environment_of("sbatch")
        assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION"} & told.keys()
        assert {"SLURM_CONF", "MY_OWN", "PATH"} <= told.keys()
        assert dict(os.environ) == before

    def test_it_stays_there_too_when_sbatch_refuses(
        self, make_run: MakeRun, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "3")
        before = dict(os.environ)
        run = make_run()
        slurm.answers("sbatch", fails("no"))

        with pytest.raises(SlurmError):
            submit(run, spec_of(run))

        assert dict(os.environ) == before


def test_a_run_whose_job_came_up_before_its_number_was_written_down_is_submitted_once(
    make_run: MakeRun, slurm: FakeSlurm
) -> None:
    """The job may be faster than the one who submits it."""
    run = make_run()
    event = Submitted(submission=1, job="7")
    slurm.answers("sbatch", f"cp {_second_event(run, event)} {run.storage.root}/events/00000002.json\n{TAKEN}")

    submit(run, spec_of(run))

    submission = run.ledger.refresh().submission
    assert isinstance(submission, Submission)
    assert (submission.number, submission.job, run.ledger.refresh().submissions) == (1, "7", 1)


def _second_event(run: Run, event: Submitted) -> Path:
    """A file with the event as the job itself would write it."""
    from launcher.ledger import Ledger
    from launcher.storage import PosixStorage

    beside = Path(run.storage.root).parent / "beside"
    ledger = Ledger(PosixStorage(beside))
    ledger.append(Submitting(submission=1, target="local"), after=0)
    ledger.append(event, after=1)
    return beside / "events/00000002.json"


class TestScript:
    def record(self, **site: Any) -> Record:
        return Record(
            id="net-1",
            name="net",
            created=0.0,
            target="lab",
            spec={},
            spec_file="",
            spec_text="",
            site={"kind": "slurm", **site},
        )

    def spec(self) -> JobSpec:
        resources = {"nodes": 2, "tasks_per_node": 2, "time": "1h"}
        slurm = {"partition": "main", "modules": ["cuda"], "setup": ["export A=1"]}
        body = {"name": "net", "model": {"class_path": "a.B"}, "resources": resources, "slurm": slurm}
        return JobSpec.model_validate(body)

    def test_it_is_what_it_was(self, slurm: FakeSlurm, request: pytest.FixtureRequest) -> None:
        text = script_text(self.record(python="/shared/env/bin/python"), self.spec(), "/runs/net-1")

        golden = GOLDEN / "batch-script.txt"
        if request.config.getoption("--update-golden"):
            golden.write_text(text)
        assert text == golden.read_text(), "if this is meant: pytest --update-golden"
        assert slurm.calls == []

    def test_the_supervisor_is_started_by_the_python_that_submits_where_the_target_names_none(
        self, slurm: FakeSlurm
    ) -> None:
        text = script_text(self.record(), self.spec(), "/runs/net-1")

        assert re.search(rf"^exec {re.escape(sys.executable)} -P -u -m submitit.core._submit", text, re.MULTILINE)

    def test_a_python_with_a_space_in_its_path_is_one_word(self, slurm: FakeSlurm) -> None:
        text = script_text(self.record(python="/my env/bin/python"), self.spec(), "/runs/net-1")

        assert "exec '/my env/bin/python' -P " in text

    def test_where_there_is_no_slurm_that_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(SlurmError, match="srun"):
            script_text(self.record(), self.spec(), "/runs/net-1")
