"""What the local backend would execute: pure, and held by golden files."""

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.backend import Plan
from launcher.backends.local import LocalBackend, Machine, this_host
from launcher.backends.ranks import WORKER
from launcher.errors import UsageError
from launcher.record import Code, Record, Tree
from launcher.spec import JobSpec

GOLDEN = Path(__file__).with_name("golden")
CPUS = Machine(cpus=8, gpus=())
FOUR = Machine(cpus=32, gpus=("0", "1", "2", "3"))
EIGHT = Machine(cpus=64, gpus=tuple(f"GPU-{number}" for number in range(8)))


def plan(
    machine: Machine,
    *,
    attempt: int = 1,
    env: dict[str, str] | None = None,
    code: Code | None = None,
    workdir: str = "/project",
    **resources: Any,
) -> Plan:
    body = {"name": "test", "model": {"class_path": "a.B"}, "resources": resources, "env": {"vars": env or {}}}
    record = Record(
        id="run",
        name="test",
        created=0.0,
        target="local",
        spec=body,
        spec_file="job.yaml",
        spec_text="",
        import_path=("/jobs", "/project"),
        workdir=workdir,
        code=code,
    )
    return LocalBackend(machine).plan("/runs/run", record, JobSpec.model_validate(body), attempt)


def variable(planned: Plan, name: str) -> list[str | None]:
    return [{**planned.env, **rank.env}.get(name) for rank in planned.ranks]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cpu-2-ranks", lambda: plan(CPUS, tasks_per_node=2, env={"MODE": "a b; 'c' $D"})),
        ("2-nodes-of-4-gpus", lambda: plan(EIGHT, nodes=2, gpus_per_node=4, cpus_per_task=6, attempt=12)),
    ],
)
def test_a_plan_is_what_it_was(name: str, make: Callable[[], Plan], request: pytest.FixtureRequest) -> None:
    planned = make()

    shown = json.dumps(replace(planned, hosts=("HOST",), argv=("PYTHON", *planned.argv[1:])).as_json(), indent=1) + "\n"
    golden = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        golden.write_text(shown)
    assert shown == golden.read_text(), "if this is meant: pytest --update-golden"
    assert planned.hosts == (socket.gethostname(),)
    assert planned.argv == WORKER
    assert planned.argv[0] == sys.executable


def test_planning_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)

    first, second = plan(EIGHT, nodes=2), plan(EIGHT, nodes=2)

    assert first == second
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    assert not Path("/runs/run").exists()


def test_only_the_attempt_differs_between_attempts() -> None:
    one, two = (json.dumps(plan(CPUS, attempt=attempt).as_json()) for attempt in (1, 2))

    assert one != two
    assert two == (
        one.replace('"attempt": 1', '"attempt": 2')
        .replace("attempts/001/", "attempts/002/")
        .replace('"LAUNCHER_ATTEMPT": "1"', '"LAUNCHER_ATTEMPT": "2"')
        .replace("/runs/run#1", "/runs/run#2")
    )


@pytest.mark.parametrize(
    ("machine", "resources", "ranks", "accelerator"),
    [
        (CPUS, {}, 1, "cpu"),
        (CPUS, {"tasks_per_node": 3}, 3, "cpu"),
        (CPUS, {"nodes": 2, "tasks_per_node": 3}, 6, "cpu"),
        (CPUS, {"gpus_per_node": 0}, 1, "cpu"),
        (FOUR, {}, 4, "gpu"),
        (FOUR, {"tasks_per_node": 2}, 2, "gpu"),
        (FOUR, {"tasks_per_node": 5}, 5, "cpu"),
        (FOUR, {"gpus_per_node": 3}, 3, "gpu"),
        (FOUR, {"gpus_per_node": 4, "tasks_per_node": 2}, 2, "gpu"),
        (FOUR, {"gpus_per_node": 0}, 1, "cpu"),
        (FOUR, {"gpus_per_node": 0, "tasks_per_node": 2}, 2, "cpu"),
        (FOUR, {"nodes": 2}, 4, "gpu"),
        (FOUR, {"nodes": 3}, 3, "gpu"),
        (FOUR, {"nodes": 5}, 5, "cpu"),
        (FOUR, {"nodes": 4, "tasks_per_node": 1}, 4, "gpu"),
    ],
)
def test_resources_default_to_what_there_is(
    machine: Machine, resources: dict[str, int], ranks: int, accelerator: str
) -> None:
    planned = plan(machine, **resources)

    assert (len(planned.ranks), planned.accelerator) == (ranks, accelerator)
    assert set(variable(planned, "LAUNCHER_ACCELERATOR")) == {accelerator}


