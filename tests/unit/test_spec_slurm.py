"""The section `slurm`: nothing in it ends a line of a batch script or takes over an option that the launcher needs."""

import json

import pytest

from launcher.errors import SpecError
from launcher.spec import parse_spec
from launcher.spec_slurm import _OWNED, Slurm

HEAD = "name: x\nmodel: {class_path: a.B}\n"
CONTROLS = ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028"]


def problems(**slurm: object) -> list[str]:
    """Key and message of each problem; JSON is YAML."""
    try:
        parse_spec(f"{HEAD}slurm: {json.dumps(slurm)}", source="job.yaml")
    except SpecError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


def test_all_of_it_can_be_said() -> None:
    assert not problems(
        partition="gpu",
        constraint="[rack1|rack2]&a100*2",
        exclude=["n7", "gpu[01-12,20],login-1"],
        nodelist=["n1"],
        dependency="afterok:12?afterok:13",
        modules=["cuda/12.4", "gcc"],
        setup=["export A='b c'  # why", "", "\\time true", 'echo "$HOME"'],
        srun_args=["--mpi=pmix", "-v", "--mem-bind=none"],
        additional_parameters={"exclusive": True, "nice": 100, "mem_per_gpu": "4G", "gres-flags": "enforce-binding"},
        container={"image": "docker://a/b:1", "mounts": ["/data", "/a:/b", "/a:/b:ro"], "runtime": "apptainer"},
    )


@pytest.mark.parametrize("character", CONTROLS, ids=ascii)
@pytest.mark.parametrize(
    ("key", "wrap"),
    [
        *((key, lambda value: value) for key in ("partition", "account", "qos", "constraint", "reservation", "gres")),
        *((key, lambda value: value) for key in ("dependency", "mail_type", "mail_user", "conda")),
        *((key, lambda value: [value]) for key in ("exclude", "nodelist", "modules", "setup")),
        ("venv", lambda value: f"/{value}"),
        ("srun_args", lambda value: [f"--{value}"]),
        ("additional_parameters", lambda value: {"licenses": value}),
        ("additional_parameters", lambda value: {value: "licenses"}),
        ("container", lambda value: {"image": value}),
        ("container", lambda value: {"image": "i", "python": value}),
        ("container", lambda value: {"image": "i", "mounts": [f"/{value}"]}),
    ],
)
def test_no_value_leaves_its_line(key: str, wrap: object, character: str) -> None:
    assert callable(wrap)
    harmless, hostile = problems(**{key: wrap("ab")}), problems(**{key: wrap(f"a{character}b")})

    assert not harmless
    if character == "\0":  # YAML knows no such character: refused before any key is
        assert hostile
    else:
        assert [found for found in hostile if found.startswith(f"slurm.{key}")]


@pytest.mark.parametrize("key", sorted(_OWNED))
def test_an_option_of_the_launcher_is_not_additional(key: str) -> None:
    (found,) = problems(additional_parameters={key: "x"})

    assert found == f"slurm.additional_parameters.{key}: --{key} cannot be set here; {_OWNED[key]}"


@pytest.mark.parametrize("key", ["job_name", "out", "ntasks_per", "gpus"])
def test_nor_is_what_sbatch_would_take_for_one(key: str) -> None:
    (found,) = problems(additional_parameters={key: "x"})

    assert "cannot be set here" in found


@pytest.mark.parametrize("key", ["--licenses", "J", "a b", "licenses=x --output", "-o", ""])
def test_an_option_has_its_long_name(key: str) -> None:
    (found,) = problems(additional_parameters={key: "x"})

    assert "the long name of an option" in found


@pytest.mark.parametrize("nodes", ["n1 --output=/x", "n1;id", "$(id)", "/etc/passwd", "-n1", "n*", ""])
def test_nodes_are_in_slurms_notation(nodes: str) -> None:
    for key in ("exclude", "nodelist"):
        (found,) = problems(**{key: [nodes]})
        assert "nodes in Slurm's notation" in found


@pytest.mark.parametrize("line", ["#SBATCH --output=/x", "  #SBATCH -o x", "#PBS -l x", "#BSUB"])
def test_a_setup_line_is_no_option_of_sbatch(line: str) -> None:
    (found,) = problems(setup=["true", line])

    assert found.startswith("slurm.setup.1: expected a shell line")
    assert "additional_parameters" in found


@pytest.mark.parametrize("argument", ["--", "train.py", "-", "- n", ""])
def test_what_follows_srun_is_an_option(argument: str) -> None:
    assert problems(srun_args=[argument])


@pytest.mark.parametrize("mount", ["data", "/a,/etc:/etc", "/a:b", "/a:/b:ro,rw", "/a:/b:ro:x", "$HOME", ""])
def test_a_mount_is_one_mount(mount: str) -> None:
    assert problems(container={"image": "i", "mounts": [mount]})


@pytest.mark.parametrize(
    ("key", "value"),
    [("modules", ["-h"]), ("conda", "--help"), ("container", {"image": "--writable"}), ("venv", "~/venv")],
)
def test_a_value_is_not_taken_for_an_option_nor_a_shell_word(key: str, value: object) -> None:
    assert problems(**{key: value})


def test_a_backslash_would_not_reach_slurm() -> None:
    (found,) = problems(partition="a\\b")

    assert "backslashes, which sbatch removes" in found


def test_one_thing_says_which_python_runs_the_ranks() -> None:
    (found,) = problems(conda="torch", venv="/venv")

    assert found == "slurm: conda and venv each say which Python runs the ranks: keep one of them"
    assert not problems(conda="torch", modules=["anaconda"])


def test_a_lead_is_one_that_slurm_can_have() -> None:
    assert problems(signal_delay="1d") == ["slurm.signal_delay: Slurm takes at most 65535 seconds (18 hours)"]
    assert Slurm().signal_delay == "120s"


def test_a_number_where_text_stands_needs_quotes() -> None:
    assert problems(account=123) == ['slurm.account: expected text, got the number 123; put it in quotes: "123"']
