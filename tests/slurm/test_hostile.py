"""Names, folders and values that a shell, sbatch or srun might take for theirs: they work, or are refused by name."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Done

from launcher.run import log_path
from slurm.cluster import Cluster
from slurm.launches import REPOSITORY, Launch, clear, created, launch, launcher, submit, written

pytestmark = pytest.mark.slurm

FINISHES = {"*": [["print", "hello"], ["train", 0.05, 5, 5]]}
FOLDERS = {
    "blanks": "my  runs ",
    "quotes": 'it\'s "mine"',
    "substitution": "$(touch pwned)`touch pwned`",
    "separators": "a; touch pwned & touch pwned | touch pwned #",
    "variables": "$HOME ${HOME} ~ * ? [a]",
    "backslashes": "a\\b\\n",
    "unicode": "ünd 日本",
    "newline": "a\ntouch pwned\n#SBATCH --nodes=3",
    "patterns of Slurm": "%j %n %%",
    "an option": "--wrap=touch pwned",
}
VALUES = {
    "substitution": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "separators": "x; touch pwned",
    "quotes": "a' 'b\" c",
    "newline": "x\ntouch pwned",
    "an option": "--wrap=touch pwned",
    "nothing": "",
}
OPTIONS = ("partition", "account", "qos", "constraint", "reservation", "gres", "dependency", "mail_user")


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    clear(cluster)


@pytest.fixture(autouse=True)
def nothing_executed(cluster: Cluster) -> Iterator[None]:
    """Whoever executes what it should not makes a file called `pwned` in its working directory."""
    yield
    places = [Path("/"), Path.home(), REPOSITORY, Path.cwd(), Path(__file__).parent]
    found = [path for place in places for path in place.glob("pwned*")]
    for path in (*found, *cluster.work.rglob("pwned*")):
        path.unlink()
        pytest.fail(f"somebody executed a value: {path}")


def refused(done: Done, *names: str) -> bool:
    """By a message that says what is wrong with which of these, and without a traceback."""
    if done.code == 0:
        return False
    assert done.code in (1, 64), f"exit code {done.code}: {done.err}"
    assert "Traceback" not in done.err, done.err
    assert any(name in done.err for name in names), done.err
    return True


def placed(made: Launch) -> Done:
    done = submit(made)
    print(made.told())
    return done


def created_unless_refused(cluster: Cluster, key: str, **slurm: Any) -> Launch | None:
    """None: the spec is refused, because of this key."""
    try:
        return created(cluster, ("n1", "n2"), FINISHES, retry={"infra": 0}, slurm=slurm)
    except ValueError as error:
        if key not in str(error):
            raise
        return None


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_runs_in_a_folder_of_any_name(folder: str, cluster: Cluster) -> None:
    root = cluster.work / "hostile runs" / folder
    made = created(cluster, ("n1", "n2"), FINISHES, root=root)

    if refused(placed(made), str(root), folder, repr(str(root))):
        assert made.in_queue() == []
        return
    made.end()
    print(made.told())
    assert made.status["state"] == "finished"
    assert made.run.storage.read(log_path(1, 3)) == b"hello\n"
    assert made.launcher("logs").out == "hello\n"


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_from_a_working_directory_of_any_name(folder: str, cluster: Cluster) -> None:
    workdir = cluster.work / "hostile folders" / folder
    workdir.mkdir(parents=True)
    made = created(cluster, ("n1", "n2"), FINISHES, workdir=workdir)

    if refused(placed(made), str(workdir), folder, repr(str(workdir))):
        return
    made.end()
    print(made.told())
    assert made.status["state"] == "finished"
    assert made.run.read_json("attempts/001/environment-3.json")["PWD"] == str(workdir)


@pytest.mark.parametrize("folder", [name for key, name in FOLDERS.items() if key != "newline"])
def test_run_from_such_folders_by_the_command_itself(folder: str, cluster: Cluster) -> None:
    place = cluster.work / "hostile places" / folder
    spec = written(place / "spec", slurm={"additional_parameters": {"hold": True}})
    words = ("run", spec, "--on", "slurm", "--no-check", "--runs-root", place / "runs", "--name", "held")
    done = launcher(cluster, *words, cwd=place)

    if not refused(done, folder, repr(folder)):
        assert launcher(cluster, "cancel", "held", "--runs-root", place / "runs").code == 0


def test_variables_of_ranks_have_any_value(cluster: Cluster) -> None:
    values = {f"V{index}": value for index, value in enumerate([*VALUES.values(), *FOLDERS.values(), "a,b=c,d", "="])}
    run = launch(cluster, ("n1", "n2"), FINISHES, env={"vars": values}).end()
    print(run.told())

    for rank in range(4):
        environment = run.run.read_json(f"attempts/001/environment-{rank}.json")
        assert {name: environment.get(name) for name in values} == values


@pytest.mark.parametrize("name", [*VALUES.values(), "../up", "a/b", "ünd", ".", "-rf", "a" * 200], ids=repr)
def test_a_name_that_is_none_is_refused(name: str, cluster: Cluster) -> None:
    spec = written(cluster.work / "specs/named")

    done = launcher(cluster, "run", spec, "--on", "slurm", "--no-check", f"--name={name}")

    assert done.code == 64
    assert repr(name) in done.err or f"'{name}'" in done.err
    done = launcher(cluster, "run", written(cluster.work / "specs/named", name=name), "--on", "slurm", "--no-check")
    assert done.code == 64
    assert "name" in done.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, VALUES[kind]) for option in OPTIONS for kind in ("substitution", "newline")],
        *[("partition", value) for value in VALUES.values()],
    ],
    ids=repr,
)
def test_values_of_slurm_s_options_stay_values(option: str, value: str, cluster: Cluster) -> None:
    hold = {"additional_parameters": {"hold": True}}
    spec = written(cluster.work / "specs/options", slurm={option: value, **hold})
    name = f"h{time.monotonic_ns()}"
    runs = cluster.work / "runs"

    done = launcher(cluster, "run", spec, "--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)

    if not refused(done, option, option.replace("_", "-"), "sbatch"):
        assert launcher(cluster, "cancel", name, "--runs-root", runs).code == 0


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_comment_of_the_user_s_arrives_as_it_is(value: str, cluster: Cluster) -> None:
    """Any option of sbatch, in a job that runs: its script holds the value."""
    made = created_unless_refused(cluster, "additional_parameters", additional_parameters={"wckey": value})
    if made and not refused(placed(made), "wckey", "additional_parameters"):
        made.end()
        print(made.told())
        assert made.status["state"] == "finished"


def test_lines_of_setup_are_for_the_shell_and_ranks_see_what_they_did(cluster: Cluster) -> None:
    setup = ["export GREETING='a  b'", 'export OTHER="$(echo c)"; export THIRD=d']
    run = launch(cluster, ("n1", "n2"), FINISHES, slurm={"setup": setup}).end()
    print(run.told())

    told = run.run.read_json("attempts/001/environment-3.json")
    assert [told[name] for name in ("GREETING", "OTHER", "THIRD")] == ["a  b", "c", "d"]


@pytest.mark.parametrize(
    "section",
    [
        {"venv": "/nowhere/$(touch pwned)"},
        {"venv": "/nowhere/'; touch pwned; '"},
        {"conda": "$(touch pwned)"},
        {"conda": "x; touch pwned"},
        {"modules": ["$(touch pwned)"]},
        {"modules": ["x; touch pwned"]},
        {"srun_args": ["--comment=$(touch pwned)"]},
        {"nodelist": ["n1;touch pwned"]},
        {"exclude": ["$(touch pwned)"]},
        {"container": {"image": "$(touch pwned)", "runtime": "apptainer"}},
    ],
    ids=str,
)
def test_environments_modules_and_nodes_stay_names(section: dict[str, Any], cluster: Cluster) -> None:
    """These do not exist, so that the job fails: that must be all."""
    made = created_unless_refused(cluster, next(iter(section)), **section)
    if made and not refused(placed(made), "sbatch", *section):
        made.until(lambda: not made.in_queue(), "its job to end")
        print(made.told())


def test_srun_s_own_variables_of_the_submitting_shell_do_not_reach_the_job(cluster: Cluster) -> None:
    made = created(cluster, ("n1", "n2"), FINISHES)
    done = submit(made, SBATCH_PARTITION="nowhere", SLURM_NTASKS="7", SRUN_CPUS_PER_TASK="9", SLURM_MEM_PER_NODE="1")
    assert done.code == 0, done.err
    made.end()
    print(made.told())

    assert made.status["state"] == "finished"
    assert made.started() == [(1, rank) for rank in range(4)]
