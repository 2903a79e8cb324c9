"""Sweeps on Slurm: which runs go into which array, what an element does, and what is missing; Slurm is a fake."""

import argparse
import io
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import SILENT, FakeSlurm, fails

from launcher.backends.slurm import payload
from launcher.backends.slurm.arrays import MAX_ARRAY_SIZE, Due, Element, arrays_in, elements_of, in_queue, together
from launcher.backends.slurm.backend import SlurmBackend
from launcher.backends.slurm.commands import Queued
from launcher.backends.slurm.job import in_short
from launcher.backends.slurm.payload import SuperviseCell
from launcher.backends.slurm.submission import FOLDER, script_text
from launcher.cli import arrays
from launcher.cli.arrays import cancel, longest, planned, submit_missing
from launcher.cli.place import check_fits
from launcher.cli.reconcile import reconcile
from launcher.cli.terminal import Terminal
from launcher.cli.views import list_runs
from launcher.cli.views import status as show_status
from launcher.errors import LauncherError, SpecError, UsageError
from launcher.events import CancelRequested, Driver, Driving, Event, ResumeRequested, RunEnded, Submitted, Submitting
from launcher.ledger import Ledger
from launcher.record import Code, Record, Tree
from launcher.run import Run
from launcher.spec import JobSpec, parse_spec
from launcher.spec_sweep import cells
from launcher.storage import PosixStorage
from launcher.sweep import Sweep, create_cell, create_sweep, lines, overall
from launcher.target import Target

pytest.importorskip("submitit")
GOLDEN = Path(__file__).with_name("golden")
TAKEN = "echo Submitted batch job 7"
FOUR = "{grid: {seed_everything: [1, 2, 3, 4]}}"
FACTS: dict[str, Any] = {
    "probed": "2026-01-01T00:00:00Z",
    "cluster": "lab",
    "version": "22.05",
    "partitions": {"main": {"default": True, "max_nodes": 2, "nodes": [{"count": 8, "cpus": 4, "memory_mb": 16000}]}},
    "accounting": True,
    "max_array_size": 3,
    "job_requeue": True,
    "kill_wait_s": 4,
    "user_signal": True,
}
THERE = Driver(host="n1", machine="elsewhere", pid=12, started=1, job="7_1")


def spec_of(sweep: str = FOUR, rest: str = "") -> JobSpec:
    return parse_spec(f"name: x\nmodel: {{class_path: a.B}}\n{rest}\nsweep: {sweep}", source="job.yaml")


def record_of(spec: JobSpec, **site: Any) -> Record:
    values = spec.model_dump(mode="json", exclude_unset=True)
    common: dict[str, Any] = {"name": "x", "created": 0.0, "target": "slurm", "workdir": "/"}
    return Record(id="sweep", spec=values, spec_file="", spec_text="", site={"kind": "slurm", **site}, **common)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PosixStorage, "pause_s", 0.001)


@pytest.fixture
def make(runs_root: Path) -> Callable[..., Sweep]:
    def make(sweep: str = FOUR, rest: str = "", **site: Any) -> Sweep:
        spec = spec_of(sweep, rest)
        assert spec.sweep
        return create_sweep(runs_root, record_of(spec, **site), cells(spec.sweep))

    return make


@pytest.fixture
def sweep(make: Callable[..., Sweep]) -> Sweep:
    return make()


def submitted(sweep: Sweep, *, failed: bool = False) -> str:
    """What is said."""
    said = io.StringIO()
    submit_missing(sweep, Terminal(said), failed=failed)
    return said.getvalue()


def events(of: Sweep | Run) -> list[Event]:
    return [record.event for record in of.ledger.records()]


def begun(sweep: Sweep, index: int, *more: Event) -> Run:
    run = create_cell(sweep, sweep.cells[index], {"name": "x", "model": {"class_path": "a.B"}}, 1)
    for event in more:
        run.ledger.append(event, after=run.ledger.refresh().version)
    return run


def through(job: str, number: int = 1) -> tuple[Event, Event]:
    return Submitting(submission=number, target="slurm"), Submitted(submission=number, job=job)


