"""Sweeps: their runs follow from the spec, each is a run of its own, and what is missing is known."""

import io
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.local import LocalBackend, Machine
from launcher.cli.local_sweep import Runner, begin, shares
from launcher.cli.terminal import Terminal, short
from launcher.driver import this_process
from launcher.errors import LauncherError, SpecError, UsageError
from launcher.events import CancelRequested, Driving, Event, ResumeRequested, RunEnded
from launcher.layout import code_home
from launcher.record import Code, Record, Tree
from launcher.run import Run
from launcher.runs import Entry, entries, find, find_run
from launcher.spec import JobSpec, parse_spec
from launcher.spec_sweep import cells
from launcher.sweep import (
    Sweep,
    best,
    cell_overrides,
    counted,
    create_cell,
    create_sweep,
    lines,
    missing,
    overall,
    summary,
)

SPACE = "sweep.random.space"
LEAST = "name: x\nmodel: {class_path: a.B, init_args: {lr: 1}}\n"
CODE = Code(digest="d1", trees=(Tree(path="/p", folder="p"),), import_path=("p",), workdir="p")


def spec_of(sweep: str, rest: str = "") -> JobSpec:
    return parse_spec(f"{LEAST}{rest}\nsweep: {sweep}", source="job.yaml")


def cells_of(sweep: str, rest: str = "") -> tuple[dict[str, Any], ...]:
    spec = spec_of(sweep, rest)
    assert spec.sweep
    return cells(spec.sweep)


def problems(sweep: str, rest: str = "") -> list[str]:
    try:
        spec_of(sweep, rest)
    except SpecError as error:
        return [str(problem).removeprefix("job.yaml:4: ") for problem in error.problems]
    return []


def record_of(sweep: str, rest: str = "", name: str = "sweep", **more: Any) -> Record:
    text = f"{LEAST}{rest}\nsweep: {sweep}"
    spec = parse_spec(text, source="job.yaml").model_dump(mode="json", exclude_unset=True)
    values = {"target": "local", "spec": spec, "spec_file": "job.yaml", "spec_text": text, "workdir": "/", **more}
    return Record(id=name, name=name, created=0.0, **values)


@pytest.fixture
def make(runs_root: Path) -> Callable[..., Sweep]:
    def make(sweep: str = "{grid: {seed_everything: [1, 2, 3]}}", rest: str = "", **more: Any) -> Sweep:
        return create_sweep(runs_root, record_of(sweep, rest, **more), cells_of(sweep, rest))

    return make


def made(sweep: Sweep, index: int, *events: Event) -> Run:
    run = create_cell(sweep, sweep.cells[index], {"name": "x"}, 1)
    for event in events:
        run.ledger.append(event, after=run.ledger.refresh().version)
    return run


def ended(state: str) -> RunEnded:
    return RunEnded(state=state, reason="because")


