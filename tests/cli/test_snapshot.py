"""A run goes on with the code that it began with, whatever becomes of the tree; and says which code that is."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.commands import JOBS, SOON, Command, Done, Shell, ranks_of, trains, within
from cli.test_interruption import tensors
from launcher.errors import FINISHED, USAGE
from launcher.layout import attempt_folder
from launcher.run import Run

RAISES = 'raise RuntimeError("the tree was edited")\n'
FINDER = """\
import sys
from importlib.machinery import PathFinder

MAPPING = {{"toolbox": {toolbox!r}}}


class _EditableFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, [MAPPING[name].rpartition("/")[0]]) if name in MAPPING else None


def install():
    sys.meta_path.append(_EditableFinder)
"""
"""What setuptools installs for `pip install -e`."""


class Project(NamedTuple):
    """A repository: a spec with its module beside it, and two packages that are installed in editable mode."""

    root: Path
    packages: Path
    """Of the environment: what `pip install -e` has left there."""
    commit: str

    @property
    def spec(self) -> Path:
        return self.root / "jobs/job.yaml"

    @property
    def as_user(self) -> tuple[str, ...]:
        """In the project's folder, with its environment."""
        return ("env", "-C", str(self.root), f"PYTHONPATH={self.packages}")


def make_project(root: Path) -> Project:
    files = {
        "jobs/job.yaml": (JOBS / "net.yaml").read_text().replace("slow_net", "my_module"),
        "jobs/my_module.py": "import toolbox.part\nimport tools\n" + (JOBS / "slow_net.py").read_text(),
        "src/toolbox/__init__.py": "",
        "src/toolbox/part.py": "",
        "lib/tools.py": "",
        ".gitignore": "ignored*\n",
    }
    installed = {
        "__editable___toolbox_finder.py": FINDER.format(toolbox=str(root / "project/src/toolbox")),
        "toolbox.pth": "import __editable___toolbox_finder; __editable___toolbox_finder.install()\n",
        "tools.pth": str(root / "project/lib") + "\n",
        "sitecustomize.py": f"import site; site.addsitedir({str(root / 'packages')!r})\n",
    }
    for folder, texts in (("project", files), ("packages", installed)):
        for name, text in texts.items():
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_text(text)
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "first")):
        git(root / "project", *words)
    return Project(root / "project", root / "packages", git(root / "project", "rev-parse", "HEAD").strip())


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def in_project(launcher: Shell, project: Project, *words: str) -> Done:
    """A command that ends, typed in the project's folder."""
    command = launcher.start(*words, before=project.as_user)
    code = command.wait()
    return Done(code, command.output, command.output)


class Story(NamedTuple):
    """What happened to the run `snapshot`: its tree was edited and a rank killed, then deleted and a rank killed."""

    project: Project
    run: Run
    code: int
    output: str
    executed: list[dict[str, object]]
    """The plans of its attempts."""


@pytest.fixture(scope="module")
def story(launcher: Shell, tmp_path_factory: pytest.TempPathFactory) -> Story:
    project = make_project(tmp_path_factory.mktemp("story"))
    with (project.root / "jobs/my_module.py").open("a") as module:
        module.write("# not committed\n")
    command = launcher.start("run", "jobs/job.yaml", "--name", "snapshot", before=project.as_user)
    assert within(SOON, (launcher.runs / "snapshot/run.json").exists), command.output
    run = launcher.run_of("snapshot")
    assert within(SOON, lambda: trains(run)), command.output

    for name in ("jobs/my_module.py", "src/toolbox/part.py", "lib/tools.py"):
        (project.root / name).write_text(RAISES)
    lose_a_rank(run, command, 2)
    shutil.rmtree(project.root)
    lose_a_rank(run, command)

    code = command.wait()
    plans = [run.read_json(f"{attempt_folder(attempt)}/plan.json") for attempt in (1, 2, 3)]
    return Story(project, run, code, command.output, plans)


def lose_a_rank(run: Run, command: Command, attempt: int | None = None) -> None:
    """And wait until that attempt trains."""
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    if attempt:
        assert within(SOON, lambda: trains(run, attempt)), command.output


