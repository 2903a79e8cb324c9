"""Each start looks where its modules come from, and which versions it runs with."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forked import Training, log_of

from launcher.errors import LauncherError, UsageError
from launcher.events import AttemptEnded, AttemptStarting
from launcher.layout import environment_path
from launcher.node import provenance
from launcher.node.environment import Place
from launcher.node.provenance import Drift, ForeignModule, check_modules, check_provenance, differences, foreign
from launcher.record import Code, Tree
from launcher.run import Run, create_run

MakeRun = Callable[..., Run]


def write(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return str(path)


class Copied:
    """A project with a virtual environment, and its snapshot under runs/ within it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.snapshot = self.root / "runs/run/code/12ab"
        self.elsewhere = root / "elsewhere"
        self.installed = self.root / "env/lib/site-packages"
        for name in ("one.py", "src/two.py"):
            write(self.root / name)
            write(self.snapshot / "copy" / name)
        self.code = Code(
            digest="12ab",
            trees=(Tree(path=os.path.realpath(self.root), folder="copy"),),
            import_path=("copy",),
            workdir=None,
        )

    def wrong(self, name: str, file: str | Path) -> list[str]:
        modules = [(name, str(file))]
        return list(foreign(modules, self.code, str(self.snapshot), str(self.elsewhere), {str(self.installed)}))


@pytest.fixture
def copied(tmp_path: Path) -> Copied:
    return Copied(tmp_path)