class TestCells:
    def test_a_grid_has_all_combinations_and_its_last_key_changes_first(self) -> None:
        found = cells_of("{grid: {model.init_args.lr: [1, 2], seed_everything: [7, 8]}}")

        assert [tuple(one.values()) for one in found] == [(1, 7), (1, 8), (2, 7), (2, 8)]
        assert list(found[0]) == ["model.init_args.lr", "seed_everything"]

    def test_a_list_is_as_it_stands(self) -> None:
        assert cells_of("{list: [{seed_everything: 1}, {model.init_args.lr: [1]}]}") == (
            {"seed_everything": 1},
            {"model.init_args.lr": [1]},
        )

    def test_random_values_never_change(self) -> None:
        drawn = "uniform: [-1, 1]", "log_uniform: [1.0e-5, 0.1]", "int_uniform: [1, 6]", "choice: [x, [y]]"
        space = "{" + ", ".join(f"model.init_args.{at}: {{{one}}}" for at, one in enumerate(drawn)) + "}"

        found = cells_of(f"{{random: {{n: 2, seed: 3, space: {space}}}}}")

        assert [list(one.values()) for one in found] == [
            [-0.127563, 3.97832e-05, 3, "x"],
            [-0.0699988, 4.35845e-05, 5, ["y"]],
        ]

    def test_more_runs_and_more_keys_leave_the_random_values_there_are(self) -> None:
        few = cells_of("{random: {n: 3, space: {seed_everything: {int_uniform: [0, 1000]}}}}")
        many = cells_of(
            "{random: {n: 9, space: {model.init_args.lr: {uniform: [0, 1]}, "
            "seed_everything: {int_uniform: [0, 1000]}}}}"
        )

        assert [one["seed_everything"] for one in many[:3]] == [one["seed_everything"] for one in few]
        assert len({one["seed_everything"] for one in many}) > 5

    def test_another_seed_draws_others(self) -> None:
        first, second = (
            cells_of(f"{{random: {{n: 4, seed: {seed}, space: {{seed_everything: {{int_uniform: [0, 1000]}}}}}}}}")
            for seed in (1, 2)
        )

        assert first != second

    @pytest.mark.parametrize(
        ("distribution", "low", "middle", "high"),
        [
            ("uniform: [0, 10]", 0, 5, 10),
            ("log_uniform: [0.01, 100]", 0.01, 1, 100),
            ("int_uniform: [0, 10]", 0, 5, 10),
        ],
    )  # fmt: skip
    def test_half_of_the_random_values_are_below_the_middle(
        self, distribution: str, low: float, middle: float, high: float
    ) -> None:
        found = cells_of(f"{{random: {{n: 1000, space: {{model.init_args.lr: {{{distribution}}}}}}}}}")
        drawn = [one["model.init_args.lr"] for one in found]

        assert 430 < sum(value < middle for value in drawn) < 570
        assert low <= min(drawn) < max(drawn) <= high

    def test_whole_numbers_and_choices_come_equally_often(self) -> None:
        space = "{seed_everything: {int_uniform: [1, 4]}, model.init_args.lr: {choice: [1, 2, 3, 4]}}"
        found = cells_of(f"{{random: {{n: 1000, space: {space}}}}}")

        for key in ("seed_everything", "model.init_args.lr"):
            counts = Counter(one[key] for one in found)
            assert set(counts) == {1, 2, 3, 4}
            assert min(counts.values()) > 200


class TestProblems:
    @pytest.mark.parametrize(
        ("sweep", "said"),
        [
            ("{}", "sweep: give one of grid, list and random"),
            ("{grid: {data: [null]}, list: [{data: null}]}", "sweep: give one of grid, list and random"),
            ("{list: []}", "sweep.list: expected at least one value, got an empty list"),
            ("{list: [{}]}", "sweep.list.0: expected at least one value, got an empty mapping"),
            ("{list: [{seed_everything: x}]}", "sweep.list.0.seed_everything: expected a whole number"),
            ("{list: [{code.path: []}]}", "sweep.list.0.code.path: the runs of a sweep share one copy of the code"),
            ("{list: [{a: 1}]}", "sweep.list.0.a: unknown key 'a'"),
            ("{grid: {seed_everything: [1]}, max_parallel: 0}", "sweep.max_parallel: expected 1 or more, got 0"),
            ("{grid: {seed_everything: [1]}, mode: max}", "sweep: mode needs a metric: add metric, such as"),
            ("{matrix: {seed_everything: [1]}}", "sweep.matrix: unknown key 'matrix'"),
            ("{random: {space: {seed_everything: {choice: [1]}}}}", "sweep.random.n: required, but missing"),
            ("{random: {n: 1, space: {}}}", "sweep.random.space: expected at least one value, got an empty mapping"),
            ("{random: {n: 20000, space: {seed_everything: {choice: [1]}}}}", "sweep.random.n: expected 10000 or less"),
            *(
                (f"{{random: {{n: 1, space: {{seed_everything: {{{given}}}}}}}}}", f"{SPACE}.seed_everything{said}")
                for given, said in [
                    ("", ": give one of uniform, log_uniform, int_uniform and choice"),
                    ("choice: [1], uniform: [1, 2]", ": give one of uniform, log_uniform, int_uniform and choice"),
                    ("choice: []", ".choice: expected at least one value, got an empty list"),
                    ("choice: [1, x]", ".choice.1: expected a whole number, got the text 'x'"),
                    ("int_uniform: [1, 2.5]", ".int_uniform: expected two whole numbers, the smaller first"),
                    ("int_uniform: [2, 1]", ".int_uniform: expected two whole numbers, the smaller first"),
                    ("int_uniform: [-2, 1]", ".int_uniform.0: expected 0 or more, got -2"),
                    ("uniform: [0.5, 1.5]", ".uniform.0: expected a whole number, got the number 0.5"),
                    ("uniform: [1]", ".uniform: expected two numbers, the smaller first"),
                    ("log_uniform: [0, 1]", ".log_uniform: expected two numbers above 0, the smaller first"),
                ]
            ),
        ],
    )  # fmt: skip
    def test_are_named_with_their_key(self, sweep: str, said: str) -> None:
        assert problems(sweep)[0].startswith(said)

    def test_a_grid_may_not_explode(self) -> None:
        values = list(range(101))

        (problem,) = problems(f"{{grid: {{seed_everything: {values}, model.init_args.lr: {values}}}}}")

        assert problem == "sweep: the combinations of the grid make 10,201 runs; at most 10,000 are possible"

    def test_of_several_keys_and_runs_are_told_at_once(self) -> None:
        found = problems("{list: [{seed_everything: -1}, {trainer.max_epoch: 3}, {trainer.max_epoch: 4}]}")

        assert [problem.partition(": ")[0] for problem in found] == [
            "sweep.list.0.seed_everything",
            "sweep.list.1.trainer.max_epoch",
        ]

    def test_what_only_the_values_together_make_wrong_is_found(self) -> None:
        keys = "{resources.nodes: [1, 50000], resources.tasks_per_node: [1, 2, 3]}"

        (problem,) = problems(f"{{grid: {keys}}}")

        assert problem.startswith("sweep: run 5: resources: nodes and the tasks of each make 150,000 ranks")

    def test_a_key_below_what_another_one_sets_to_a_number_leads_nowhere(self) -> None:
        (problem,) = problems("{list: [{model.init_args.net: 5, model.init_args.net.depth: 1}]}")

        assert problem == "sweep: run 0: model.init_args.net is no mapping; it cannot have a key 'depth'"


