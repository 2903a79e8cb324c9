"""`resources.nodes: 2-4`: which numbers of nodes a run can use, and what each attempt makes of what it is granted."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from launcher.backend import Plan
from launcher.backends.local import LocalBackend, Machine
from launcher.backends.slurm.allocation import Start
from launcher.backends.slurm.backend import SlurmBackend
from launcher.cli.main import main
from launcher.elastic import allowed_nodes, nodes_to_use
from launcher.errors import FINISHED, UsageError
from launcher.exactness import consequences
from launcher.record import Record
from launcher.spec import JobSpec

SPEC = "name: x\nmodel: {class_path: a.B}\nresources: {nodes: 2-4, tasks_per_node: 2}\n"


def spec(nodes: int | str, tasks: int = 2, *, accumulate: int = 1, exact: str = "resume", **more: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "x",
            "model": {"class_path": "a.B"},
            "trainer": {"accumulate_grad_batches": accumulate},
            "exact": exact,
            "resources": {"nodes": nodes, "tasks_per_node": tasks, "cpus_per_task": 1, **more},
        }
    )


@pytest.mark.parametrize(("nodes", "ends"), [(3, (3, 3)), ("2-4", (2, 4)), ("5-5", (5, 5)), ("9-10", (9, 10))])
def test_a_number_is_a_range_of_its_own(nodes: int | str, ends: tuple[int, int]) -> None:
    resources = spec(nodes).resources

    assert (resources.least_nodes, resources.most_nodes) == ends


@pytest.mark.parametrize(
    ("body", "created_with", "usable"),
    [
        (spec("2-4"), None, (2, 4)),
        (spec("1-6"), None, (1, 2, 3, 6)),
        (spec("2-4", accumulate=3), None, (2, 3, 4)),
        (spec("1-4", 3), 8, ()),  # three ranks on each node
        (spec("2-8"), 8, (2, 4)),  # created with fewer
        (spec("1-8", exact="world-size"), None, (1, 2, 4, 8)),
        (spec("1-6", accumulate=4, exact="world-size"), 4, (1, 2, 4)),
        (spec(4), 16, (4,)),
    ],
)
def test_ranks_of_whole_nodes_have_to_share_the_global_batch(
    body: JobSpec, created_with: int | None, usable: tuple[int, ...]
) -> None:
    assert allowed_nodes(body, created_with, body.resources.tasks_per_node or 1) == usable


@pytest.mark.parametrize(("granted", "used"), [(None, 4), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_an_attempt_takes_the_most_that_it_can_use(granted: int | None, used: int) -> None:
    assert nodes_to_use(spec("2-4"), 8, 2, "cpu", granted) == used


def test_the_smallest_number_has_to_be_possible() -> None:
    with pytest.raises(UsageError, match=r": 6 ranks cannot share .* 8 micro-.*; of nodes with 2 each: 1, 2, 4$"):
        nodes_to_use(spec("3-4"), None, 2, "cpu")


def test_an_allocation_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^resources.nodes: 2-4, but the allocation has 1$"):
        nodes_to_use(spec("2-4"), None, 2, "cpu", granted=1)


def test_the_exact_mode_has_its_powers_of_two_from_the_largest_number() -> None:
    assert nodes_to_use(spec("2-4", exact="world-size"), None, 2, "cpu", granted=3) == 2
    with pytest.raises(UsageError, match="6 ranks, with which the run is created, are no power of two"):
        nodes_to_use(spec("2-3", exact="world-size"), None, 2, "cpu")


def planned(nodes: int | str, *hosts: str) -> Plan:
    record = Record(
        id="x", name="x", created=0.0, target="slurm", spec={}, spec_file="", spec_text="", workdir="/", ranks=8
    )
    start = Start(job="1", restarts=0, hosts=hosts) if hosts else None
    return SlurmBackend(start).plan("/runs/x", record, spec(nodes), 3)


def options(plan: Plan) -> list[str]:
    return [option for option in plan.launch if option.startswith(("--node", "--ntasks="))]


def test_a_grant_that_divides_is_used_as_a_whole() -> None:
    plan = planned("2-4", "n1", "n2")

    assert (plan.hosts, plan.idle) == (("n1", "n2"), ())
    assert options(plan) == ["--nodes=2", "--ntasks=4"]
    assert plan.env["WORLD_SIZE"] == "4"


def test_of_a_grant_in_between_the_last_nodes_are_idle() -> None:
    plan = planned("2-4", "n1", "n2", "n3")

    assert (plan.hosts, plan.idle) == (("n1", "n2"), ("n3",))
    assert options(plan) == ["--nodes=2", "--nodelist=n1,n2", "--ntasks=4"]
    assert (len(plan.ranks), plan.env["WORLD_SIZE"]) == (4, "4")


def test_before_anything_is_granted_the_largest_number_is_planned() -> None:
    plan = planned("2-4")

    assert (plan.hosts, plan.idle, len(plan.ranks)) == ((), (), 8)


def test_on_one_machine_the_largest_number_is_simulated() -> None:
    body = spec("1-3")
    record = Record(id="x", name="x", created=0.0, target="local", spec={}, spec_file="", spec_text="", workdir="/")

    plan = LocalBackend(Machine(cpus=8, gpus=())).plan("/runs/x", record, body, 1)

    assert [rank.node for rank in plan.ranks] == [0, 0, 1, 1, 2, 2]


def test_plan_says_which_numbers_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(SPEC)

    assert main(["plan", str(tmp_path / "job.yaml"), "--set", "code.snapshot=false"]) == FINISHED
    shown = capsys.readouterr().out
    assert "  nodes       2 to 4 nodes; on 2, 4\n" in shown
    assert "  resumed on  1, 2, 4, 8 rank(s)\n" in shown


def test_plan_counts_by_the_largest_number_in_an_allocation_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch to estimate the start, and what submitit looks for
    (tmp_path / "srun").touch(0o755)
    (tmp_path / "job.yaml").write_text(SPEC)
    words = shlex.split(f"plan job.yaml --on slurm --runs-root {tmp_path} --set code.snapshot=false")
    monkeypatch.chdir(tmp_path)

    assert main(words) == FINISHED
    shown = capsys.readouterr().out
    assert "x on slurm: 4 rank(s)" in shown
    assert "  resumed on  1, 2, 4, 8 rank(s)\n" in shown
    assert "#SBATCH --nodes=2-4\n" in shown


def test_a_range_may_replace_a_number_when_a_run_is_resumed() -> None:
    before, after = (spec(nodes).model_dump(mode="json", exclude_unset=True) for nodes in (4, "2-4"))

    (said,) = consequences(before, after)

    assert said.startswith("resources.nodes: 4 -> 2-4: the same samples in each step")