class TestModules:
    def test_of_the_snapshot_are_right(self, copied: Copied) -> None:
        assert copied.wrong("one", copied.snapshot / "copy/one.py") == []
        assert copied.wrong("src.two", copied.snapshot / "copy/src/two.py") == []

    def test_that_are_installed_are_none_of_ours_though_the_environment_is_in_the_project(self, copied: Copied) -> None:
        assert copied.wrong("package", write(copied.installed / "package/__init__.py")) == []
        assert copied.wrong("package", "/usr/lib/python3/dist-packages/package.py") == []

    @pytest.mark.parametrize("link", ["src", "src/two.py"])
    def test_that_an_installed_link_leads_to_are_of_the_tree(self, copied: Copied, link: str) -> None:
        copied.installed.mkdir(parents=True)
        (copied.installed / link).parent.mkdir(exist_ok=True)
        (copied.installed / link).symlink_to(copied.root / link)

        assert len(copied.wrong("src.two", copied.installed / "src/two.py")) == 1

    def test_of_the_tree_that_the_snapshot_has_too_say_so(self, copied: Copied) -> None:
        (said,) = copied.wrong("src.two", copied.root / "src/two.py")

        assert said.startswith(f"module src.two was imported from {copied.root}/src/two.py, not from the snapshot")
        assert "which has it too: name the folder that it is imported from in code.path" in said

    def test_of_the_tree_that_the_snapshot_does_not_have_say_what_to_do(self, copied: Copied) -> None:
        (said,) = copied.wrong("made", write(copied.root / "made.py"))

        for way in ("which does not have it: git ignores it", "`git add`", "code.path", "code.snapshot: false"):
            assert way in said

    def test_of_a_tree_that_has_vanished_are_wrong_all_the_same(self, copied: Copied) -> None:
        assert len(copied.wrong("gone", copied.root / "gone/gone.py")) == 1

    def test_of_a_neighbour_with_a_longer_name_are_right(self, copied: Copied) -> None:
        assert copied.wrong("x", write(copied.root.with_name("project-2") / "x.py")) == []

    def test_are_known_behind_links(self, copied: Copied, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(copied.root)

        assert copied.wrong("one", tmp_path / "link/runs/run/code/12ab/copy/one.py") == []
        assert len(copied.wrong("one", tmp_path / "link/one.py")) == 1

    def test_that_a_link_in_the_snapshot_leads_to_are_not_of_it(self, copied: Copied, tmp_path: Path) -> None:
        write(tmp_path / "library/three.py")
        (copied.snapshot / "copy/library").symlink_to(tmp_path / "library")

        (said,) = copied.wrong("library.three", copied.snapshot / "copy/library/three.py")

        assert "a link leads there, out of the project; name the folder in code.path" in said

    @pytest.mark.parametrize(
        ("name", "file"), [("net", "net.py"), ("pack", "pack/__init__.py"), ("pack.part.net", "pack/part/net.py")]
    )
    def test_of_a_current_folder_that_is_no_project_say_what_to_do(self, copied: Copied, name: str, file: str) -> None:
        (said,) = copied.wrong(name, write(copied.elsewhere / file))

        assert "the current folder is no project. Put a pyproject.toml into it" in said

    def test_below_it_that_another_entry_has_found_are_right(self, copied: Copied) -> None:
        assert copied.wrong("net", write(copied.elsewhere / "lib/net.py")) == []

    @pytest.mark.parametrize("name", ["launcher", "launcher.run", "__main__", "__mp_main__"])
    def test_of_the_launcher_are_none_of_the_users(self, copied: Copied, name: str) -> None:
        assert copied.wrong(name, copied.root / "one.py") == []

    def test_may_have_more_parts_in_their_names_than_their_paths(self, copied: Copied) -> None:
        assert copied.wrong("a.b.c.d.e", "/x.py") == []

    def test_are_looked_at_in_this_process(self, copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
        class Lazy(ModuleType):
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"asked for {name}")

        monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
        monkeypatch.setitem(sys.modules, "none", None)  # type: ignore[arg-type]
        made_up = ModuleType("made_up")
        made_up.__file__ = "made_up.py"
        monkeypatch.setitem(sys.modules, "made_up", made_up)
        monkeypatch.chdir(copied.root)
        check_modules(copied.code, str(copied.snapshot), str(copied.root))

        foreign_one = ModuleType("made")
        foreign_one.__file__ = str(copied.root / "made.py")
        monkeypatch.setitem(sys.modules, "made", foreign_one)
        with pytest.raises(ForeignModule, match="module made was imported from ") as raised:
            check_modules(copied.code, str(copied.snapshot), "/")
        assert isinstance(raised.value, UsageError)

    def test_are_looked_at_in_every_attempt(
        self, copied: Copied, make_run: MakeRun, runs_root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = create_run(runs_root, replace(make_run().record, id="coded", code=copied.code))
        module = ModuleType("made")
        monkeypatch.setitem(sys.modules, "made", module)
        check_provenance(run, place(1), "warn")
        module.__file__ = f"{run.storage.root}/code/12ab/copy/made.py"
        check_provenance(run, place(1), "warn")

        module.__file__ = str(copied.root / "made.py")
        with pytest.raises(ForeignModule):
            check_provenance(run, place(1, rank=1), "warn")

    def test_of_this_interpreter_are_all_installed_or_of_the_repository(self) -> None:
        code = (
            "import sys, json, lightning.pytorch, torch\nfrom launcher.node.provenance import installed, _file\n"
            "files = [file for module in list(sys.modules.values()) if (file := _file(module))]\n"
            "places = tuple(f'{one}/' for one in installed())\n"
            "print(json.dumps([file for file in files if not file.startswith(places)]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert {Path(file).parent.name for file in json.loads(done.stdout)} <= {"launcher", "node"}


def place(attempt: int, rank: int = 0) -> Place:
    return Place(
        run_dir="",
        attempt=attempt,
        rank=rank,
        world_size=2,
        local_rank=rank,
        local_world_size=2,
        node_rank=0,
        accelerator="cpu",
        main_address="",
        main_port=0,
    )


class Versions:
    """Attempts of a run, each on a target and with versions of its own."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self._patch, self.attempts = run, monkeypatch, 0

    def attempt(self, drift: Any = "warn", *, target: str = "local", python: str = "3.11.7", **packages: str) -> None:
        self.attempts += 1
        self._append(AttemptStarting(attempt=self.attempts, target=target))
        now = {"python": python, "platform": f"machine {self.attempts}", "packages": packages}
        self._patch.setattr(provenance, "versions", lambda: now)
        try:
            check_provenance(self.run, place(self.attempts), drift)
        finally:
            self._append(AttemptEnded(attempt=self.attempts, cause="infra", reason="", step=0))

    def recorded(self, attempt: int) -> Any:
        return self.run.read_json(environment_path(attempt))

    def _append(self, event: Any) -> None:
        self.run.ledger.append(event, after=self.run.ledger.refresh().version)


class TestVersions:
    @pytest.fixture
    def versions(self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Versions:
        return Versions(make_run(), monkeypatch)

    def test_are_those_of_this_interpreter(self) -> None:
        found = provenance.versions()

        assert found["python"] == platform.python_version()
        assert {"torch", "lightning", "launcher"} <= set(found["packages"])
        assert all(found["packages"].values())
        json.dumps(found)

    def test_are_written_down_by_rank_0_alone(self, versions: Versions, make_run: MakeRun) -> None:
        versions.attempt(torch="2.9")

        assert versions.recorded(1) == {"python": "3.11.7", "platform": "machine 1", "packages": {"torch": "2.9"}}
        other = make_run("other")
        check_provenance(other, place(1, rank=1), "fail")
        assert other.read_json(environment_path(1)) is None

    def test_that_are_the_same_are_not_worth_a_line(self, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
        versions.attempt(torch="2.9")
        versions.attempt("fail", torch="2.9")

        assert caplog.messages == []

    def test_that_differ_are_named(self, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
        versions.attempt(torch="2.9", numpy="1", same="1")
        versions.attempt(torch="2.10", scipy="3", same="1", python="3.12.0")

        assert caplog.messages == [
            "other versions than in attempt 1: Python 3.11.7 -> 3.12.0, numpy 1 -> not installed, "
            "scipy not installed -> 3, torch 2.9 -> 2.10"
        ]

    def test_that_differ_a_lot_are_counted(self, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
        versions.attempt(**{f"p{number:02d}": "1" for number in range(13)})
        versions.attempt(**{f"p{number:02d}": "2" for number in range(13)})

        assert caplog.messages[0].endswith("p09 1 -> 2 and 3 more")

    def test_are_held_against_the_attempt_before(self, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
        for torch in ("1", "2", "2"):
            versions.attempt(torch=torch)

        assert len(caplog.messages) == 1

    def test_of_another_target_are_another_matter(self, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
        versions.attempt(target="local", torch="1")
        versions.attempt(target="cluster", torch="2")
        assert caplog.messages == []

        versions.attempt(target="local", torch="3")

        assert caplog.messages == ["other versions than in attempt 1: torch 1 -> 3"]

    def test_end_the_attempt_if_the_spec_says_so_however_often(self, versions: Versions) -> None:
        versions.attempt("fail", torch="1")
        for _ in range(2):
            with pytest.raises(Drift, match=r"than in attempt 1: torch 1 -> 2; install .*code\.drift") as raised:
                versions.attempt("fail", torch="2")
        assert isinstance(raised.value, LauncherError)
        assert versions.recorded(3) is None

        versions.attempt("fail", torch="1")
        versions.attempt("warn", torch="2")
        versions.attempt("fail", torch="2")

    def test_compare_in_an_order_that_can_be_read(self) -> None:
        old = {"python": "1", "packages": {"b": "1", "A": "1", "c": "1"}}
        new = {"python": "2", "packages": {"b": "2", "A": "2", "c": "1"}}

        assert differences(old, new) == ["Python 1 -> 2", "A 1 -> 2", "b 1 -> 2"]


def test_an_attempt_that_trains_has_looked(launch: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `train`: versions are written down, and a changed one ends the next attempt by name."""
    boring = {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}
    spec = {"model": boring, "trainer": {"max_steps": 1}, "code": {"drift": "fail"}}
    run = launch.create(spec)
    run.ledger.append(AttemptStarting(attempt=1, target="local"), after=0)
    run.ledger.append(AttemptEnded(attempt=1, cause="infra", reason="", step=0), after=1)
    run.write_json(environment_path(1), {"python": "2.7", "packages": provenance.versions()["packages"]})

    ended = launch.drive(run)

    assert ended.state == "failed", log_of(run)
    assert "Drift: other versions than in attempt 1: Python 2.7 -> 3." in ended.reason