class TestRecord:
    def test_a_sweep_is_read_back_as_it_was_created(self, make: Callable[..., Sweep]) -> None:
        created = make("{list: [{model.init_args.lr: 1.0e-5}, {seed_everything: 2}], metric: acc, mode: max}")

        found = Sweep(created.storage)

        assert found.record == created.record
        assert [dict(one.values) for one in found.cells] == [{"model.init_args.lr": 1e-05}, {"seed_everything": 2}]
        assert (found.metric, found.mode, found.max_parallel) == ("acc", "max", 1)

    def test_its_metric_is_that_of_the_checkpoints_unless_it_says_otherwise(self, make: Callable[..., Sweep]) -> None:
        sweep = make(rest="checkpoint: {monitor: val_acc, mode: max}")

        assert (sweep.metric, sweep.mode) == ("val_acc", "max")

    def test_its_name_can_be_taken_by_nobody(self, make: Callable[..., Sweep], runs_root: Path) -> None:
        make()

        with pytest.raises(UsageError, match="'sweep' exists already"):
            make()

    def test_a_damaged_one_is_named(self, make: Callable[..., Sweep]) -> None:
        sweep = make()
        Path(sweep.storage.root, "sweep.json").write_text("{}")

        with pytest.raises(LauncherError, match=r"sweep/sweep.json: damaged, or not written by a launcher \(KeyError"):
            Sweep(sweep.storage)

    def test_a_run_of_it_is_one_like_any_other(self, make: Callable[..., Sweep], runs_root: Path) -> None:
        sweep = make(code=CODE, overrides=("trainer.max_epochs=3",))
        backend = LocalBackend(Machine(cpus=1, gpus=()))

        run, spec = begin(sweep, sweep.cells[1], backend)

        assert run.id == "sweep.0001"
        assert Path(run.storage.root) == runs_root / "sweep" / "0001"
        assert (spec.seed_everything, spec.sweep, run.record.ranks) == (2, None, 1)
        assert JobSpec.model_validate(Run(run.storage).now.spec) == spec
        assert run.record.overrides == ("trainer.max_epochs=3", "seed_everything=2", "sweep=null")

    def test_its_overrides_make_its_spec_of_the_text(self) -> None:
        values = {"model.init_args.lr": 1e-05, "name": "é\U0001f600 \"'#", "trainer.max_epochs": 3, "data": None}
        values["model.init_args.net"] = {"layers": [1, 2], "on": True, "off": "no"}

        spec = parse_spec(LEAST, source="job.yaml", overrides=cell_overrides((), {**values, "name": "y"}))

        assert spec.model.init_args == {"lr": 1e-05, "net": {"layers": [1, 2], "on": True, "off": "no"}}
        assert (spec.name, spec.trainer.max_epochs, spec.sweep) == ("y", 3, None)
        text = parse_spec(LEAST, source="job.yaml", overrides=cell_overrides((), {"model.init_args.t": values["name"]}))
        assert text.model.init_args["t"] == values["name"]

    def test_all_runs_import_from_the_one_copy_of_the_code(self, make: Callable[..., Sweep]) -> None:
        sweep = make(code=CODE)
        run, _ = begin(sweep, sweep.cells[0], LocalBackend(Machine(cpus=1, gpus=())))

        assert run.record.code
        assert code_home(run.storage.root, run.record.code) == code_home(sweep.storage.root, CODE)
        assert Path(sweep.storage.root, "code/d1") == Path(code_home(sweep.storage.root, CODE))

    def test_who_is_slower_opens_what_the_faster_has_made(self, make: Callable[..., Sweep]) -> None:
        sweep = make()

        first, second = (create_cell(sweep, sweep.cells[0], {"name": name}, 1) for name in ("first", "second"))

        assert first.record == second.record


