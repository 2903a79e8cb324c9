"""Targets: files in layers, each problem with the file and the line that it comes from."""

from pathlib import Path

import pytest

from launcher.cli.main import main
from launcher.errors import SpecError, UsageError
from launcher.facts import Facts, Nodes, Partition
from launcher.spec import JobSpec
from launcher.spec_slurm import Container, Slurm
from launcher.target import Target, load_target, placed, read_facts, target_names, trainer_of, write_facts

FACTS = Facts(
    probed="2026-01-01T00:00:00Z",
    cluster="lab",
    version="1e3",  # text, which YAML 1.2 would take for a number without quotes
    partitions={"gpu": Partition(default=True, nodes=[Nodes(count=2, cpus=4, memory_mb=16000)]), "017": Partition()},
    accounting=False,
    max_array_size=1001,
    job_requeue=True,
    kill_wait_s=30,
    user_signal=False,
)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's folder of targets."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config/launcher/targets"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def project(user: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project's folder of targets; the current folder is one of the project's."""
    root = tmp_path / "project"
    (root / ".launcher/targets").mkdir(parents=True)
    (root / "jobs").mkdir()
    (root / "pyproject.toml").touch()
    monkeypatch.chdir(root / "jobs")
    return root / ".launcher/targets"


def problems(name: str) -> list[str]:
    with pytest.raises(SpecError) as error:
        load_target(name)
    return [str(problem) for problem in error.value.problems]


def test_two_targets_are_built_in(project: Path) -> None:
    assert load_target("local") == Target(kind="local")
    assert load_target("slurm") == Target(kind="slurm")
    assert target_names() == ["local", "slurm"]


def test_a_built_in_target_may_have_a_file_too(user: Path, project: Path) -> None:
    (user / "local.yaml").write_text("python: /opt/python\n")

    assert load_target("local") == Target(kind="local", python="/opt/python")


def test_an_unknown_target_is_refused_with_those_that_there_are(user: Path, project: Path) -> None:
    (user / "alps.yaml").write_text("kind: slurm\n")
    (project / "lab.yaml").write_text("kind: slurm\n")

    with pytest.raises(UsageError, match=r"no target 'x'; there are alps, lab, local, slurm \(.*launcher probe"):
        load_target("x")
    with pytest.raises(UsageError, match=r"no target 'labb'; did you mean 'lab'\?"):
        load_target("labb")


@pytest.mark.parametrize("name", ["../lab", "", "lab.facts", "/etc/lab"])
def test_a_name_leads_nowhere_else(name: str, user: Path, project: Path) -> None:
    (project / "lab.yaml").write_text("kind: slurm\n")
    (user.parent / "lab.yaml").write_text("kind: slurm\n")
    (user / "lab.facts.yaml").write_text("kind: slurm\n")

    with pytest.raises(UsageError, match="no target"):
        load_target(name)


