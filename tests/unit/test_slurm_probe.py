"""What is learned from the words of Slurm: those of a real 22.05 (golden/probe), and lines of other sites."""

import json
from pathlib import Path

import pytest

from launcher import shell
from launcher.backends.slurm.probe import changes, facts, settings
from launcher.cli.main import main
from launcher.errors import FAILED, FINISHED, USAGE
from launcher.facts import Facts, Nodes, Partition, gpus
from launcher.target import load_target

GOLDEN = Path(__file__).parent / "golden/probe"
CONFIG, PARTITIONS, NODES, ASSOCIATIONS = (
    (GOLDEN / f"{name}.txt").read_text() for name in ("config", "partitions", "nodes", "associations")
)
SITE = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=vision,speech AllowQos=normal Default=NO QoS=N/A DefaultTime=NONE "
    "GraceTime=120 MaxNodes=4 MaxTime=1-00:00:00 MinNodes=0 Nodes=g[01-12] PreemptMode=GANG,REQUEUE State=UP\n"
)
SITE_NODES = """\
gpu|8|64|515000|gpu:a100:4(S:0-1)
gpu|1|128|1030000|gpu:h100:8(S:0,2),nvme:1
gpu|3|64|515000|gpu:a100:4(S:0-1)
gpu|0|64|515000|(null)
"""


def learned(
    *, partitions: str = PARTITIONS, nodes: str = NODES, associations: str | None = ASSOCIATIONS, **config: str
) -> Facts:
    return facts("2026-01-01T00:00:00Z", {**settings(CONFIG), **config}, partitions, nodes, associations)


def test_what_a_real_cluster_says() -> None:
    found = learned()

    assert (found.cluster, found.version) == ("test", "22.05.8")
    assert list(found.partitions) == ["main", "low", "lowcancel", "lownograce", "lowcancelnograce", "high"]
    assert found.default_partition == "main"
    assert found.partitions["main"] == Partition(
        default=True,
        default_time="00:10:00",
        preempt_mode="REQUEUE",
        grace_time_s=15,
        nodes=[Nodes(count=2, cpus=4, memory_mb=16000, gres={"gpu": 2})],
    )
    assert found.partitions["lowcancel"].preempt_mode == "CANCEL"
    assert found.accounting
    assert found.accounts == ["research", "root"]
    assert found.qos == ["long", "normal"]
    assert found.enforced == []
    assert found.max_submit is None
    assert (found.max_array_size, found.job_requeue, found.kill_wait_s, found.user_signal) == (1001, True, 5, True)
    assert found.compute_nodes_can_requeue is None


def test_limits_of_a_partition_and_kinds_of_its_nodes() -> None:
    partition = learned(partitions=SITE, nodes=SITE_NODES).partitions["gpu"]

    assert partition == Partition(
        max_time="1-00:00:00",
        max_nodes=4,
        accounts=["vision", "speech"],
        qos=["normal"],
        preempt_mode="GANG,REQUEUE",
        grace_time_s=120,
        nodes=[
            Nodes(count=11, cpus=64, memory_mb=515000, gres={"gpu": 4, "gpu:a100": 4}),
            Nodes(count=1, cpus=128, memory_mb=1030000, gres={"gpu": 8, "gpu:h100": 8}),
        ],
    )


def test_a_partition_without_nodes_has_none() -> None:
    assert learned(nodes="").partitions["main"].nodes == []


def test_where_accounting_does_not_answer_nothing_is_said_about_accounts() -> None:
    found = learned(associations=None)

    assert (found.accounting, found.accounts, found.qos) == (False, None, None)


def test_accounts_of_other_clusters_do_not_count() -> None:
    found = learned(associations="test|mine|normal|20\nelsewhere|theirs|fast|500\n")

    assert (found.accounts, found.qos, found.max_submit) == (["mine"], ["normal"], 20)


def test_one_account_without_a_limit_means_no_limit() -> None:
    assert learned(associations="test|a|normal|20\ntest|b|normal|30\n").max_submit == 30
    assert learned(associations="test|a|normal|20\ntest|b|normal|\n").max_submit is None


@pytest.mark.parametrize(
    ("controller", "preemption", "sends"),
    [
        ("preempt_send_user_signal", "(null)", True),
        ("idle_on_node_suspend,preempt_send_user_signal", "(null)", True),
        ("(null)", "reclaim,send_user_signal", True),
        ("idle_on_node_suspend", "(null)", False),
        ("(null)", "(null)", False),
    ],
)
def test_the_signal_on_preemption_has_had_two_names(controller: str, preemption: str, sends: bool) -> None:
    assert learned(SlurmctldParameters=controller, PreemptParameters=preemption).user_signal is sends


def test_what_accounting_enforces_is_a_list() -> None:
    assert learned(AccountingStorageEnforce="associations,limits,qos").enforced == ["associations", "limits", "qos"]


@pytest.mark.parametrize(
    ("gres", "counted"),
    [
        ("", {}),
        ("(null)", {}),
        ("nvme:2", {}),
        ("gpu", {"gpu": 1}),
        ("gpu:4", {"gpu": 4}),
        ("gpu:a100:4", {"gpu": 4, "gpu:a100": 4}),
        ("gpu:a100", {"gpu": 1, "gpu:a100": 1}),
        ("gpu:a100:4(S:0-1),gpu:mig:2(S:0,3),nvme:1", {"gpu": 6, "gpu:a100": 4, "gpu:mig": 2}),
        ("gres:gpu:2", {"gpu": 2}),
        ("gres/gpu=2", {"gpu": 2}),
    ],
)
def test_gpus_in_a_list_of_generic_resources(gres: str, counted: dict[str, int]) -> None:
    assert gpus(gres) == counted


