"""What `launcher probe` learns about a real cluster, and that Slurm agrees with what is said not to fit."""

import json
from pathlib import Path

import pytest

from launcher.backends.slurm.checks import problems
from launcher.cli.main import main
from launcher.errors import FAILED, FINISHED
from launcher.facts import Facts, Nodes
from launcher.spec import parse_spec
from launcher.target import load_target
from slurm.cluster import Cluster, ClusterError
from slurm.conftest import GRACE_S, KILL_WAIT_S
from slurm.scenarios import eventually

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    return cluster


def probed(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Facts, list[str]]:
    """Facts, and what has changed."""
    capsys.readouterr()
    assert main(["probe", "--json", *options]) == FINISHED
    said = json.loads(capsys.readouterr().out)
    return Facts.model_validate(said["facts"]), said["changes"]


def test_a_cluster_with_accounting(here: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    facts, _ = probed(capsys)

    assert {"main", "low", "lowcancel", "lownograce", "lowcancelnograce", "high"} <= {*facts.partitions}
    assert facts.default_partition == "main"
    assert facts.partitions["main"].nodes == [Nodes(count=8, cpus=4, memory_mb=16000, gres={"gpu": 2})]
    assert facts.partitions["main"].grace_time_s == GRACE_S
    assert facts.partitions["main"].default_time == "00:10:00"
    assert facts.partitions["lowcancel"].preempt_mode == "CANCEL"
    assert facts.kill_wait_s == KILL_WAIT_S
    assert (facts.accounting, facts.job_requeue, facts.user_signal) == (True, True, True)
    assert facts.accounts == ["root"]
    assert facts.qos == ["normal"]
    assert load_target(facts.cluster).facts == facts


def test_one_with_the_opposite_of_its_settings(
    other: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_CONF", other.env["SLURM_CONF"])

    facts, _ = probed(capsys, "--on", "other")

    assert facts.partitions["main"].nodes == [Nodes(count=2, cpus=4, memory_mb=16000)]
    assert (facts.accounting, facts.job_requeue, facts.user_signal) == (False, False, False)
    assert (facts.accounts, facts.qos) == (None, None)


def test_a_node_reaches_the_controller(here: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    facts, _ = probed(capsys, "--try")

    assert facts.compute_nodes_can_requeue is True


def test_a_limit_that_is_raised_between_two_probes_is_noticed(
    here: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    here.scontrol("create", "PartitionName=brief", "Nodes=n1,n2", "MaxTime=60")
    try:
        brief = probed(capsys)[0].partitions["brief"]
        assert (brief.max_time, brief.default_time) == ("01:00:00", None)
        here.scontrol("update", "PartitionName=brief", "MaxTime=2-00:00:00")
        assert probed(capsys)[1] == ["partition brief: max_time 01:00:00 -> 2-00:00:00"]
    finally:
        here.scontrol("delete", "PartitionName=brief")
    assert probed(capsys)[1] == ["partition brief: gone"]


@pytest.mark.parametrize(
    ("setting", "option", "fits"),
    [
        ("resources.nodes=8", "--nodes=8", True),
        ("resources.nodes=9", "--nodes=9", False),
        ("resources.nodes=8-9", "--nodes=8-9", True),
        ("resources.nodes=9-10", "--nodes=9-10", False),
        ("resources.cpus_per_task=4", "--cpus-per-task=4", True),
        ("resources.cpus_per_task=5", "--cpus-per-task=5", False),
        ("resources.gpus_per_node=2", "--gpus-per-node=2", True),
        ("resources.gpus_per_node=3", "--gpus-per-node=3", False),
        ("slurm.gres=gpu:2", "--gres=gpu:2", True),
        ("slurm.gres=gpu:3", "--gres=gpu:3", False),
        ("slurm.gres=gpu:a100:1", "--gres=gpu:a100:1", False),
        ("resources.mem=16000M", "--mem=16000M", True),
        ("resources.mem=16001M", "--mem=16001M", False),
        ("slurm.partition=high", "--partition=high", True),
        ("slurm.partition=higher", "--partition=higher", False),
        ("slurm.account=nobody", "--account=nobody", True),  # nothing enforces accounts here
    ],
)
def test_slurm_refuses_what_does_not_fit_and_takes_what_does(
    setting: str, option: str, fits: bool, here: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = parse_spec("name: x\nmodel: {class_path: a.B}\n", source="x", overrides=[setting])

    assert (problems(spec, probed(capsys)[0]) == []) is fits
    if fits:
        here.output("sbatch", "--test-only", option, "--wrap=true")
    else:
        with pytest.raises(ClusterError):
            here.output("sbatch", "--test-only", option, "--wrap=true")


def test_slurm_takes_some_jobs_that_can_never_start_and_the_check_does_not(
    here: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    here.scontrol("create", "PartitionName=narrow", "Nodes=n1,n2", "MaxTime=60", "MaxNodes=1", "AllowAccounts=others")
    too_long = here.sbatch("#!/bin/sh\n", "--partition=narrow", "--time=61")
    too_wide = here.sbatch("#!/bin/sh\n", "--partition=narrow", "--time=1", "--nodes=2")
    at_most_too_wide = here.sbatch("#!/bin/sh\n", "--partition=narrow", "--time=1", "--nodes=1-2")
    jobs = (too_long, too_wide, at_most_too_wide)
    limits = ["PartitionTimeLimit", "PartitionNodeLimit", "PartitionNodeLimit"]
    try:
        facts, _ = probed(capsys)
        eventually(lambda: [here.job(job)["Reason"] for job in jobs] == limits, "Slurm to say why they wait")
        states = here.squeue()
        assert [states[job] for job in jobs] == ["PENDING"] * 3
    finally:
        here.scancel(*map(str, jobs))
        eventually(lambda: not {*jobs} & running_or_waiting(here), "the jobs to be gone")
        here.scontrol("delete", "PartitionName=narrow")
    wanted = ["slurm.partition=narrow", "resources.time=61m", "resources.nodes=1-2", "slurm.account=root"]
    spec = parse_spec("name: x\nmodel: {class_path: a.B}\n", source="x", overrides=wanted)
    assert [str(problem) for problem in problems(spec, facts)] == [
        "cluster test: resources.time: partition 'narrow' allows at most 01:00:00, got 61m",
        "cluster test: resources.nodes: partition 'narrow' allows at most 1 in a job, got 1-2",
        "cluster test: slurm.account: partition 'narrow' takes only others, got 'root'",
    ]


def running_or_waiting(cluster: Cluster) -> set[int]:
    return {job for job, state in cluster.squeue().items() if state != "CANCELLED"}


def test_a_cluster_that_is_not_there_is_told_as_slurm_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=gone\nSlurmctldHost=localhost\nSlurmctldPort=9\nMessageTimeout=2\nTCPTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))

    assert main(["probe"]) == FAILED

    assert "launcher: scontrol show config: exit code 1, it said: " in capsys.readouterr().err
