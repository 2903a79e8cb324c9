"""Names, folders and values that a shell, sbatch or srun might take for theirs: they work, or are refused by name.

Cases of a test go on at once, each on a node of its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Done

from launcher.layout import log_path
from slurm.cluster import Cluster
from slurm.launches import REPOSITORY, Launch, Nodes, clear, created, launch, launcher, submit, written

pytestmark = pytest.mark.slurm

FINISHES = {"*": [["print", "hello"], ["say where"], ["train", 0.05, 5, 5]]}
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
ENVIRONMENTS: tuple[dict[str, Any], ...] = (
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
)


class AtOnce:
    """Has all cases of a test go on at once; one that fails is told by its name."""

    def __init__(self, cluster: Cluster, subtests: pytest.Subtests) -> None:
        self._nodes = Nodes(cluster.settings.node_names, 1)
        self._subtests = subtests

    def __call__(self, check: Callable[[Any, tuple[str, ...]], None], cases: Mapping[str, Any]) -> None:
        """
        Args:
            check: one case, on this node.
            cases: by their names.
        """

        def play(case: Any) -> None:
            with self._nodes.some() as node:
                check(case, node)

        with ThreadPoolExecutor(self._nodes.groups) as pool:
            futures = {name: pool.submit(play, case) for name, case in cases.items()}
        for name, future in futures.items():
            with self._subtests.test(name):
                future.result()


@pytest.fixture
def at_once(cluster: Cluster, subtests: pytest.Subtests) -> AtOnce:
    return AtOnce(cluster, subtests)


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    clear(cluster)


@pytest.fixture(autouse=True)
def nothing_executed(cluster: Cluster) -> Iterator[None]:
    """Whoever executes what it should not makes a file called `pwned` in its working directory."""
    yield
    places = [Path("/"), Path.home(), REPOSITORY, Path.cwd(), Path(__file__).parent]
    found = [path for place in places for path in place.glob("pwned*")] + [*cluster.work.rglob("pwned*")]
    for path in found:
        path.unlink()
    assert found == [], "somebody executed a value"


def refused(done: Done, *names: str) -> bool:
    """By a message that says what is wrong with which of these, and without a traceback."""
    if done.code == 0:
        return False
    assert done.code in (1, 64), f"exit code {done.code}: {done.err}"
    assert "Traceback" not in done.err, done.err
    assert any(name in done.err for name in names), done.err
    return True


def finishes(made: Launch, *names: str) -> bool:
    """Or is refused, because of one of these."""
    if refused(submit(made), *names):
        assert made.in_queue() == []
        return False
    status = made.end().status
    assert status["state"] == "finished", made.told()
    return True


def created_unless_refused(cluster: Cluster, node: tuple[str, ...], slurm: dict[str, Any]) -> Launch | None:
    """None: the spec is refused, because of one of these keys."""
    try:
        return created(cluster, node, FINISHES, retry={"infra": 0}, slurm=slurm)
    except ValueError as error:
        if not any(key in str(error) for key in slurm):
            raise
        return None


def test_in_folders_of_any_name(cluster: Cluster, at_once: AtOnce) -> None:
    def check(folder: str, node: tuple[str, ...]) -> None:
        workdir = cluster.work / "hostile folders" / folder
        root = workdir / "runs"
        workdir.mkdir(parents=True)
        made = created(cluster, node, FINISHES, root=root, workdir=workdir)
        if finishes(made, repr(made.run.storage.root)):
            assert made.run.storage.read(log_path(1, 1)) == b"hello\n"
            assert made.launcher("logs").out == "hello\n"
        else:
            made = created(cluster, node, FINISHES, workdir=workdir)
            assert finishes(made), "it has to run somewhere"
        assert made.run.read_json("attempts/001/folder-1.json") == {"folder": str(workdir)}

    at_once(check, FOLDERS)


def test_from_folders_of_any_name_by_the_command_itself(cluster: Cluster, at_once: AtOnce) -> None:
    def check(folder: str, _: tuple[str, ...]) -> None:
        place = cluster.work / "hostile places" / folder
        runs = place / "runs"
        spec = written(place / "spec", slurm={"additional_parameters": {"hold": True}})
        words = ("run", spec, "--on", "slurm", "--no-check", "--runs-root", runs, "--name", "held")
        done = launcher(cluster, *words, cwd=place)
        if not refused(done, repr(str(runs / "held"))):
            assert launcher(cluster, "cancel", "held", "--runs-root", runs).code == 0

    at_once(check, FOLDERS)


def test_variables_of_ranks_have_any_value(cluster: Cluster) -> None:
    values = {f"V{index}": value for index, value in enumerate([*VALUES.values(), *FOLDERS.values(), "a,b=c,d", "="])}
    run = launch(cluster, ("n1", "n2"), FINISHES, env={"vars": values}).end()
    print(run.told())

    for rank in range(4):
        environment = run.run.read_json(f"attempts/001/environment-{rank}.json")
        assert {name: environment.get(name) for name in values} == values


def test_values_of_slurm_s_options_stay_values(cluster: Cluster, at_once: AtOnce) -> None:
    runs = cluster.work / "runs"

    def check(given: tuple[str, str], node: tuple[str, ...]) -> None:
        option, value = given
        name = f"h{time.monotonic_ns()}"
        held = {"additional_parameters": {"hold": True}}
        spec = written(cluster.work / "specs" / name, slurm={option: value, **held})
        done = launcher(cluster, "run", spec, "--on", "slurm", "--no-check", "--name", name, "--runs-root", runs)
        if not refused(done, option, option.replace("_", "-"), "sbatch"):
            assert launcher(cluster, "cancel", name, "--runs-root", runs).code == 0

    cases = [(option, VALUES["substitution"]) for option in OPTIONS]
    cases += [("partition", value) for value in VALUES.values() if value != VALUES["substitution"]]
    at_once(check, {f"{option}: {value!r}": (option, value) for option, value in cases})


def test_an_option_of_the_users_arrives_as_it_is(cluster: Cluster, at_once: AtOnce) -> None:
    """Any option of sbatch, in a job that runs: its script holds the value."""

    def check(value: str, node: tuple[str, ...]) -> None:
        made = created_unless_refused(cluster, node, {"additional_parameters": {"wckey": value}})
        if made:
            finishes(made, "wckey", "additional_parameters")

    at_once(check, VALUES)


def test_lines_of_setup_are_for_the_shell_and_ranks_see_what_they_did(cluster: Cluster) -> None:
    setup = ["export GREETING='a  b'", 'export OTHER="$(echo c)"; export THIRD=d']
    run = launch(cluster, ("n1", "n2"), FINISHES, slurm={"setup": setup}).end()
    print(run.told())

    told = run.run.read_json("attempts/001/environment-3.json")
    assert [told[name] for name in ("GREETING", "OTHER", "THIRD")] == ["a  b", "c", "d"]


def test_environments_modules_and_nodes_stay_names(cluster: Cluster, at_once: AtOnce) -> None:
    """Most of them do not exist, so that the job fails: that must be all."""

    def check(section: dict[str, Any], node: tuple[str, ...]) -> None:
        made = created_unless_refused(cluster, node, section)
        if made and not refused(submit(made), "sbatch", *section):
            made.until(lambda: not made.in_queue(), "its job to end")

    at_once(check, {str(section): section for section in ENVIRONMENTS})


def test_srun_s_own_variables_of_the_submitting_shell_do_not_reach_the_job(cluster: Cluster) -> None:
    made = created(cluster, ("n1", "n2"), FINISHES)
    done = submit(made, SBATCH_PARTITION="nowhere", SLURM_NTASKS="7", SRUN_CPUS_PER_TASK="9", SLURM_MEM_PER_NODE="1")
    assert done.code == 0, done.err
    made.end()
    print(made.told())

    assert made.status["state"] == "finished"
    assert made.started() == [(1, rank) for rank in range(4)]
