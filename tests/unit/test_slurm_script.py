"""What sbatch and srun are given: the script as submitit writes it is held by golden files, its setup is really run."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.slurm.environment import rank_command, setup_lines, srun_options
from launcher.backends.slurm.script import avoided, clean, lead_s, sbatch_options, srun, tasks_per_node
from launcher.errors import UsageError
from launcher.spec import JobSpec
from launcher.spec_slurm import Slurm

GOLDEN = Path(__file__).with_name("golden")
HOSTILE = "a b;'\"$(touch pwned)`touch pwned`#%j*&|>x"
ARGV = ("-m", "launcher.node.worker")


def spec_of(*, resources: dict[str, Any] | None = None, **slurm: Any) -> JobSpec:
    body = {"name": "x", "model": {"class_path": "a.B"}, "resources": resources or {}, "slurm": slurm or None}
    return JobSpec.model_validate(body)


def script(spec: JobSpec, **more: Any) -> str:
    """As submitit writes it."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    options = sbatch_options(spec, name="x-1", comment="launcher:x-1:1", **more)
    assert options.keys() <= slurm._get_default_parameters().keys(), "not for update_parameters"
    return str(slurm._make_sbatch_string(command="exec PYTHON -m submitit", folder=Path("/runs/x-1/jobs"), **options))


