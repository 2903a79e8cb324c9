"""A spec against a cluster's facts: each problem names the key, the limit and what was asked for."""

from typing import Any

import pytest

from launcher.backends.slurm.checks import problems
from launcher.facts import Facts, Nodes, Partition
from launcher.spec import JobSpec, parse_spec

A100 = Nodes(count=8, cpus=64, memory_mb=500_000, gres={"gpu": 4, "gpu:a100": 4})
H100 = Nodes(count=2, cpus=32, memory_mb=1_000_000, gres={"gpu": 8, "gpu:h100": 8})
PLAIN = Nodes(count=20, cpus=16, memory_mb=64_000)
FACTS = Facts(
    probed="2026-01-01T00:00:00Z",
    cluster="lab",
    version="24.11.5",
    partitions={
        "gpu": Partition(default=True, max_time="1-00:00:00", default_time="01:00:00", nodes=[A100, H100]),
        "long": Partition(max_time="7-00:00:00", max_nodes=4, accounts=["vision"], qos=["normal"], nodes=[A100]),
        "cpu": Partition(default_time="01:00:00", nodes=[PLAIN]),
    },
    accounting=True,
    accounts=["vision", "speech"],
    qos=["normal", "long"],
    enforced=["associations", "limits", "qos"],
    max_array_size=1001,
    job_requeue=True,
    kill_wait_s=30,
    user_signal=True,
)


def spec(*settings: str) -> JobSpec:
    return parse_spec("name: x\nmodel: {class_path: a.B}\n", source="x.yaml", overrides=settings)


def found(*settings: str, **facts: Any) -> list[str]:
    return [str(problem) for problem in problems(spec(*settings), FACTS.model_copy(update=facts))]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["resources.time=24h"],
        ["resources.nodes=10-20"],
        ["slurm.partition=long", "resources.time=1h", "resources.nodes=1-4"],
        ["resources.nodes=2-10", "resources.gpus_per_node=8"],
        ["resources.nodes=10", "resources.gpus_per_node=4"],
        ["resources.gpus_per_node=8", "resources.cpus_per_task=4", "resources.mem=900G"],
        ["resources.mem='0'"],
        ["slurm.gres=gpu:h100:8"],
        ["slurm.partition=cpu", "resources.time=365d", "resources.gpus_per_node=0"],
        ["slurm.partition=long", "resources.time=7d", "resources.nodes=4", "slurm.account=vision"],
        ["slurm.account=speech", "slurm.qos=long"],
    ],
    ids=" ".join,
)
def test_what_fits_has_no_problem(settings: list[str]) -> None:
    assert found(*settings) == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["resources.time=25h"], "resources.time: partition 'gpu' allows at most 1-00:00:00, got 25h"),
        (
            ["slurm.partition=long"],
            "resources.time: not set, and partition 'long' has no default; say how long (at most 7-00:00:00)",
        ),
        (["slurm.partition=gpus"], "slurm.partition: unknown partition 'gpus'; did you mean 'gpu'?"),
        (["slurm.partition=x"], "slurm.partition: unknown partition 'x'; there are gpu, long, cpu"),
        (["slurm.partition='gpu,x'"], "slurm.partition: unknown partition 'x'; there are gpu, long, cpu"),
        (["slurm.account=visoin"], "slurm.account: unknown account 'visoin'; did you mean 'vision'?"),
        (["slurm.qos=x"], "slurm.qos: unknown qos 'x'; there are normal, long"),
        (
            ["slurm.partition=long", "resources.time=1h", "slurm.account=speech"],
            "slurm.account: partition 'long' takes only vision, got 'speech'",
        ),
        (
            ["slurm.partition=long", "resources.time=1h", "slurm.qos=long"],
            "slurm.qos: partition 'long' takes only normal, got 'long'",
        ),
        (["resources.nodes=11"], "resources.nodes: partition 'gpu' has 10, got 11"),
        (["resources.nodes=11-12"], "resources.nodes: partition 'gpu' has 10, got 11-12"),
        (
            ["slurm.partition=long", "resources.time=1h", "resources.nodes=5"],
            "resources.nodes: partition 'long' allows at most 4 in a job, got 5",
        ),
        (
            ["slurm.partition=long", "resources.time=1h", "resources.nodes=2-5"],
            "resources.nodes: partition 'long' allows at most 4 in a job, got 2-5",
        ),
        (
            ["resources.gpus_per_node=9"],
            "resources.gpus_per_node: no node of partition 'gpu' has more than 8 gpu, got 9",
        ),
        (
            ["slurm.partition=cpu", "resources.gpus_per_node=1"],
            "resources.gpus_per_node: no node of partition 'cpu' has more than 0 gpu, got 1",
        ),
        (
            ["slurm.gres=gpu:v100:2"],
            "slurm.gres: no node of partition 'gpu' has more than 0 gpu:v100, got 2; there are gpu:a100, gpu:h100",
        ),
        (["slurm.gres=gpu:a100:5"], "slurm.gres: no node of partition 'gpu' has more than 4 gpu:a100, got 5"),
        (
            ["resources.cpus_per_task=65"],
            "resources.cpus_per_task: no node of partition 'gpu' has more than 64 CPUs, got 65",
        ),
        (
            ["resources.tasks_per_node=8", "resources.cpus_per_task=9"],
            "resources.cpus_per_task: no node of partition 'gpu' has more than 64 CPUs, got 72 (8 tasks)",
        ),
        (
            ["resources.mem=1T"],
            "resources.mem: no node of partition 'gpu' has more than 1000000 MB of memory, got 1048576",
        ),
        (
            ["resources.nodes=3", "resources.gpus_per_node=8"],
            "resources.nodes: 2 of the 10 nodes of partition 'gpu' have what each needs, got 3",
        ),
        (
            ["resources.gpus_per_node=8", "resources.cpus_per_task=8"],
            "resources.nodes: 0 of the 10 nodes of partition 'gpu' have what each needs, got 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_named_with_its_limit(settings: list[str], problem: str) -> None:
    assert found(*settings) == [f"cluster lab: {problem}"]


def test_all_problems_are_found_at_once() -> None:
    keys = [
        problem.key
        for problem in problems(
            spec("resources.time=2d", "resources.gpus_per_node=9", "resources.mem=2T", "slurm.account=x"), FACTS
        )
    ]

    assert keys == ["resources.time", "resources.mem", "resources.gpus_per_node", "slurm.account"]


def test_a_job_for_several_partitions_has_to_fit_into_one() -> None:
    assert found("slurm.partition='gpu,long'", "resources.time=3d") == []
    assert len(found("slurm.partition='gpu,long'", "resources.time=8d")) == 1


def test_without_a_default_a_partition_has_to_be_named() -> None:
    others = {"cpu": FACTS.partitions["cpu"], "long": FACTS.partitions["long"]}

    assert found(partitions=others) == ["cluster lab: slurm.partition: there is no default; choose one of cpu, long"]


@pytest.mark.parametrize("facts", [{"enforced": []}, {"accounts": None, "qos": None}])
def test_accounts_are_checked_where_slurm_checks_them_and_their_names_are_known(facts: dict[str, Any]) -> None:
    assert found("slurm.account=x", "slurm.qos=x", **facts) == []


def test_a_partition_without_nodes_has_room_for_nothing() -> None:
    assert found(partitions={"gpu": Partition(default=True, default_time="1:00:00")}) == [
        "cluster lab: resources.nodes: partition 'gpu' has 0, got 1"
    ]