class TestFind:
    @pytest.fixture(autouse=True)
    def two_runs_of_a_sweep(self, make: Callable[..., Sweep]) -> None:
        sweep = make(name="mnist-1a")
        made(sweep, 0)
        made(sweep, 2)

    @pytest.mark.parametrize("wanted", ["mnist-1a.0002", "mnist-1a.2", "mnist.2", "mnist-1a.02"])
    def test_a_run_by_its_number(self, runs_root: Path, wanted: str) -> None:
        found = find_run(runs_root, wanted)

        assert (found.id, Path(found.storage.root)) == ("mnist-1a.0002", runs_root / "mnist-1a/0002")

    @pytest.mark.parametrize("wanted", ["mnist-1a", "mnist", None])
    def test_the_sweep_itself(self, runs_root: Path, wanted: str | None) -> None:
        assert find(runs_root, wanted) == Entry("mnist-1a", str(runs_root / "mnist-1a"), is_sweep=True)

        with pytest.raises(UsageError, match=r"mnist-1a is a sweep: name one of its runs, such as mnist-1a\.0"):
            find_run(runs_root, wanted)

    @pytest.mark.parametrize("wanted", ["mnist.1", "mnist.7"])
    def test_a_run_that_has_not_begun_is_told(self, runs_root: Path, wanted: str) -> None:
        with pytest.raises(UsageError, match=r"mnist-1a\.000\d has not begun, or there is no such run; .*status mnist"):
            find_run(runs_root, wanted)

    @pytest.mark.parametrize("wanted", ["mnist.x", "other.1", ".1", "mnist-1a.0002.1", "mnist.-1"])
    def test_nothing_else_is_a_run_of_it(self, runs_root: Path, wanted: str) -> None:
        with pytest.raises(UsageError, match="no run"):
            find_run(runs_root, wanted)

    def test_a_run_whose_own_name_has_a_dot_is_found_by_it(self, make_run: Callable[..., Run], runs_root: Path) -> None:
        make_run("mnist-1a.0002")
        make_run("v1.0-x")

        assert Path(find_run(runs_root, "mnist-1a.0002").storage.root) == runs_root / "mnist-1a.0002"
        assert find_run(runs_root, "v1.0").id == "v1.0-x"

    def test_a_name_that_fits_a_sweep_and_a_run_is_refused(self, make_run: Callable[..., Run], runs_root: Path) -> None:
        make_run("mnist-1b")

        with pytest.raises(UsageError, match="'mnist' fits 2 runs: mnist-1a, mnist-1b"):
            find(runs_root, "mnist")

    def test_runs_of_sweeps_are_not_listed(self, runs_root: Path) -> None:
        assert [one.id for one in entries(runs_root)] == ["mnist-1a"]