def test_the_projects_file_goes_over_the_users_key_by_key(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text(
        "kind: slurm\npython: /opt/python\nslurm:\n  partition: low\n  account: mine\n  setup: [one, two]\n"
        "  additional_parameters: {nice: 1, licenses: one}\n"
    )
    (project / "lab.yaml").write_text(
        "slurm:\n  partition: high\n  setup: [three]\n  additional_parameters: {nice: 2}\n"
    )

    target = load_target("lab")

    assert target.slurm == Slurm(
        partition="high", account="mine", setup=["three"], additional_parameters={"nice": 2, "licenses": "one"}
    )
    assert (target.kind, target.python) == ("slurm", "/opt/python")


def test_the_project_is_the_nearest_folder_with_a_mark(user: Path, project: Path, tmp_path: Path) -> None:
    inner = tmp_path / "project/inner"
    (inner / ".git").mkdir(parents=True)
    (project / "lab.yaml").write_text("kind: slurm\n")

    assert load_target("lab", tmp_path / "project/jobs").kind == "slurm"
    with pytest.raises(UsageError, match="no target 'lab'"):
        load_target("lab", inner)


def test_what_is_recorded_is_what_somebody_said(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("kind: slurm\nslurm: {partition: gpu}\n")

    site = load_target("lab").model_dump(mode="json", exclude_unset=True)

    assert site == {"kind": "slurm", "slurm": {"partition": "gpu"}}
    assert Target.model_validate(site) == load_target("lab")


def test_all_that_is_wrong_is_named_with_the_file_and_line_of_the_layer_that_won(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("kind: slrm\nslurm:\n  acount: mine\n  partition: 7\n  exclude: [1, 2]\n")
    (project / "lab.yaml").write_text("# ours\npyton: /x\nslurm:\n  partition: 8\n  exclude: [n1, 3]\n")

    assert problems("lab") == [
        f"{user}/lab.yaml:1: kind: expected 'local', 'slurm' or 'tpu', got the text 'slrm'; did you mean 'slurm'?",
        f"{user}/lab.yaml:3: slurm.acount: unknown key 'acount'; did you mean 'account'?",
        f"{project}/lab.yaml:2: pyton: unknown key 'pyton'; did you mean 'python'?",
        f'{project}/lab.yaml:4: slurm.partition: expected text, got the number 8; put it in quotes: "8"',
        f'{project}/lab.yaml:5: slurm.exclude.1: expected text, got the number 3; put it in quotes: "3"',
    ]


def test_a_target_says_what_kind_it_is(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("python: python3\n")

    assert problems("lab") == [f"{user}/lab.yaml:1: kind: required, but missing"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- kind\n", ":1: expected keys and values, got a list"),
        ("kind: slurm\n\tx", ":2: indent with spaces, not with tabs"),
        ("kind: slurm\nkind: local\n", ":2: kind: duplicate key 'kind'"),
    ],
)
def test_a_file_that_is_no_mapping_is_said_to_be_so_and_nothing_else(
    text: str, problem: str, user: Path, project: Path
) -> None:
    (user / "lab.yaml").write_text(text)

    found = problems("lab")

    assert len(found) == 1
    assert found[0].startswith(f"{user}/lab.yaml{problem}")


def test_a_folder_is_no_target(user: Path, project: Path) -> None:
    (user / "lab.yaml").mkdir()

    assert problems("lab") == [f"{user}/lab.yaml: this is a directory"]


def test_facts_are_read_as_they_were_written(user: Path, project: Path) -> None:
    write_facts("lab", FACTS)

    assert load_target("lab") == Target(kind="slurm", facts=FACTS)
    assert read_facts("lab") == FACTS


def test_facts_belong_to_a_target_that_somebody_else_described(user: Path, project: Path) -> None:
    (project / "lab.yaml").write_text("kind: slurm\npython: python3.11\n")

    assert write_facts("lab", FACTS) == [user / "lab.facts.yaml"]
    assert load_target("lab") == Target(kind="slurm", python="python3.11", facts=FACTS)


def test_facts_of_the_built_in_target_need_no_file_of_its_own(user: Path, project: Path) -> None:
    write_facts("slurm", FACTS)

    assert load_target("slurm").facts == FACTS


def test_a_fact_may_be_corrected_by_hand(user: Path, project: Path) -> None:
    write_facts("lab", FACTS)
    (project / "lab.yaml").write_text("kind: slurm\nfacts: {partitions: {gpu: {max_time: 2h}}}\n")

    corrected = load_target("lab").facts

    assert corrected
    assert corrected.partitions["gpu"] == FACTS.partitions["gpu"].model_copy(update={"max_time": "2h"})
    assert corrected.kill_wait_s == FACTS.kill_wait_s
    assert read_facts("lab") == FACTS


def test_facts_of_another_version_are_to_be_learned_again(user: Path, project: Path) -> None:
    write_facts("lab", FACTS)
    file = user / "lab.facts.yaml"
    file.write_text(file.read_text() + "wether: fine\n")

    assert problems("lab")[0].startswith(f"{file}:")
    assert problems("lab")[0].endswith("(`launcher probe --on lab` writes this file anew)")
    assert read_facts("lab") is None


@pytest.mark.parametrize("text", ["- what\n", "probed: [\n", ""])
def test_facts_that_cannot_be_read_are_no_facts(text: str, user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("kind: slurm\n")
    (user / "lab.facts.yaml").write_text(text)

    assert read_facts("lab") is None
    assert problems("lab")


def test_without_any_known_there_are_no_facts(user: Path, project: Path) -> None:
    assert read_facts("lab") is None


def spec(**slurm: object) -> JobSpec:
    given = {"slurm": slurm} if slurm else {}
    return JobSpec.model_validate({"name": "x", "model": {"class_path": "a.B"}, **given})


def test_a_spec_goes_over_its_target() -> None:
    target = Target(kind="slurm", slurm=Slurm(partition="low", account="mine", setup=["one"]))

    assert placed(spec(partition="high", setup=["two"]), target).slurm == Slurm(
        partition="high", account="mine", setup=["two"]
    )


def test_a_spec_that_says_nothing_of_slurm_gets_what_its_target_says() -> None:
    assert placed(spec(), Target(kind="slurm", slurm=Slurm(qos="long"))).slurm == Slurm(qos="long")
    assert placed(spec(), Target(kind="local")) == spec()


def with_trainer(**trainer: object) -> JobSpec:
    return JobSpec.model_validate({"name": "x", "model": {"class_path": "a.B"}, "trainer": trainer})


ON_XLA = Target.model_validate({"kind": "tpu", "trainer": {"strategy": "xla", "precision": "bf16-mixed"}})


def test_precision_and_strategy_are_the_targets_and_the_rest_is_the_specs() -> None:
    assert placed(with_trainer(precision="16-mixed", max_epochs=3), ON_XLA) == with_trainer(
        precision="bf16-mixed", max_epochs=3, strategy="xla"
    )
    assert placed(spec(), ON_XLA) == with_trainer(precision="bf16-mixed", strategy="xla")


@pytest.mark.parametrize(
    ("overrides", "effective"),
    [
        (["trainer.precision=32-true"], {"strategy": "xla"}),
        (["trainer.strategy.class_path=a.B"], {"precision": "bf16-mixed"}),
        (["trainer={precision: 32-true}"], {}),
        (["trainer.precisions=1", "model.trainer.precision=1"], {"strategy": "xla", "precision": "bf16-mixed"}),
    ],
)
def test_the_command_line_has_the_last_word(overrides: list[str], effective: dict[str, str]) -> None:
    assert trainer_of(ON_XLA, overrides) == effective
    assert placed(with_trainer(max_epochs=3), ON_XLA, overrides) == with_trainer(max_epochs=3, **effective)


def test_a_plan_says_what_is_the_targets(user: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (user / "local.yaml").write_text("trainer: {strategy: xla, precision: bf16-mixed}\n")
    job = project.parents[1] / "jobs/job.yaml"
    job.write_text("name: x\nmodel: {class_path: a.B}\ntrainer: {precision: 16-mixed}\ncode: {snapshot: false}\n")

    assert main(["plan", str(job), "--on", "local", "--set", "trainer.strategy=auto"]) == 0

    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "x on local: 1 rank(s), cpu, bf16-mixed"
    assert "  of local    trainer.precision: bf16-mixed, whatever the spec says" in shown


def test_a_target_says_nothing_else_of_a_training(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("kind: tpu\ntrainer:\n  max_epochs: 3\n  precision: bf16-mixed\n")
    (user / "odd.yaml").write_text("kind: tpu\ntrainer:\n  precision: bf16-mixt\n")

    assert problems("lab") == [
        f"{user}/lab.yaml:2: trainer: max_epochs: a target sets precision and strategy alone; what a run is, its spec "
        "says"
    ]
    assert problems("odd")[0].startswith(f"{user}/odd.yaml:3: trainer.precision: expected ")


def test_what_nobody_set_stays_unset() -> None:
    run = placed(spec(qos="long"), Target(kind="slurm", slurm=Slurm(partition="low")))

    assert run.model_fields_set == {"name", "model", "slurm"}
    assert run.slurm
    assert run.slurm.model_fields_set == {"qos", "partition"}


def test_a_spec_that_names_an_environment_has_that_alone() -> None:
    with_image = Target(
        kind="slurm", slurm=Slurm(partition="gpu", container=Container(image="a.sif", mounts=["/data"]))
    )

    assert placed(spec(venv="/venv"), with_image).slurm == Slurm(partition="gpu", venv="/venv")
    assert placed(spec(container={"image": "b.sif"}), with_image).slurm == Slurm(
        partition="gpu", container=Container(image="b.sif", mounts=["/data"])
    )


def test_a_project_that_names_an_environment_has_that_alone(user: Path, project: Path) -> None:
    (user / "lab.yaml").write_text("kind: slurm\nslurm: {conda: mine}\n")
    (project / "lab.yaml").write_text("slurm: {venv: /ours}\n")

    assert load_target("lab").slurm == Slurm(venv="/ours")