def pending(job: str, number: int = 1, state: str = "PENDING") -> tuple[str, str, str, str, str]:
    return job, f"launcher:sweep:{number}", state, "Priority", "N/A"


def function(sweep: Sweep, job: str) -> SuperviseCell:
    """What an element runs."""
    with Path(sweep.storage.root, FOLDER, f"{job}_submitted.pkl").open("rb") as file:
        found = pickle.load(file).function
    assert isinstance(found, SuperviseCell)
    return found


def call(sweep: Sweep, **options: Any) -> argparse.Namespace:
    root = str(Path(sweep.storage.root).parent)
    return argparse.Namespace(**{"run": sweep.id, "runs_root": root, "json": True, "checkpoint": False, **options})


class TestTogether:
    def due(self, *specs: dict[str, Any]) -> list[Due]:
        return [Due(Element(index, 1), spec) for index, spec in enumerate(specs)]

    def cells(self, found: list[list[Due]]) -> list[list[int]]:
        return [[one.element.cell for one in array] for array in found]

    def test_runs_that_ask_for_the_same_are_one_array(self) -> None:
        one, other = {"resources": {"nodes": 1}}, {"resources": {"nodes": 2}}
        due = self.due(one, other, {**one, "seed_everything": 1}, {**one, "slurm": {"partition": "x"}})

        assert self.cells(together(due)) == [[0, 2], [1], [3]]

    def test_an_array_is_no_longer_than_it_may_be(self) -> None:
        assert self.cells(together(self.due(*[{}] * 5), longest=2)) == [[0, 1], [2, 3], [4]]

    def test_how_long_it_may_be_the_facts_of_the_cluster_say(self) -> None:
        spec = spec_of()

        assert longest(record_of(spec)) == MAX_ARRAY_SIZE
        assert longest(record_of(spec, facts=FACTS)) == 3
        assert longest(record_of(spec, facts={**FACTS, "max_submit": 2})) == 2
        assert longest(record_of(spec, facts={**FACTS, "max_submit": 20})) == 3


class TestElements:
    def test_are_named_by_array_and_place_and_a_single_run_is_a_plain_job(self) -> None:
        assert elements_of("7", 3) == ["7_0", "7_1", "7_2"]
        assert elements_of("7", 1) == ["7"]

    def test_are_found_in_the_queue_by_their_job_or_by_their_comment(self, sweep: Sweep) -> None:
        for number, (indices, job) in enumerate([((0, 2), "7"), ((1,), "8"), ((3, 4), None)], start=1):
            sweep.ledger.append_while(lambda _: None, Submitting(submission=number, target="slurm", cells=indices))
            if job:
                sweep.ledger.append_while(lambda _: None, Submitted(submission=number, job=job))
        queue = [
            Queued(id=job, name="", comment=comment, state="PENDING", reason="", start=None)
            for job, comment in [("7_1", ""), ("8", ""), ("9_0", "launcher:sweep:3"), ("10_0", "launcher:other:3")]
        ]

        found = in_queue("sweep", arrays_in(sweep.ledger.records()), queue)

        assert {index: one.id for index, one in found.items()} == {2: "7_1", 1: "8", 3: "9_0"}

    def test_are_cancelled_in_one_word(self) -> None:
        assert in_short(["7_3", "8", "7_1", "7_2", "7_9", "9_0"]) == ["7_[1-3,9]", "8", "9_0"]