class TestState:
    def test_each_run_has_a_line(self, make: Callable[..., Sweep]) -> None:
        sweep = make("{grid: {seed_everything: [1, 2, 3, 4]}, metric: loss}")
        made(sweep, 1, ended("failed"))
        made(sweep, 2, ended("stopped"))
        Path(sweep.storage.root, "0003").mkdir()  # a launcher died while it made it

        found = lines(sweep)

        assert [one["state"] for one in found] == ["queued", "failed", "stopped", "queued"]
        assert [one["run"] for one in found] == ["sweep.0000", "sweep.0001", "sweep.0002", "sweep.0003"]
        assert found[1]["values"] == {"seed_everything": 2}

    def test_what_has_not_come_to_an_end_is_missing_and_what_failed_only_if_it_is_wanted(
        self, make: Callable[..., Sweep]
    ) -> None:
        sweep = make("{grid: {seed_everything: [0, 1, 2, 3, 4]}}")
        made(sweep, 0, Driving(driver=this_process()))  # about to be started
        made(sweep, 1, ended("failed"))
        made(sweep, 2, ended("cancelled"))
        made(sweep, 3)

        assert [one.index for one in missing(sweep)] == [2, 3, 4]
        assert [one.index for one in missing(sweep, failed=True)] == [1, 2, 3, 4]

    def test_a_damaged_run_hides_none_of_the_others(self, make: Callable[..., Sweep]) -> None:
        sweep = make()
        made(sweep, 0, ended("failed"))
        run = made(sweep, 1)
        Path(run.storage.root, "run.json").write_text("{")

        assert [one["state"] for one in lines(sweep)] == ["failed", "unknown", "queued"]
        assert "damaged" in lines(sweep)[1]["reason"]

    def test_what_has_not_begun_when_it_is_cancelled_is_cancelled_until_it_is_resumed(
        self, make: Callable[..., Sweep]
    ) -> None:
        sweep = make()
        sweep.ledger.append(CancelRequested(by="me"), after=0)
        assert summary(sweep)["counts"] == {"cancelled": 3}

        sweep.ledger.append(ResumeRequested(by="me"), after=1)

        assert summary(sweep)["counts"] == {"queued": 3}

    @pytest.mark.parametrize(
        ("counts", "state"),
        [
            ({"queued": 2}, "queued"),
            ({"queued": 2, "finished": 1}, "stopped"),
            ({"stopped": 1, "failed": 1}, "stopped"),
            ({"running": 1, "failed": 1}, "running"),
            ({"finished": 2, "failed": 1}, "failed"),
            ({"cancelled": 2, "failed": 1}, "cancelled"),
            ({"unknown": 1, "finished": 1}, "unknown"),
            ({"finished": 3}, "finished"),
        ],
    )
    def test_the_state_of_all_follows_from_those_of_each(self, counts: dict[str, int], state: str) -> None:
        assert overall(counts, driven=False) == state
        assert overall(counts, driven=True) == "running"

    def test_counts_in_words(self) -> None:
        assert counted({"finished": 3, "queued": 2, "failed": 1}) == "3 of 6 finished, 1 failed, 2 queued"

    @pytest.mark.parametrize(("mode", "index"), [("min", 1), ("max", 2)])
    def test_the_best_is_the_first_of_those_that_finished(self, mode: str, index: int) -> None:
        values = [None, 1.0, 3.0, 3.0, 1.0, 0.0, 9.0, math.nan, math.inf]
        states = [*(["finished"] * 5), "failed", "running", "finished", "finished"]
        found = [
            {"index": at, "run": str(at), "values": {}, "state": state, "metrics": {"acc": value}}
            for at, (state, value) in enumerate(zip(states, values, strict=True))
        ]

        chosen = best(found, "acc", mode)

        assert chosen
        assert chosen["index"] == index
        assert best(found, "other", mode) is None

    def test_keys_are_shortened_where_that_is_clear(self) -> None:
        assert short(["model.init_args.lr", "a.x", "b.x"]) == {"model.init_args.lr": "lr", "a.x": "a.x", "b.x": "b.x"}


STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub_cell.py")))