def test_a_change_is_named_with_both_values() -> None:
    old = learned(partitions=SITE, nodes=SITE_NODES)
    new = learned(
        partitions=SITE.replace("1-00", "2-00") + SITE.replace("=gpu", "=cpu"),
        nodes=SITE_NODES.replace("|1|128", "|2|128"),
        associations=None,
    )

    assert list(changes(old, new)) == [
        "partition cpu: new",
        "partition gpu: max_time 1-00:00:00 -> 2-00:00:00",
        "partition gpu: nodes 11 x (64 CPUs, 515000M, 4 gpu, 4 gpu:a100), 1 x (128 CPUs, 1030000M, 8 gpu, 8 gpu:h100)"
        " -> 11 x (64 CPUs, 515000M, 4 gpu, 4 gpu:a100), 2 x (128 CPUs, 1030000M, 8 gpu, 8 gpu:h100)",
        "accounting yes -> no",
        "accounts research, root -> unset",
        "qos long, normal -> unset",
    ]
    assert list(changes(new, new)) == []


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, tuple[int, str]]:
    """What the commands of a cluster answer, by how they begin; and a home without targets."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    answers = {
        "scontrol show config": (0, CONFIG),
        "scontrol show partition": (0, PARTITIONS),
        "sinfo": (0, NODES),
        "sacct ": (0, ""),
        "sacctmgr": (0, ASSOCIATIONS),
        "srun": (0, "srun: job 7 queued\nreached: yes\n"),
    }

    def ask(argv: list[str], **_: object) -> shell.Printed:
        code, said = next(answer for call, answer in answers.items() if " ".join(argv).startswith(call))
        return shell.Printed(code, "" if code else said, said if code else "")

    monkeypatch.setattr(shell, "ask", ask)
    return answers


def test_probe_writes_a_target_that_can_be_loaded(slurm: object, tmp_path: Path) -> None:
    assert main(["probe"]) == FINISHED

    target = load_target("test")
    assert target.kind == "slurm"
    assert target.facts
    assert target.facts.model_copy(update={"probed": ""}) == learned().model_copy(update={"probed": ""})
    assert "below `facts`" in (tmp_path / "config/launcher/targets/test.facts.yaml").read_text()


def test_probing_again_says_what_has_changed_and_leaves_the_users_file_alone(
    slurm: dict[str, tuple[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["probe", "--on", "lab"])
    mine = tmp_path / "config/launcher/targets/lab.yaml"
    mine.write_text("# mine\nkind: slurm\nslurm: {partition: high}\n")
    slurm["scontrol show partition"] = (0, PARTITIONS.replace("MaxTime=UNLIMITED", "MaxTime=2-00:00:00", 1))
    capsys.readouterr()

    assert main(["probe", "--on", "lab"]) == FINISHED

    assert "  partition main: max_time unset -> 2-00:00:00\n" in capsys.readouterr().out
    assert mine.read_text().startswith("# mine\n")
    main(["probe", "--on", "lab"])
    assert "no changes" in capsys.readouterr().out


def test_what_was_tried_on_a_node_is_remembered(slurm: object, capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", "--try"])
    main(["probe"])
    capsys.readouterr()

    assert main(["probe", "--json"]) == FINISHED

    said = json.loads(capsys.readouterr().out)
    assert said["facts"]["compute_nodes_can_requeue"] is True
    assert said["changes"] == []


def test_a_node_that_does_not_reach_the_controller(slurm: dict[str, tuple[int, str]]) -> None:
    slurm["srun"] = (0, "reached: no\n")

    assert main(["probe", "--try"]) == FINISHED

    target = load_target("test")
    assert target.facts
    assert target.facts.compute_nodes_can_requeue is False


def test_without_accounting_probe_goes_on(slurm: dict[str, tuple[int, str]]) -> None:
    slurm["sacct "] = (1, "Slurm accounting storage is disabled\n")

    assert main(["probe"]) == FINISHED

    target = load_target("test")
    assert target.facts
    assert not target.facts.accounting


def test_a_controller_that_is_silent_is_quoted(
    slurm: dict[str, tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm["sinfo"] = (1, "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n")

    assert main(["probe"]) == FAILED

    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_a_controller_that_says_nothing_is_not_waited_for_for_ever(
    slurm: dict[str, tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm["scontrol show config"] = (shell.TIMED_OUT, "")

    assert main(["probe"]) == FAILED

    assert capsys.readouterr().err == "launcher: scontrol show config: no answer within 30 s; it said: nothing\n"


@pytest.mark.parametrize(("said", "instead"), [("GraceTime=15 ", ""), ("MaxTime=UNLIMITED", "MaxTime=a-while")])
def test_words_of_another_slurm_are_no_traceback(
    slurm: dict[str, tuple[int, str]], said: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm["scontrol show partition"] = (0, PARTITIONS.replace(said, instead, 1))

    assert main(["probe"]) == FAILED

    assert "this Slurm (22.05.8) says something that is not understood" in capsys.readouterr().err


def test_without_slurm_it_is_said_where_to_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["probe"]) == FAILED

    assert capsys.readouterr().err == (
        "launcher: scontrol is not on PATH: there is no Slurm on this machine; go to a login node of the cluster\n"
    )


@pytest.mark.parametrize("name", ["local", "a/b", "a.facts"])
def test_names_that_no_cluster_may_have(slurm: object, name: str) -> None:
    assert main(["probe", f"--on={name}"]) == USAGE