class TestSubmit:
    def test_all_runs_are_one_array_that_is_written_down_before_and_after(self, sweep: Sweep, slurm: FakeSlurm) -> None:
        slurm.answers("sbatch", f"ls {sweep.storage.root} {sweep.storage.root}/events > seen\n{TAKEN}")

        assert "submitted as job 7: 4 run(s)" in submitted(sweep)

        assert events(sweep) == [
            Submitting(submission=1, target="slurm", cells=(0, 1, 2, 3)),
            Submitted(submission=1, job="7"),
        ]
        assert "00000001.json" in (slurm.folder / "seen").read_text()
        assert "00000002.json" not in (slurm.folder / "seen").read_text()
        assert [function(sweep, f"7_{task}") for task in range(4)] == [
            SuperviseCell(sweep.storage.root, index, 1) for index in range(4)
        ]
        assert all(sweep.cell(index) is None for index in range(4)), "a run begins when its element does"
        assert slurm.called("squeue") == [], "of a new sweep nothing can be in the queue"

    def test_its_script_is_what_it_was(self, slurm: FakeSlurm, request: pytest.FixtureRequest) -> None:
        spec = spec_of(rest="slurm: {array_parallelism: 2, partition: gpu}")
        text = script_text(record_of(spec, python="/shared/python"), spec, "/runs/sweep", array=4)

        golden = GOLDEN / "array-script.txt"
        if request.config.getoption("--update-golden"):
            golden.write_text(text)
        assert text == golden.read_text(), "if this is meant: pytest --update-golden"

    def test_without_a_wish_of_the_user_s_all_may_run_at_once(self, slurm: FakeSlurm) -> None:
        spec = spec_of()

        assert "#SBATCH --array=0-999%1000\n" in script_text(record_of(spec), spec, "/runs/sweep", array=1000)

    def test_a_single_run_is_a_plain_job(self, make: Callable[..., Sweep], slurm: FakeSlurm) -> None:
        sweep = make("{list: [{seed_everything: 1}]}")
        slurm.answers("sbatch", TAKEN)

        submitted(sweep)

        assert function(sweep, "7").index == 0
        assert "--array" not in Path(sweep.storage.root, FOLDER, "7_submission.sh").read_text()

    def test_runs_that_ask_for_something_else_are_another_array(
        self, make: Callable[..., Sweep], slurm: FakeSlurm
    ) -> None:
        sweep = make("{grid: {seed_everything: [1, 2], resources.nodes: [1, 2]}}")
        slurm.answers("sbatch", TAKEN, "echo Submitted batch job 8")

        submitted(sweep)

        assert [event.cells for event in events(sweep) if isinstance(event, Submitting)] == [(0, 2), (1, 3)]
        for job, nodes in (("7", 1), ("8", 2)):
            script = Path(sweep.storage.root, FOLDER, f"{job}_submission.sh").read_text()
            assert f"#SBATCH --nodes={nodes}\n" in script

    def test_what_is_submitted_stays_when_slurm_refuses_the_rest(
        self, make: Callable[..., Sweep], slurm: FakeSlurm
    ) -> None:
        sweep = make(facts=FACTS)
        slurm.answers("sbatch", TAKEN, fails("sbatch: error: QOSMaxSubmitJobPerUserLimit"))

        with pytest.raises(LauncherError) as error:
            submitted(sweep)

        assert "QOSMaxSubmitJobPerUserLimit" in str(error.value)
        assert "3 of 4 runs are submitted; for the others: launcher resume sweep" in str(error.value)
        assert slurm.called("scancel") == []
        slurm.queue_is(*(pending(f"7_{task}") for task in range(3)))
        slurm.answers("sbatch", "echo Submitted batch job 8")
        assert "submitted as job 8: 1 run(s)" in submitted(sweep), "at once: nothing is under way"
        assert function(sweep, "8").index == 3

    def test_cancelled_meanwhile_no_more_is_submitted(
        self, make: Callable[..., Sweep], slurm: FakeSlurm, tmp_path: Path
    ) -> None:
        sweep = make(facts=FACTS)
        beside = Ledger(PosixStorage(tmp_path / "beside"))
        for number in range(2):
            beside.append(CancelRequested(by="me"), after=number)
        slurm.answers("sbatch", f"cp {tmp_path}/beside/events/00000002.json {sweep.storage.root}/events/\n{TAKEN}")

        with pytest.raises(LauncherError, match="cancelled meanwhile"):
            submitted(sweep)

        assert len(slurm.called("sbatch")) == 1
        assert slurm.called("scancel") == ["scancel 7"]