class Driven:
    """A sweep that is driven by a thread of this process; its runs go on until they are let go."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self._folder = sweep, folder
        self.said = io.StringIO()
        self.runner = Runner(sweep, Terminal(self.said), lambda machine: LocalBackend(machine, worker=STUB))
        self._thread = threading.Thread(target=self.runner.drive, daemon=True)
        self._thread.start()

    def let_go(self, index: int, how: str = "finish") -> None:
        path = self._folder / str(index)
        path.with_suffix(".new").write_text(how)
        path.with_suffix(".new").rename(path)

    @property
    def states(self) -> list[str]:
        return [one["state"] for one in lines(self.sweep)]

    def wait_for(self, *states: str) -> None:
        deadline = time.monotonic() + 120
        while self.states != [*states]:
            assert time.monotonic() < deadline, f"{self.states}\n{self.said.getvalue()}"
            time.sleep(0.02)

    def ends(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def driven(make: Callable[..., Sweep], tmp_path: Path) -> Callable[..., Driven]:
    def begun(runs: int = 3, parallel: int = 1, sweep: Sweep | None = None) -> Driven:
        values = [{"until": f"{tmp_path}/{index}", "loss": -index} for index in range(runs)]
        varied = [{f"model.init_args.{name}": value for name, value in one.items()} for one in values]
        said = json.dumps({"list": varied, "metric": "loss", "max_parallel": parallel})
        return Driven(sweep or make(said, workdir=str(tmp_path)), tmp_path)

    return begun


class TestCourse:
    def test_one_after_the_other_and_a_failure_stops_none(self, driven: Callable[..., Driven]) -> None:
        course = driven(3)
        course.wait_for("running", "queued", "queued")
        assert not Path(course.sweep.storage.root, "0001").exists()

        course.let_go(0)
        course.wait_for("finished", "running", "queued")
        course.let_go(1, "fail")
        course.wait_for("finished", "failed", "running")
        course.let_go(2)
        course.ends()

        shown = summary(course.sweep)
        assert (shown["state"], shown["reason"]) == ("failed", "2 of 3 finished, 1 failed")
        assert (shown["best"]["run"], shown["best"]["value"]) == ("sweep.0002", -2)
        said = course.said.getvalue().splitlines()
        assert [line.split()[:3] for line in said] == [
            ["[1/3]", "sweep.0000", "finished"],
            ["[2/3]", "sweep.0001", "failed:"],
            ["[3/3]", "sweep.0002", "finished"],
        ]

    def test_some_at_a_time_and_the_next_when_one_ends(self, driven: Callable[..., Driven]) -> None:
        course = driven(4, parallel=2)
        course.wait_for("running", "running", "queued", "queued")

        course.let_go(1)
        course.wait_for("running", "finished", "running", "queued")
        for index in (0, 2, 3):
            course.let_go(index)
        course.ends()

        assert course.states == ["finished"] * 4

    def test_told_to_stop_it_saves_begins_no_more_and_goes_on_with_what_is_missing(
        self, driven: Callable[..., Driven]
    ) -> None:
        course = driven(4, parallel=2)
        course.let_go(0)
        course.wait_for("finished", "running", "running", "queued")

        course.runner.stop()
        course.ends()

        assert course.states == ["finished", "stopped", "stopped", "queued"]
        for index in (1, 2, 3):
            course.let_go(index)
        again = driven(sweep=course.sweep)
        again.ends()
        assert again.states == ["finished"] * 4
        attempts = [one["attempts"] for one in lines(course.sweep)]
        assert attempts == [1, 2, 2, 1]
        cause = course.sweep.cell(1)
        assert cause
        assert [one.cause for one in cause.ledger.refresh().attempts] == ["stopped", "finished"]

    def test_cancelled_it_begins_no_more(self, driven: Callable[..., Driven]) -> None:
        course = driven(3)
        course.wait_for("running", "queued", "queued")

        course.sweep.ledger.append_while(lambda state: None, CancelRequested(by="me"))
        course.let_go(0)
        course.ends()

        assert course.states == ["finished", "cancelled", "cancelled"]

    def test_a_run_that_cannot_be_driven_is_told_and_the_others_go_on(self, driven: Callable[..., Driven]) -> None:
        first = driven(2)
        first.wait_for("running", "queued")
        first.runner.stop()
        first.ends()
        Path(first.sweep.storage.root, "0000/run.json").write_text("{")
        first.let_go(1)

        again = driven(sweep=first.sweep)
        again.ends()

        assert again.states == ["unknown", "finished"]
        assert again.runner.errors == 1
        assert "sweep.0000" in again.said.getvalue()
        assert "damaged" in again.said.getvalue()


class TestShares:
    def test_a_machine_is_divided_evenly(self) -> None:
        machine = Machine(cpus=8, gpus=("0", "1", "2", "3", "4"))

        assert shares(machine, 2) == [Machine(cpus=4, gpus=("0", "1")), Machine(cpus=4, gpus=("2", "3"))]
        assert shares(machine, 1) == [machine]

    def test_each_has_at_least_a_core(self) -> None:
        assert shares(Machine(cpus=2, gpus=()), 3) == [Machine(cpus=1, gpus=())] * 3