@pytest.mark.parametrize(
    ("machine", "resources"),
    [
        (FOUR, {"gpus_per_node": 5}),
        (FOUR, {"nodes": 2, "gpus_per_node": 3}),
        (CPUS, {"gpus_per_node": 1}),
        (FOUR, {"nodes": 5, "gpus_per_node": 1}),
    ],
)
def test_more_gpus_than_there_are_is_refused(machine: Machine, resources: dict[str, int]) -> None:
    wanted, there = resources["gpus_per_node"], len(machine.gpus)

    with pytest.raises(UsageError, match=rf"gpus_per_node: {wanted} on . node\(s\), but this machine has {there} GPU"):
        plan(machine, **resources)


def test_fewer_gpus_than_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="tasks_per_node is 4, gpus_per_node 2: every rank needs a GPU of its own"):
        plan(FOUR, gpus_per_node=2, tasks_per_node=4)


class TestVisibleDevices:
    def test_each_simulated_node_has_gpus_of_its_own(self) -> None:
        assert variable(plan(FOUR, nodes=2, gpus_per_node=2), "CUDA_VISIBLE_DEVICES") == ["0,1", "0,1", "2,3", "2,3"]

    def test_nodes_have_only_as_many_as_they_have_ranks(self) -> None:
        planned = plan(EIGHT, nodes=2, gpus_per_node=4, tasks_per_node=1)

        assert variable(planned, "CUDA_VISIBLE_DEVICES") == ["GPU-0", "GPU-1"]

    def test_names_are_kept_as_they_were_given(self) -> None:
        machine = Machine(cpus=2, gpus=("7", "3"))

        assert variable(plan(machine), "CUDA_VISIBLE_DEVICES") == ["7,3", "7,3"]

    def test_on_the_cpu_the_gpus_are_hidden(self) -> None:
        assert variable(plan(FOUR, gpus_per_node=0), "CUDA_VISIBLE_DEVICES") == [""]

    def test_without_gpus_it_is_left_alone(self) -> None:
        assert variable(plan(CPUS), "CUDA_VISIBLE_DEVICES") == [None]


class TestEnvironment:
    def test_threads_are_divided_among_ranks(self) -> None:
        assert set(variable(plan(CPUS, nodes=2, tasks_per_node=2), "OMP_NUM_THREADS")) == {"2"}
        assert set(variable(plan(CPUS, tasks_per_node=3), "OMP_NUM_THREADS")) == {"2"}
        assert set(variable(plan(CPUS, tasks_per_node=16), "OMP_NUM_THREADS")) == {"1"}
        assert variable(plan(CPUS, cpus_per_task=5), "OMP_NUM_THREADS") == ["5"]

    def test_variables_of_the_spec_reach_each_rank_and_none_of_ours_can_be_replaced(self) -> None:
        planned = plan(CPUS, tasks_per_node=2, env={"MODE": "x", "RANK": "7", "LAUNCHER_RUN_DIR": "/elsewhere"})

        assert variable(planned, "MODE") == ["x", "x"]
        assert variable(planned, "RANK") == ["0", "1"]
        assert variable(planned, "LAUNCHER_RUN_DIR") == ["/runs/run"] * 2

    def test_the_import_path_is_the_run_s_and_nothing_comes_before_it(self) -> None:
        planned = plan(CPUS, env={"PYTHONSAFEPATH": ""})

        assert variable(planned, "PYTHONPATH") == ["/jobs:/project"]
        assert variable(planned, "PYTHONSAFEPATH") == ["1"]


class TestSnapshot:
    """What an attempt gets of the code that its run has copied."""

    def code(self, workdir: str | None = "project/here") -> Code:
        tree = Tree(path="/project", folder="project")
        return Code(digest="12ab", trees=(tree,), import_path=("project/src", "/outside"), workdir=workdir)

    def test_it_is_imported_from_in_the_place_of_the_tree(self) -> None:
        planned = plan(CPUS, tasks_per_node=2, code=self.code())

        assert variable(planned, "PYTHONPATH") == ["/runs/run/code/12ab/project/src:/outside"] * 2

    def test_the_working_directory_is_the_user_s_own(self, tmp_path: Path) -> None:
        assert plan(CPUS, code=self.code(), workdir=str(tmp_path)).workdir == str(tmp_path)

    def test_that_is_gone_it_is_the_same_folder_of_the_snapshot(self) -> None:
        assert plan(CPUS, code=self.code(), workdir="/gone").workdir == "/runs/run/code/12ab/project/here"

    def test_that_is_gone_and_in_no_snapshot_it_is_the_run_s(self) -> None:
        assert plan(CPUS, code=self.code(None), workdir="/gone").workdir == "/runs/run"
        assert plan(CPUS, workdir="/gone").workdir == "/gone", (
            "without a snapshot that is an error, and it shall be told"
        )


class TestThisHost:
    @pytest.mark.parametrize(
        ("visible", "gpus"), [("", ()), ("0", ("0",)), ("2,0", ("2", "0")), ("GPU-a,GPU-b", ("GPU-a", "GPU-b"))]
    )
    def test_what_is_visible_is_what_there_is(
        self, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        assert this_host() == Machine(cpus=len(os.sched_getaffinity(0)), gpus=gpus)