class TestMissing:
    @pytest.fixture
    def known(self, sweep: Sweep, slurm: FakeSlurm) -> Sweep:
        """Submitted as array 7."""
        slurm.answers("sbatch", TAKEN)
        submitted(sweep)
        (slurm.folder / "calls").unlink()
        slurm.answers("sbatch", "echo Submitted batch job 8")
        return sweep

    def test_what_waits_is_not_submitted_again(self, known: Sweep, slurm: FakeSlurm) -> None:
        slurm.queue_is(*(pending(f"7_{task}") for task in range(4)))

        assert "nothing is missing; 4 run(s) wait" in submitted(known)

        assert slurm.called("sbatch") == []
        assert len(events(known)) == 2

    def test_what_has_neither_ended_nor_a_job_is(self, known: Sweep, slurm: FakeSlurm) -> None:
        begun(known, 0, *through("7_0"), RunEnded(state="finished", reason=""))
        (finished := Path(known.storage.root, "0000/attempts/001")).mkdir(parents=True)
        (finished / "finished.json").write_text('{"step": 1, "epoch": 1, "metrics": {}}')
        lost = begun(known, 1, *through("7_1"), Driving(driver=THERE))
        slurm.queue_is(pending("7_2"))

        submitted(known)

        assert events(known)[3:] == [
            Submitting(submission=2, target="slurm", cells=(1, 3)),
            Submitted(submission=2, job="8"),
        ]
        assert [type(event) for event in events(lost)[3:]] == [ResumeRequested, Submitting, Submitted]
        assert events(lost)[-1] == Submitted(submission=2, job="8_0")
        assert [function(known, f"8_{task}").submission for task in range(2)] == [2, 1]

    def test_one_that_waits_for_another_job_of_its_own_is_left_to_that(self, known: Sweep, slurm: FakeSlurm) -> None:
        begun(known, 1, *through("7_1"), *through("9", 2))
        slurm.queue_is(("9", "launcher:sweep.0001:2", "PENDING", "Dependency", "N/A"))

        submitted(known)

        assert function(known, "8_0").index == 0
        assert [event.cells for event in events(known) if isinstance(event, Submitting)][1] == (0, 2, 3)

    def test_failed_ones_are_started_again_only_if_that_is_wanted(self, known: Sweep, slurm: FakeSlurm) -> None:
        for index in range(4):
            begun(known, index, *through(f"7_{index}"), RunEnded(state="failed", reason="x"))
        slurm.queue_is(pending("7_2", state="COMPLETING"))

        assert "nothing is missing" in submitted(known)
        submitted(known, failed=True)

        assert events(known)[-2] == Submitting(submission=2, target="slurm", cells=(0, 1, 2, 3))

    def test_a_damaged_one_is_left_alone_and_named(
        self, known: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path(begun(known, 0).storage.root, "run.json").write_text("{")

        submitted(known)

        assert "0000/run.json: damaged" in capsys.readouterr().err
        assert events(known)[-2] == Submitting(submission=2, target="slurm", cells=(1, 2, 3))

    def test_whoever_is_slower_submits_nothing(self, known: Sweep, slurm: FakeSlurm, tmp_path: Path) -> None:
        beside = Ledger(PosixStorage(tmp_path / "beside"))
        for number in range(3):
            beside.append(ResumeRequested(by="another"), after=number)
        slurm.answers("squeue", f"cp {tmp_path}/beside/events/00000003.json {known.storage.root}/events/")

        with pytest.raises(LauncherError, match="somebody else acts on this sweep"):
            submitted(known)

        assert slurm.called("sbatch") == []

    def test_while_slurm_is_silent_nothing_is_submitted(self, known: Sweep, slurm: FakeSlurm) -> None:
        slurm.answers("squeue", fails(SILENT))

        with pytest.raises(LauncherError, match="Unable to contact"):
            submitted(known)

        assert len(events(known)) == 2


class TestCutOff:
    """Whoever submitted the array died before its id was written down."""

    @pytest.fixture
    def cut_off(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Sweep]:
        def make(seconds_ago: float) -> Sweep:
            with monkeypatch.context() as patch:
                at = time.time() - seconds_ago
                patch.setattr("launcher.ledger.time.time", lambda: at)
                sweep.ledger.append(Submitting(submission=1, target="slurm", cells=(0, 1, 2, 3)), after=0)
            (folder := Path(sweep.storage.root, FOLDER)).mkdir()
            for task in (0, 1):
                (folder / f"7_{task}_submitted.pkl").touch()
            return sweep

        return make

    def test_just_now_it_may_be_under_way(self, cut_off: Callable[[float], Sweep], slurm: FakeSlurm) -> None:
        with pytest.raises(LauncherError, match="try again in a minute"):
            submitted(cut_off(3))

        assert slurm.calls == []

    def test_later_elements_without_anything_to_run_are_replaced(
        self, cut_off: Callable[[float], Sweep], slurm: FakeSlurm
    ) -> None:
        sweep = cut_off(3600)
        slurm.queue_is(*(pending(f"7_{task}") for task in range(4)))
        slurm.answers("sbatch", "echo Submitted batch job 8")

        submitted(sweep)

        assert slurm.called("scancel") == ["scancel 7_[2-3]"]
        assert [function(sweep, f"8_{task}").index for task in range(2)] == [2, 3]

    def test_reconcile_adopts_the_array_and_says_what_is_missing(
        self, cut_off: Callable[[float], Sweep], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep = cut_off(3600)
        run = begun(sweep, 0, Submitting(submission=1, target="slurm"))
        slurm.queue_is(*(pending(f"7_{task}") for task in range(4)))

        assert reconcile(call(sweep)) == 0

        told = json.loads(capsys.readouterr().out)
        assert told == [
            {
                "run": "sweep",
                "done": "2 job(s) had nothing to run and are cancelled; job 7 is its own; 2 run(s) have not begun and "
                f"have no job; see {sweep.storage.root}/slurm, then: launcher resume sweep",
            },
            {"run": "sweep.0000", "done": "job 7_0 is its own"},
        ]
        assert events(sweep)[-1] == Submitted(submission=1, job="7")
        assert events(run)[-1] == Submitted(submission=1, job="7_0")
        assert slurm.called("sbatch") == []

    def test_reconcile_brings_back_a_run_that_was_lost_with_its_element(
        self, cut_off: Callable[[float], Sweep], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep = cut_off(3600)
        sweep.ledger.append(Submitted(submission=1, job="7"), after=1)
        run = begun(sweep, 0, *through("7_0"), Driving(driver=THERE))
        for name in ("00000001.json", "00000002.json"):
            event = json.loads((path := Path(run.storage.root, "events", name)).read_text())
            path.write_text(json.dumps({**event, "time": 0.0}))
        slurm.queue_is(*(pending(f"7_{task}") for task in range(1, 4)))
        slurm.answers("scontrol show", fails("slurm_load_jobs error: Invalid job id specified"))
        slurm.answers("sacct", "echo NODE_FAIL")
        slurm.answers("sbatch", "echo Submitted batch job 9")

        reconcile(call(sweep, run=None))

        told = {one["run"]: one["done"] for one in json.loads(capsys.readouterr().out)}
        assert told["sweep.0000"] == "job 7_0 ended as NODE_FAIL; submitted as job 9"
        assert len(slurm.called("squeue")) == 1


class TestElementOfASweep:
    """What an element of an array does when it starts."""

    @pytest.fixture
    def supervised(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """Run directories and submissions of which the supervisors have started."""
        found: list[tuple[str, int]] = []

        class Recorder:
            def __init__(self, run_dir: str, submission: int, worker: tuple[str, ...]) -> None:
                self.seen = (run_dir, submission)

            def __call__(self) -> None:
                found.append(self.seen)

        monkeypatch.setattr(payload, "Supervise", Recorder)
        return found

    def test_it_makes_its_run(self, make: Callable[..., Sweep], supervised: list[tuple[str, int]]) -> None:
        sweep = make("{grid: {resources.tasks_per_node: [2, 3]}}", "resources: {nodes: 2}")

        SuperviseCell(sweep.storage.root, 1, 1)()

        run = sweep.cell(1)
        assert run
        assert (run.id, run.record.ranks, run.record.target) == ("sweep.0001", 6, "slurm")
        assert events(run) == [Submitting(submission=1, target="slurm")]
        assert supervised == [(run.storage.root, 1)]

    def test_started_again_it_finds_it(self, sweep: Sweep, supervised: list[tuple[str, int]]) -> None:
        run = begun(sweep, 1, *through("7_1"))

        SuperviseCell(sweep.storage.root, 1, 1)()

        assert events(run) == list(through("7_1"))
        assert supervised == [(run.storage.root, 1)]

    def test_of_a_cancelled_sweep_it_leaves(self, sweep: Sweep, supervised: list[tuple[str, int]]) -> None:
        sweep.ledger.append(CancelRequested(by="me"), after=0)

        SuperviseCell(sweep.storage.root, 1, 1)()

        assert sweep.cell(1) is None
        assert supervised == []

    def test_cancelled_while_it_makes_its_run_it_ends_that(
        self, sweep: Sweep, supervised: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cancelled(*arguments: Any) -> Run:
            run = create_cell(*arguments)
            sweep.ledger.append(CancelRequested(by="me"), after=0)
            return run

        monkeypatch.setattr(payload, "create_cell", cancelled)

        SuperviseCell(sweep.storage.root, 1, 1)()

        run = sweep.cell(1)
        assert run
        assert events(run)[-1] == RunEnded(state="cancelled", reason="cancelled by the user")
        assert supervised == []


class TestCancel:
    def test_what_waits_is_taken_out_of_the_queue_and_what_runs_is_told(
        self, sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slurm.answers("sbatch", TAKEN)
        submitted(sweep)
        runs = begun(sweep, 0, *through("7_0"), Driving(driver=THERE))
        waits = begun(sweep, 1, *through("7_1"), Driving(driver=THERE))
        begun(sweep, 3, *through("7_3"), RunEnded(state="failed", reason="x"))
        ending = pending("7_3", state="COMPLETING")
        slurm.queue_is(pending("7_0", state="RUNNING"), pending("7_1"), pending("7_2"), ending)
        ended = RunEnded(state="cancelled", reason="cancelled by the user")

        def its_supervisor_hears(seconds: float) -> None:
            if not runs.ledger.refresh().ended:
                runs.ledger.append(ended, after=runs.ledger.refresh().version)

        monkeypatch.setattr(arrays.time, "sleep", its_supervisor_hears)

        cancel(sweep, checkpoint=True)

        assert slurm.called("scancel") == ["scancel 7_[1-2]", "scancel 7_[0-1]"], "what had failed is left alone"
        assert len(slurm.called("squeue")) == 1
        assert slurm.called("scontrol") == []
        asked = events(runs)[3]
        assert isinstance(asked, CancelRequested)
        assert asked.checkpoint
        assert events(runs)[4:] == [ended]
        assert [type(event) for event in events(waits)[3:]] == [CancelRequested, RunEnded]
        assert [one["state"] for one in lines(sweep)] == ["cancelled", "cancelled", "cancelled", "failed"]

    def test_whoever_hears_nothing_is_ended_without_its_help(
        self, sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrays, "_PATIENCE_S", 0.05)
        slurm.answers("sbatch", TAKEN)
        submitted(sweep)
        runs = begun(sweep, 0, *through("7_0"), Driving(driver=THERE))
        slurm.queue_is(pending("7_0", state="RUNNING"))

        cancel(sweep, checkpoint=False)

        assert isinstance(events(runs)[-1], RunEnded)
        assert slurm.called("scancel") == ["scancel 7_0"]

    def test_a_damaged_run_does_not_hold_up_the_others(
        self, sweep: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.answers("sbatch", TAKEN)
        submitted(sweep)
        waits = begun(sweep, 1, *through("7_1"))
        Path(begun(sweep, 0).storage.root, "run.json").write_text("{")
        slurm.queue_is(*(pending(f"7_{task}") for task in range(4)))

        cancel(sweep, checkpoint=False)

        assert "0000/run.json: damaged" in capsys.readouterr().err
        assert isinstance(events(waits)[-1], RunEnded)
        assert slurm.called("scancel")[0] == "scancel 7_[0-3]"

    def test_while_slurm_is_silent_the_wish_is_written_down(self, sweep: Sweep, slurm: FakeSlurm) -> None:
        runs = begun(sweep, 0, *through("7_0"), Driving(driver=THERE))
        slurm.answers("squeue", fails(SILENT))

        with pytest.raises(LauncherError, match="Unable to contact"):
            cancel(sweep, checkpoint=False)

        assert sweep.ledger.refresh().cancelling
        assert runs.ledger.refresh().cancelling
        assert not runs.ledger.refresh().ended


class TestViews:
    @pytest.fixture
    def known(self, sweep: Sweep, slurm: FakeSlurm) -> Sweep:
        slurm.answers("sbatch", TAKEN)
        submitted(sweep)
        (slurm.folder / "calls").unlink()
        return sweep

    def shown(self, sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> Any:
        show_status(call(sweep))
        return json.loads(capsys.readouterr().out)

    def test_status_says_which_runs_wait_and_why_with_one_question(
        self, known: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.queue_is(*(pending(f"7_{task}") for task in range(1, 4)))

        shown = self.shown(known, capsys)

        assert shown["state"] == "queued"
        assert shown["reason"] == "0 of 4 finished, 4 queued; 3 in the scheduler's queue"
        assert [one["reason"] for one in shown["cells"][:2]] == ["no job waits for it", "job 7_1 is to start"]
        assert shown["cells"][1]["scheduler"]["reason"] == "Priority"
        assert len(slurm.calls) == 1

    def test_list_does_so_for_all_sweeps_with_one_question(
        self, known: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], runs_root: Path
    ) -> None:
        spec = spec_of()
        assert spec.sweep
        create_sweep(runs_root, Record(**{**vars(record_of(spec)), "id": "other"}), cells(spec.sweep))
        slurm.queue_is(pending("7_0"))

        list_runs(call(known))

        found = {one["run"]: one["reason"] for one in json.loads(capsys.readouterr().out)}
        assert found["sweep"].endswith("1 in the scheduler's queue")
        assert found["other"] == "0 of 4 finished, 4 queued"
        assert len(slurm.calls) == 1

    def test_nobody_is_asked_about_a_sweep_that_has_ended(
        self, known: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for index in range(4):
            begun(known, index, *through(f"7_{index}"), RunEnded(state="failed", reason="x"))

        assert self.shown(known, capsys)["state"] == "failed"
        assert slurm.calls == []

    def test_without_an_answer_the_ledgers_are_told(
        self, known: Sweep, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slurm.answers("squeue", fails(SILENT))

        shown = self.shown(known, capsys)

        assert (shown["state"], shown["cells"][0]["reason"]) == ("queued", "")

    def test_a_sweep_that_has_jobs_left_has_not_stopped(self) -> None:
        assert overall({"finished": 2, "queued": 1}, driven=False) == "stopped"
        assert overall({"finished": 2, "queued": 1}, driven=False, jobs=1) == "queued"


class TestBefore:
    """What is held against a sweep before there is one."""

    def test_each_run_must_be_possible(self) -> None:
        spec = spec_of("{grid: {resources.tasks_per_node: [1, 2]}}", "resources: {gpus_per_node: 1}")

        with pytest.raises(UsageError, match="sweep: run 1: resources: tasks_per_node is 2, gpus_per_node 1"):
            planned(spec, record_of(spec), "/runs/sweep")

    def test_each_run_must_fit_the_cluster(self) -> None:
        target = Target.model_validate({"kind": "slurm", "facts": FACTS})
        spec = spec_of("{grid: {resources.nodes: [1, 2, 3, 4], seed_everything: [1, 2]}}", "resources: {time: 1h}")

        with pytest.raises(SpecError) as error:
            check_fits(spec, target)

        assert [problem.message for problem in error.value.problems] == [
            "partition 'main' allows at most 2 in a job, got 3 (run 4 of the sweep)",
            "partition 'main' allows at most 2 in a job, got 4 (run 6 of the sweep)",
        ]

    def test_a_container_shows_the_code_that_all_runs_share(self) -> None:
        spec = spec_of(rest="slurm: {container: {image: x}}")
        tree = Tree(path="/p", folder="p")
        code = Code(digest="d1", trees=(tree,), import_path=("p",), workdir="p", shared=True)
        record = Record(**{**vars(record_of(spec)), "code": code})

        plan = SlurmBackend().plan("/runs/sweep/0001", record, spec, 1)

        mounts = next(option for option in plan.launch if option.startswith("--container-mounts="))
        assert "/runs/sweep/code/d1:/runs/sweep/code/d1" in mounts
        assert "/runs/sweep/0001:/runs/sweep/0001" in mounts