class TestTheTreeIsEditedThenDeleted:
    def test_and_the_run_ends_as_if_nothing_had_happened(self, story: Story, launcher: Shell, finished: Done) -> None:
        assert story.code == FINISHED, story.output
        shown = launcher("status", "snapshot", "--json").answer
        assert [attempt["cause"] for attempt in shown["attempts"]] == ["infra", "infra", "finished"]
        assert all(attempt["last_step"] for attempt in shown["attempts"]), "each of them has trained"
        assert shown["metrics"] == finished.answer["metrics"]
        assert tensors(story.run) == tensors(launcher.run_of("reference"))

    def test_and_every_attempt_imported_from_the_run_directory(self, story: Story) -> None:
        assert not story.project.root.exists()
        for plan in story.executed:
            entries = plan["env"]["PYTHONPATH"].split(":")  # type: ignore[index]
            code = f"{story.run.storage.root}/code/{story.run.record.code.digest}/project"  # type: ignore[union-attr]
            live = str(story.project.packages)
            assert entries == [f"{code}/jobs", code, live, f"{code}/lib", f"{code}/src"]
        workdirs = [plan["workdir"] for plan in story.executed]
        assert workdirs == [str(story.project.root), str(story.project.root), code]

    def test_and_status_shows_commit_and_diff(self, story: Story, launcher: Shell) -> None:
        code = launcher("status", "snapshot", "--json").answer["code"]

        assert (code["commit"], code["dirty"], code["changed"]) == (story.project.commit, True, 1)
        assert Path(code["diff"]).parent == launcher.runs / "snapshot/code"
        assert Path(code["diff"]).stem == code["digest"]
        assert "+# not committed\n" in Path(code["diff"]).read_text()
        shown = launcher("status", "snapshot").out
        assert f"  code        {code['commit'][:10]} + 1 changed file  {code['diff']}\n" in shown

    def test_and_the_copy_is_what_the_tree_was(self, story: Story) -> None:
        copy = Path(story.run.storage.root, f"code/{story.run.record.code.digest}/project")  # type: ignore[union-attr]

        assert (copy / "jobs/my_module.py").read_text().endswith("# not committed\n")
        assert not [path for path in copy.rglob("*.py") if RAISES in path.read_text()]
        assert sorted(path.name for path in copy.parents[1].iterdir()) == [copy.parent.name, f"{copy.parent.name}.diff"]


class TestCheckedBeforeItStarts:
    """The check of `run` looks at the copy, so that what is not in it shows before there is a run."""

    def refused(self, launcher: Shell, project: Project, *words: str) -> str:
        done = in_project(launcher, project, "run", "jobs/job.yaml", "--name", "refused", *words)

        assert done.code == USAGE, done.err
        assert done.err.startswith("launcher: ")
        assert done.err.count("\n") == 1
        assert not (launcher.runs / "refused").exists()
        return done.err

    def import_also(self, project: Project, module: str) -> None:
        path = project.root / "jobs/my_module.py"
        path.write_text(f"import {module}\n" + path.read_text())

    def test_a_module_that_git_ignores_is_not_there(self, launcher: Shell, project: Project) -> None:
        (project.root / "jobs/ignored_one.py").touch()
        self.import_also(project, "ignored_one")

        said = self.refused(launcher, project)

        assert "no module named 'ignored_one'" in said
        assert f"{project.root}/jobs/my_module.py:1" in said, "the path of the user's file, not that of a copy"
        assert "files that git ignores are not looked at" in said
        assert in_project(launcher, project, "check", "jobs/job.yaml").code == 0, "it looks at the tree itself"

    def test_nor_may_it_come_from_the_tree_by_another_way(self, launcher: Shell, project: Project) -> None:
        (project.root / "lib/ignored_two.py").touch()
        self.import_also(project, "ignored_two")

        said = self.refused(launcher, project)

        assert f"module ignored_two was imported from {project.root}/lib/ignored_two.py, not from the snapshot" in said
        assert "`git add`" in said

    def test_nor_from_a_current_folder_that_is_no_project(self, launcher: Shell, project: Project) -> None:
        (launcher.cwd / "beside.py").touch()
        self.import_also(project, "beside")

        done = launcher("run", project.spec, "--name", "refused", PYTHONPATH=str(project.packages))

        (launcher.cwd / "beside.py").unlink()
        assert done.code == USAGE
        assert "the current folder is no project. Put a pyproject.toml into it" in done.err


UNCHECKED = ("--set", "model.class_path=no.such.Model")
"""What the check would complain about."""


class TestRefusedBeforeTheCheck:
    """Which takes seconds."""

    @pytest.mark.parametrize("verb", ["run", "plan"])
    def test_a_tree_that_is_too_large(self, launcher: Shell, project: Project, verb: str) -> None:
        with (project.root / "data.bin").open("wb") as data:
            data.truncate(120 << 20)

        done = launcher(verb, project.spec, *UNCHECKED)

        assert done.code == USAGE
        assert done.err.startswith(f"launcher: {project.root}: ")
        assert " at least 120M, and code.max_size is 100M. The largest: data.bin (120M). Leave out" in done.err
        assert done.err.count("\n") == 1
        assert launcher("plan", project.spec, "--set", "code.max_size=1G").code == 0
        assert launcher("plan", project.spec, "--set", "code.exclude=['*.bin']").code == 0

    def test_a_name_that_is_none(self, launcher: Shell) -> None:
        done = launcher("run", JOBS / "net.yaml", "--name", "../out", *UNCHECKED)

        assert done.code == USAGE
        assert done.err.startswith("launcher: '../out' is no name for a run")


def test_plan_tells_what_would_be_copied_and_copies_nothing(launcher: Shell, project: Project, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    done = launcher("plan", project.spec, "--runs-root", project.root / "runs")

    assert done.code == 0
    assert re.search(rf"^  code        {project.root}: 6 files, \d[.\d]*K$", done.out, re.MULTILINE)
    assert re.search(rf"PYTHONPATH={project.root}/runs/net-ID/code/[0-9a-f]{{16}}/project/jobs:", done.out)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_snapshot_ranks_import_from_the_tree(launcher: Shell, project: Project) -> None:
    planned = launcher("plan", project.spec, "--json", "--set", "code.snapshot=false").answer

    assert planned["code"] == []
    path = planned["plan"]["env"]["PYTHONPATH"]
    assert path == f"{project.root}/jobs:{project.root}:{launcher.cwd}"