EVERYTHING = spec_of(
    resources={
        "nodes": 4,
        "tasks_per_node": 2,
        "gpus_per_node": 2,
        "cpus_per_task": 6,
        "mem": "64G",
        "time": "1-12:00:01",
    },
    partition="gpu",
    account="vision",
    qos="high",
    constraint="[rack1|rack2]",
    reservation="week",
    exclude=["n7", "n9"],
    nodelist=["n[1-4]"],
    array_parallelism=8,
    dependency="afterok:12",
    mail_type="END,FAIL",
    mail_user="me@example.org",
    signal_delay="10m",
    modules=["cuda/12.4", "gcc"],
    conda="torch",
    setup=["export NCCL_DEBUG=INFO"],
    srun_args=["--mpi=pmix"],
    additional_parameters={"exclusive": True, "nice": 100, "contiguous": False, "wckey": "mine"},
)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sbatch-least", lambda: script(spec_of())),
        ("sbatch-everything", lambda: script(EVERYTHING, exclude=["n8", "n7"])),
        ("sbatch-again", lambda: script(EVERYTHING, after="24_3")),
        ("sbatch-typed-gpus", lambda: script(spec_of(resources={"gpus_per_node": 4}, gres="gpu:a100:4"))),
        (
            "sbatch-elastic",
            lambda: script(spec_of(resources={"nodes": "2-4", "tasks_per_node": 2, "cpus_per_task": 3})),
        ),
        ("sbatch-hostile", lambda: script(spec_of(partition=HOSTILE, modules=[HOSTILE], conda=HOSTILE))),
    ],
)
def test_a_batch_script_is_what_it_was(
    name: str, make: Callable[[], str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "HUP")
    written = make()

    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(written)
    assert written == golden.read_text(), "if this is meant: pytest --update-golden"


@pytest.mark.parametrize(
    ("resources", "ranks"), [({}, 1), ({"gpus_per_node": 4}, 4), ({"gpus_per_node": 4, "tasks_per_node": 2}, 2)]
)
def test_there_is_a_rank_for_each_gpu(resources: dict[str, int], ranks: int) -> None:
    assert tasks_per_node(spec_of(resources=resources)) == ranks


@pytest.mark.parametrize(
    ("time", "minutes", "signal"),
    [(None, None, "USR2@120"), ("90s", 2, "USR2@24"), ("1m", 1, "USR2@12"), ("10m", 10, "USR2@120")],
)
def test_the_time_limit_is_in_whole_minutes_and_the_signal_comes_well_before(
    time: str | None, minutes: int | None, signal: str
) -> None:
    options = sbatch_options(spec_of(resources={"time": time}), name="x", comment="x")

    assert options["time"] == minutes
    assert options["additional_parameters"]["signal"] == signal


def test_the_lead_is_the_users_or_a_fifth_of_the_time() -> None:
    assert lead_s(None, None) == 120
    assert lead_s(Slurm(signal_delay="30s"), 3600) == 30
    assert lead_s(Slurm(signal_delay="1h"), 3600) == 720


def test_hosts_that_failed_are_avoided_as_far_as_a_job_can_do_without_them() -> None:
    two = {"nodes": 2}

    assert avoided(spec_of(resources=two), ["n2", "n3"], there=4) == ("n2", "n3")
    assert avoided(spec_of(resources=two), ["n2", "n3"], there=3) == ()
    assert avoided(spec_of(resources=two, nodelist=["n[1-2]"]), ["n2", "n3"], there=4) == ("n3",)


def test_nothing_of_an_allocation_around_the_shell_leaks() -> None:
    leaking = ["SLURM_NTASKS", "SLURMD_NODENAME", "SBATCH_TIMELIMIT", "SRUN_DEBUG", "SALLOC_QOS", "PMI_RANK", "PMIX_ID"]
    env = dict.fromkeys([*leaking, "PMI2_X", "OMPI_COMM_WORLD_RANK"], "1")

    assert clean(env | {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "MY_SLURM_": "2"}) == {
        "SLURM_CONF": "/etc/slurm.conf",
        "PATH": "/bin",
        "MY_SLURM_": "2",
    }


def ranks(**changed: Any) -> tuple[str, ...]:
    values: dict[str, Any] = {
        "nodes": 2,
        "tasks_per_node": 4,
        "cpus_per_task": 6,
        "gpus_per_node": 4,
        "log": "/runs/x/logs/rank-%5t.log",
        "name": "a001",
        "extra": (),
        "argv": ("python", *ARGV),
    }
    return srun(**values | changed)


def test_ranks_are_one_step() -> None:
    assert ranks(extra=("--mpi=pmix", "--output=elsewhere")) == (
        "srun",
        "--mpi=none",
        "--mpi=pmix",
        "--output=elsewhere",
        "--job-name=a001",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=6",
        "--gpus-per-node=4",
        "--gpu-bind=none",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--wait=0",
        "--output=/runs/x/logs/rank-%5t.log",
        "--open-mode=append",
        "--input=none",
        "--export=ALL",
        "python",
        "-m",
        "launcher.node.worker",
    )


def test_what_is_not_known_is_left_to_the_site() -> None:
    said = " ".join(ranks(cpus_per_task=None, gpus_per_node=0))

    assert "cpus" not in said
    assert "gpu" not in said


@pytest.mark.parametrize(
    ("slurm", "command"),
    [
        (None, ("/launcher/python", *ARGV)),
        (Slurm(modules=["cuda"]), ("/launcher/python", *ARGV)),
        (Slurm(venv="/venv/"), ("/venv/bin/python", *ARGV)),
        (Slurm(conda="torch"), ("python", *ARGV)),
    ],
)
def test_a_rank_has_the_python_of_its_environment(slurm: Slurm | None, command: tuple[str, ...]) -> None:
    assert rank_command(slurm, python="/launcher/python", argv=ARGV) == command
    assert srun_options(slurm) == ()


def container(runtime: str, **more: Any) -> Slurm:
    image = {"image": HOSTILE, "runtime": runtime, "mounts": ["/my data", "/a:/b:ro"], **more}
    return Slurm.model_validate({"srun_args": ["-v"], "container": image})


WHERE: dict[str, Any] = {"mounts": ["/runs/x", "/code"], "workdir": "/home/me"}


def test_pyxis_is_told_by_options_of_srun() -> None:
    slurm = container("pyxis")

    assert srun_options(slurm, **WHERE) == (
        "-v",
        f"--container-image={HOSTILE}",
        "--container-mounts=/my data:/my data,/a:/b:ro,/runs/x:/runs/x,/code:/code,/home/me:/home/me",
        "--container-workdir=/home/me",
    )
    assert rank_command(slurm, python="/launcher/python", argv=ARGV, **WHERE) == ("python3", *ARGV)


def test_apptainer_is_what_each_rank_starts() -> None:
    slurm = container("apptainer", python="/opt/python")

    assert srun_options(slurm, **WHERE) == ("-v",)
    assert rank_command(slurm, python="/launcher/python", argv=ARGV, gpus=True, **WHERE) == (
        "apptainer",
        "exec",
        "--nv",
        "--bind=/my data:/my data",
        "--bind=/a:/b:ro",
        "--bind=/runs/x:/runs/x",
        "--bind=/code:/code",
        "--bind=/home/me:/home/me",
        "--pwd=/home/me",
        HOSTILE,
        "/opt/python",
        *ARGV,
    )
    assert "--nv" not in rank_command(slurm, python="/launcher/python", argv=ARGV, **WHERE)


@pytest.mark.parametrize("folder", ["/runs/a,b", "/runs/a:b", "runs"])
def test_a_folder_that_no_container_can_show_is_named(folder: str) -> None:
    with pytest.raises(UsageError, match=f"{folder} cannot be mounted"):
        srun_options(container("pyxis"), mounts=[folder])


STUB = """
say() { printf '<%s>' "$@" >> said; echo >> said; }
module() { say module "$@"; return ${MODULE_FAILS:-0}; }
"""
CONDA = """#!/bin/bash
[ "$*" = "shell.bash hook" ] && echo 'conda() { say conda "$@"; return ${CONDA_FAILS:-0}; }'
"""


def run_setup(folder: Path, slurm: Slurm, *, stub: str = STUB, **env: str) -> tuple[int, str]:
    """Run the lines as a batch script does; its exit code, and what was said to the stubs."""
    (folder / "bin").mkdir()
    conda = folder / "bin" / "conda"
    conda.write_text(CONDA)
    conda.chmod(0o755)
    text = "\n".join([stub, *setup_lines(slurm), "echo supervisor >> said"])
    path = {"PATH": f"{folder}/bin:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=path | env, check=False, timeout=120)
    said = folder / "said"
    return done.returncode, said.read_text() if said.exists() else ""


def test_names_reach_modules_and_conda_whole_and_nothing_in_them_is_executed(tmp_path: Path) -> None:
    slurm = Slurm(modules=["cuda/12", HOSTILE], conda=HOSTILE, setup=["say setup"])

    code, said = run_setup(tmp_path, slurm)

    assert (code, said) == (
        0,
        f"<module><load><cuda/12><{HOSTILE}>\n<conda><activate><{HOSTILE}>\n<setup>\nsupervisor\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "said"]


@pytest.mark.parametrize("failing", ["MODULE_FAILS", "CONDA_FAILS"])
def test_a_job_does_not_go_on_in_another_environment(failing: str, tmp_path: Path) -> None:
    code, said = run_setup(tmp_path, Slurm(modules=["cuda"], conda="torch"), **{failing: "3"})

    assert code == 1
    assert "supervisor" not in said


def test_module_is_found_where_the_shell_does_not_have_it(tmp_path: Path) -> None:
    init = tmp_path / "lmod" / "init"
    init.mkdir(parents=True)
    (init / "bash").write_text(STUB)

    code, said = run_setup(tmp_path, Slurm(modules=["cuda"]), stub="", LMOD_PKG=str(tmp_path / "lmod"))

    assert (code, said) == (0, "<module><load><cuda>\nsupervisor\n")


def test_conda_is_found_by_the_variable_that_it_exports(tmp_path: Path) -> None:
    elsewhere = {"PATH": "/usr/bin:/bin", "CONDA_EXE": str(tmp_path / "bin" / "conda")}

    code, said = run_setup(tmp_path, Slurm(conda="torch"), **elsewhere)

    assert (code, said) == (0, "<conda><activate><torch>\nsupervisor\n")


def test_without_an_environment_there_is_nothing_to_set_up() -> None:
    assert setup_lines(None) == setup_lines(Slurm(venv="/venv")) == []
