"""The snapshot of the user's code: which files, how large, what git says, and a copy that is whole or not there."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from launcher import snapshot
from launcher.errors import LauncherError, UsageError
from launcher.layout import code_folder, diff_path
from launcher.record import Code
from launcher.snapshot import digest_of, staged
from launcher.tree import Source, in_words, largest, survey

MANY = 1 << 30
ODD = ["ä ö.py", 'quote".py', "tab\t.py", "back\\slash.py", "line\nend.py", "%s.py", " lead", "snow-☃.txt", ":(odd).py"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    return root


def write(root: Path, *names: str, text: str = "x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(folder: Path, *arguments: str) -> str:
    user = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *user, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def committed(root: Path, *names: str) -> str:
    """A repository with these files; its commit."""
    write(root, *names)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return git(root, "rev-parse", "HEAD").strip()


def look(*folders: Path, **options: Any) -> list[Source]:
    run_dir = options.pop("run_dir", folders[0].parent / "runs/run")
    return survey(folders, **{"max_bytes": MANY, "run_dir": run_dir, **options})


def files(*folders: Path, **options: Any) -> list[str]:
    (source,) = look(*folders, **options)
    return list(source.files)


def copied(run_dir: Path, *folders: Path, **options: Any) -> tuple[Code, Path]:
    """A published snapshot, and where it is."""
    with staged(look(*folders, run_dir=run_dir, **options), run_dir, [], str(folders[0])) as stage:
        stage.publish()
    return stage.code, run_dir / code_folder(stage.code)


class TestFilesOfGit:
    def test_are_tracked_ones_and_new_ones_that_are_not_ignored(self, project: Path) -> None:
        committed(project, "kept.py", "gone.py", "deep/er/kept.py")
        (project / "gone.py").unlink()
        write(project, ".gitignore", text="*.bin\n/out/\n")
        write(project, "new.py", "weights.bin", "out/log", "deep/out/kept")

        assert files(project) == [".gitignore", "deep/er/kept.py", "deep/out/kept", "kept.py", "new.py"]

    def test_may_have_any_name(self, project: Path) -> None:
        committed(project, *ODD[::2])
        write(project, *ODD[1::2])

        assert files(project) == sorted(ODD)

    def test_are_those_below_when_the_root_is_a_folder_of_the_repository(self, project: Path) -> None:
        committed(project, "inner/one.py", "other.py")
        write(project, "inner/two.py")

        assert files(project / "inner") == ["one.py", "two.py"]

    def test_caches_and_environments_are_none_though_nothing_ignores_them(self, project: Path) -> None:
        committed(project, "one.py")
        write(project, "__pycache__/one.pyc", "p/__pycache__/x.pyc", "env/pyvenv.cfg", "env/lib/p.py", "environ/p.py")

        assert files(project) == ["environ/p.py", "one.py"]
        assert look(project)[0].new == 1

    def test_those_of_repositories_within_belong_to_them(self, project: Path) -> None:
        committed(project.parent / "library", "lib.py")
        committed(project, "one.py")
        git(project, "submodule", "--quiet", "add", "../library", "vendor/library")
        committed(project / "scratch", "idea.py")
        write(project, "vendor/library/new.py")

        assert files(project) == [
            ".gitmodules",
            "one.py",
            "scratch/idea.py",
            "vendor/library/lib.py",
            "vendor/library/new.py",
        ]

    def test_are_found_whatever_repository_the_environment_names(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = committed(project, "one.py")
        committed(project.parent / "other", "two.py")
        monkeypatch.setenv("GIT_DIR", str(project.parent / "other/.git"))
        monkeypatch.setenv("GIT_INDEX_FILE", str(project.parent / "other/.git/index"))

        (source,) = look(project)

        assert (list(source.files), source.commit, source.new) == (["one.py"], commit, 0)

    def test_that_git_refuses_to_read_are_an_error_with_its_remedy(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        committed(project, "one.py")
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")

        with pytest.raises(UsageError, match=rf"{project}: .*dubious ownership.*safe\.directory"):
            look(project)


class TestFilesWithoutGit:
    def test_are_all_but_hidden_ones_caches_and_environments(self, project: Path) -> None:
        write(project, "one.py", "deep/er/two.py", "no suffix", "env/lib/site.py", "env/pyvenv.cfg", ".env", ".idea/x")
        write(project, "__pycache__/one.pyc", "deep/__pycache__/two.pyc", "web/node_modules/x.js", "web/app.js")

        assert files(project) == ["deep/er/two.py", "no suffix", "one.py", "web/app.js"]

    def test_are_those_too_of_a_folder_that_a_repository_ignores(self, project: Path) -> None:
        committed(project, "one.py")
        write(project, ".gitignore", text="mine/\n")
        write(project, "mine/job.yaml", "mine/module.py")

        assert files(project / "mine") == ["job.yaml", "module.py"]

    def test_are_those_too_of_a_repository_where_there_is_no_git(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        committed(project, "one.py")
        monkeypatch.setenv("PATH", str(project))

        (source,) = look(project)

        assert list(source.files) == ["one.py"]
        assert (source.commit, source.changed, source.new) == (None, (), 0)

    def test_pipes_and_sockets_are_none(self, project: Path) -> None:
        write(project, "one.py")
        os.mkfifo(project / "pipe")

        assert files(project) == ["one.py"]


@pytest.mark.parametrize("of_git", [True, False])
class TestLeftOut:
    def test_is_what_the_spec_excludes(self, project: Path, of_git: bool) -> None:
        names = ("a.bin", "deep/b.bin", "figures/one.png", "other/figures/one.png", "keep/x.py", "keep.bin.py")
        self._make(project, of_git, *names)

        assert files(project, exclude=["*.bin", "./figures/", "keep/*"]) == ["keep.bin.py", "other/figures/one.png"]

    def test_is_the_folder_of_all_runs(self, project: Path, of_git: bool) -> None:
        self._make(project, of_git, "one.py", "runs/old/run.json", "runs/notes", "runs-of-mine.py")

        (source,) = look(project, run_dir=project / "runs/new")

        assert list(source.files) == ["one.py", "runs-of-mine.py"]
        assert len(source.changed) + source.new == 0

    def test_is_each_run_where_the_project_itself_is_that_folder(self, project: Path, of_git: bool) -> None:
        self._make(project, of_git, "one.py", "old/run.json", "old/code/x.py", "new/code/x.py", "configs/one.json")

        assert files(project, run_dir=project / "new") == ["configs/one.json", "one.py"]

    def _make(self, root: Path, of_git: bool, *names: str) -> None:
        if of_git:
            committed(root, *names)
        else:
            write(root, *names)


class TestSeveralTrees:
    def test_one_within_another_is_copied_once(self, project: Path) -> None:
        committed(project, "jobs/job.yaml", "src/one.py")

        assert [one.root for one in look(project / "jobs", project, project / "src")] == [project]

    def test_one_that_the_other_ignores_is_a_tree_of_its_own(self, project: Path) -> None:
        committed(project, "one.py")
        write(project, ".gitignore", text="build/\n")
        write(project, "build/made.py")

        first, second = look(project, project / "build")

        assert (first.root, list(first.files)) == (project, [".gitignore", "one.py"])
        assert (second.root, list(second.files), second.commit) == (project / "build", ["made.py"], None)

    def test_the_first_that_is_named_comes_first_and_has_its_own_commit(self, project: Path) -> None:
        outer = committed(project, "one.py")
        inner = committed(project / "inner", "two.py")

        found = look(project / "inner", project)

        assert [(one.root, one.commit) for one in found] == [(project / "inner", inner), (project, outer)]

    def test_each_has_a_folder_of_its_own_that_a_path_may_hold(self, tmp_path: Path) -> None:
        roots = [tmp_path / name for name in ("a/src", "b/src", "c/src_", "d/.hidden", "e/x:y z")]
        for root in roots:
            write(root, "one.py")

        folders = [one.folder for one in look(*roots)]

        assert folders[0] == "src"
        assert len(set(folders)) == len(roots)
        assert not [one for one in folders if set(one) & set(":/ ") or one.startswith(".")]

    def test_a_folder_that_does_not_exist_is_an_error(self, project: Path) -> None:
        with pytest.raises(UsageError, match=rf"{project}/scr: no such folder, .*code\.path"):
            look(project, project / "scr")


class TestTooLarge:
    def test_says_what_is_large_and_what_to_do_before_anything_is_copied(self, project: Path) -> None:
        committed(project, "one.py")
        write(project, "data/raw/a/train.bin", text="x" * 3_000_000)
        write(project, "notes.txt", text="x" * 1_000_000)

        with pytest.raises(UsageError) as raised:
            look(project, max_bytes=2 << 20)

        said = str(raised.value)
        assert said.startswith(
            f"{project}: the code is to be copied into the run directory, but these are at least 3.81"
        )
        assert "and code.max_size is 2M. The largest: data/raw/a/train.bin (2.861M), notes.txt (977K). Leave" in said
        for way in (".gitignore or code.exclude", "a folder of their own with a pyproject.toml", "snapshot: false"):
            assert way in said
        assert "\n" not in said
        assert not (project.parent / "runs").exists()

    def test_all_trees_count(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write(tmp_path / name, "x.py", text="x" * 600)

        assert len(look(tmp_path / "one", tmp_path / "two", max_bytes=1200)) == 2
        with pytest.raises(UsageError, match=r"(?!.*gitignore).*at least 1\.17K, and code\.max_size is 1\.17K"):
            look(tmp_path / "one", tmp_path / "two", max_bytes=1199)

    def test_counting_ends_soon_where_there_is_far_too_much(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(project, *(f"{number:02d}" for number in range(20)), text="x" * 10)
        monkeypatch.setattr("launcher.tree.GRACE_S", -1.0)

        with pytest.raises(UsageError, match=r"at least 0\.0195K"):
            look(project, max_bytes=15)

    def test_what_is_left_out_does_not_count(self, project: Path) -> None:
        committed(project, "one.py")
        write(project, ".gitignore", text="*.bin")
        write(project, "a.bin", "b.txt", text="x" * 5000)

        assert files(project, max_bytes=1000, exclude=["*.txt"]) == [".gitignore", "one.py"]

    def test_the_largest_are_named_by_what_makes_them_large(self) -> None:
        sizes = {"a/b/c": 95, "a/d": 5, "e/f": 50, "e/g": 40, "h": 30, "i": 29, "j": 0}

        assert largest(sizes) == [("a/b/c", 95), ("e/", 90), ("h", 30)]
        assert largest({"only": 0}) == [("only", 0)]
        assert largest({}) == []

    @pytest.mark.parametrize(
        ("size", "words"), [(0, "0K"), (512, "0.5K"), (100 << 20, "100M"), (3 << 29, "1.5G"), (2 << 40, "2T")]
    )
    def test_sizes_are_in_units_of_the_spec(self, size: int, words: str) -> None:
        assert in_words(size) == words


class TestCopy:
    def test_has_every_file_with_its_content_read_only(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py", "deep/er/data.bin", *ODD)
        (project / "deep/er/data.bin").write_bytes(bytes(range(256)) * 9000)
        (project / "one.py").chmod(0o700)

        code, copy = copied(tmp_path / "runs/run", project)

        assert copy == tmp_path / f"runs/run/code/{code.digest}"
        assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == {
            Path("project", name) for name in ("one.py", "deep/er/data.bin", *ODD)
        }
        assert (copy / "project/deep/er/data.bin").read_bytes() == (project / "deep/er/data.bin").read_bytes()
        assert stat.S_IMODE((copy / "project/one.py").stat().st_mode) == 0o555
        assert stat.S_IMODE((copy / "project/deep/er/data.bin").stat().st_mode) == 0o444
        shutil.rmtree(copy)  # as any user could

    def test_is_called_by_its_content(self, project: Path) -> None:
        committed(project, "one.py", "two.py")

        def digest() -> str:
            return digest_of(look(project))

        first = digest()
        os.utime(project / "one.py", (0, 0))
        assert digest() == first
        (project / "one.py").chmod(0o755)
        executable = digest()
        (project / "one.py").chmod(0o644)
        write(project, "one.py", text="y")
        changed = digest()
        write(project, "one.py")
        (project / "two.py").rename(project / "three.py")
        renamed = digest()
        (project / "three.py").rename(project / "two.py")
        (project / "more.py").symlink_to("one.py")
        linked = digest()
        (project / "more.py").unlink()

        assert len({first, executable, changed, renamed, linked}) == 5
        assert digest() == first

    def test_is_called_as_it_was_planned(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py", "deep/two.py")
        (project / "link.py").symlink_to("one.py")
        planned = digest_of(look(project))

        assert not (tmp_path / "runs").exists()
        assert copied(tmp_path / "runs/run", project)[0].digest == planned

    def test_a_file_that_vanishes_meanwhile_is_not_in_it(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py", "two.py")
        sources = look(project)
        (project / "two.py").unlink()

        with staged(sources, tmp_path / "runs/run", [], "") as stage:
            assert [path.name for path in stage.folder.rglob("*.py")] == ["one.py"]
        assert stage.code.digest == digest_of(look(project))

    def test_a_file_that_cannot_be_read_is_named(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py")
        sources = look(project)
        (project / "one.py").unlink()
        (project / "one.py").mkdir()

        with (
            pytest.raises(UsageError, match=rf"{project}/one\.py: .*cannot be read: Is a directory; .*code\.exclude"),
            staged(sources, tmp_path / "runs/run", [], ""),
        ):
            pass
        assert not (tmp_path / "runs").exists()

    def test_that_is_not_published_leaves_nothing(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py")
        (tmp_path / "there").mkdir()

        with staged(look(project), tmp_path / "there/runs/run", [], "") as stage:
            assert (stage.folder / "project/one.py").is_file()

        assert list((tmp_path / "there").iterdir()) == []

    def test_that_is_killed_leaves_nothing_under_its_name(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py", "two.py", "three.py")
        code = (
            "import os, sys; from pathlib import Path; from launcher import snapshot, tree\n"
            "project, run_dir = map(Path, sys.argv[1:])\n"
            "sources = tree.survey([project], max_bytes=10**6, run_dir=run_dir)\n"
            "snapshot._publish = lambda *_: os._exit(9)\n"
            "with snapshot.staged(sources, run_dir, [], '') as stage: stage.publish()\n"
        )
        done = subprocess.run([sys.executable, "-c", code, project, tmp_path / "runs/run"], check=False)

        assert done.returncode == 9
        assert [path.name.startswith(".") for path in (tmp_path / "runs/run/code").iterdir()] == [True]
        made, copy = copied(tmp_path / "runs/run", project)
        assert sorted(path.name for path in (copy / "project").iterdir()) == ["one.py", "three.py", "two.py"]
        assert copied(tmp_path / "runs/run", project) == (made, copy), "a second time, over what is there"

    @pytest.mark.parametrize("place", ["a file/runs/run", "/proc/runs/run"])
    def test_that_cannot_be_written_says_what_to_do(self, project: Path, tmp_path: Path, place: str) -> None:
        committed(project, "one.py")
        (tmp_path / "a file").touch()

        with (
            pytest.raises(LauncherError, match=r"cannot write the run directory .*/runs/run: .*--runs-root"),
            staged(look(project), tmp_path / place, [], ""),
        ):
            pass


class TestLinks:
    @pytest.mark.parametrize("absolute", [True, False])
    def test_within_the_tree_stay_links_within_the_copy(self, project: Path, tmp_path: Path, absolute: bool) -> None:
        write(project, "src/one.py", "deep/er/two.py")
        (project / "deep/file.py").symlink_to(project / "src/one.py" if absolute else "../src/one.py")
        (project / "deep/folder").symlink_to(project / "src" if absolute else "../src")
        (project / "nowhere").symlink_to("gone/for/good")

        _, copy = copied(tmp_path / "runs/run", project)

        shutil.rmtree(project)
        for name in ("deep/file.py", "deep/folder"):
            assert (copy / "project" / name).is_symlink()
            assert (copy / "project" / name).resolve().is_relative_to(copy.resolve())
        assert (copy / "project/deep/folder/one.py").read_text() == "x"
        assert str((copy / "project/nowhere").readlink()) == "gone/for/good"

    def test_to_a_file_outside_become_that_file_and_count(self, project: Path, tmp_path: Path) -> None:
        write(tmp_path, "shared.py", text="x" * 2000)
        write(project, "one.py")
        (project / "shared.py").symlink_to("../shared.py")

        _, copy = copied(tmp_path / "runs/run", project)

        assert not (copy / "project/shared.py").is_symlink()
        assert (copy / "project/shared.py").read_text() == "x" * 2000
        with pytest.raises(UsageError, match=r"shared\.py \(1\.95K\)"):
            look(project, max_bytes=1999)

    def test_to_a_file_that_is_left_out_become_that_file(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py")
        write(project, ".gitignore", text="made.py")
        write(project, "made.py", text="made")
        (project / "link.py").symlink_to("made.py")

        _, copy = copied(tmp_path / "runs/run", project)

        assert not (copy / "project/link.py").is_symlink()
        assert (copy / "project/link.py").read_text() == "made"

    def test_to_a_folder_outside_still_lead_there(self, project: Path, tmp_path: Path) -> None:
        write(tmp_path, "large/data.bin", text="x" * 5000)
        write(project, "one.py")
        (project / "data").symlink_to("../large")

        _, copy = copied(tmp_path / "runs/run", project, max_bytes=100)

        assert (copy / "project/data").readlink() == tmp_path / "large"


class TestCommitAndDiff:
    def test_make_the_tracked_files_again(self, project: Path, tmp_path: Path) -> None:
        commit = committed(project, "same.py", "edited.py", "staged.py", "gone.py", "moved.py", "blob", "tool", *ODD)
        write(project, "edited.py", "staged.py", "ä ö.py", ":(odd).py", text="changed\r\n")
        git(project, "add", "staged.py")
        (project / "gone.py").unlink()
        git(project, "mv", "moved.py", "elsewhere.py")
        (project / "blob").write_bytes(bytes(range(256)))
        (project / "tool").chmod(0o755)
        write(project, "new.py")
        for option in ("diff.noprefix=true", "color.ui=always", "diff.external=false", "diff.relative=true"):
            git(project, "config", *option.split("="))

        code, copy = copied(tmp_path / "runs/run", project)

        (tree,) = code.trees
        assert (tree.path, tree.commit, tree.changed, code.diff) == (str(project), commit, 10, True)
        again = tmp_path / "again"
        git(tmp_path, "clone", "-q", str(project), str(again))
        git(again, "apply", str(tmp_path / "runs/run" / diff_path(code)))
        assert contents(again) | {"new.py": ("x", 0)} == contents(copy / "project")

    def test_of_a_folder_of_the_repository_are_of_that_folder(self, project: Path, tmp_path: Path) -> None:
        commit = committed(project, "inner/one.py", "other.py")
        write(project, "inner/one.py", "other.py", "new.py", text="changed")

        code, _ = copied(tmp_path / "runs/run", project / "inner")

        assert (code.trees[0].commit, code.trees[0].changed) == (commit, 1)
        diff = (tmp_path / "runs/run" / diff_path(code)).read_text()
        assert "inner/one.py" in diff
        assert "other.py" not in diff

    def test_of_several_trees_are_in_one_file(self, tmp_path: Path) -> None:
        roots = [tmp_path / name for name in ("one", "two")]
        commits = [committed(root, f"{root.name}.py") for root in roots]
        for root in roots:
            write(root, f"{root.name}.py", text="changed")

        code, _ = copied(tmp_path / "runs/run", *roots)

        assert [tree.commit for tree in code.trees] == commits
        diff = (tmp_path / "runs/run" / diff_path(code)).read_text()
        assert diff.count("diff --git") == 2

    def test_of_many_files_fit_into_command_lines(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [f"{number}.py" for number in range(7)]
        committed(project, *names)
        write(project, *names, text="changed")
        monkeypatch.setattr(snapshot, "_BATCH", 3)

        code, _ = copied(tmp_path / "runs/run", project)

        assert (tmp_path / "runs/run" / diff_path(code)).read_text().count("diff --git") == 7

    def test_leave_out_what_the_copy_leaves_out(self, project: Path, tmp_path: Path) -> None:
        committed(project, "one.py", "weights.bin", "runs/notes")
        write(project, "weights.bin", "runs/notes", "new.bin", text="changed")

        code, _ = copied(project / "runs/run", project, exclude=["*.bin"])

        assert (code.trees[0].changed, code.diff) == (0, False)

    def test_of_a_clean_tree_are_a_commit_alone(self, project: Path, tmp_path: Path) -> None:
        commit = committed(project, "one.py")

        code, copy = copied(tmp_path / "runs/run", project)

        assert (code.trees[0].commit, code.trees[0].changed, code.diff) == (commit, 0, False)
        assert [path.name for path in copy.parent.iterdir()] == [code.digest]

    def test_before_the_first_commit_all_files_are_new(self, project: Path, tmp_path: Path) -> None:
        git(project, "init", "-q")
        write(project, "one.py", "two.py")
        git(project, "add", "one.py")

        code, _ = copied(tmp_path / "runs/run", project)

        assert (code.trees[0].commit, code.trees[0].changed, code.diff) == (None, 2, False)


def contents(root: Path) -> dict[str, tuple[str, int]]:
    """Text of each file, and whether it may be executed."""
    paths = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.relative_to(root).parts)
    return {
        str(path.relative_to(root)): (path.read_bytes().decode("latin-1"), path.stat().st_mode & 0o100)
        for path in paths
    }


class TestImportPath:
    def code(self, *live: Path | str, workdir: Path | str = "/", roots: list[Path]) -> Code:
        return snapshot.describe(look(*roots), "DIGEST", list(map(str, live)), str(workdir), diff=False)

    def test_folders_of_the_tree_are_those_of_the_copy_and_others_stay(self, project: Path) -> None:
        write(project, "jobs/job.yaml", "src/deep/er/one.py")
        live = (project / "jobs", project, "/outside", project / "src/deep", project / "nothing here")

        code = self.code(*live, workdir=project / "src", roots=[project])

        expected = ("project/jobs", "project", "/outside", "project/src/deep", str(project / "nothing here"))
        assert code.import_path == expected
        assert code.workdir == "project/src"
        assert snapshot.import_path(code, "/run/code/X")[:3] == [
            "/run/code/X/project/jobs",
            "/run/code/X/project",
            "/outside",
        ]

    def test_a_working_directory_outside_has_no_place(self, project: Path) -> None:
        write(project, "one.py")

        assert self.code(workdir=project.parent, roots=[project]).workdir is None

    def test_it_is_found_through_links(self, project: Path, tmp_path: Path) -> None:
        write(project, "src/one.py")
        (tmp_path / "link").symlink_to(project)

        assert self.code(tmp_path / "link/src", roots=[tmp_path / "link"]).import_path == ("project/src",)

    def test_of_two_trees_the_inner_one_is_taken(self, project: Path) -> None:
        committed(project, "one.py")
        committed(project / "inner", "src/two.py")

        code = self.code(project / "inner/src", project, roots=[project, project / "inner"])

        assert code.import_path == ("inner/src", "project")

    def test_folders_on_the_interpreter_s_path_are_added(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(project, "src/one.py", "env/pyvenv.cfg", "env/lib/package.py")
        live = [str(project / "env/lib"), str(project / "src"), "", str(project.parent)]
        monkeypatch.setattr(sys, "path", [*sys.path, *live])

        assert self.code(project, roots=[project]).import_path == ("project", "project/src")

    def test_so_are_those_that_links_on_it_lead_to(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(project, "src/pack/__init__.py")
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "site-packages/pack").symlink_to(project / "src/pack")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])

        assert self.code(project, roots=[project]).import_path == ("project", "project/src")

    def test_so_are_those_that_setuptools_finders_lead_to(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(project, "src/one/__init__.py", "lib/two.py", "spaces/ns/part/__init__.py", "odd/called.py", "ns2/name/x")
        module = ModuleType("__editable___project_0_1_finder")
        finder = type("_EditableFinder", (), {"__module__": module.__name__})
        targets = {"one": "src/one", "two": "lib/two", "ns.part": "spaces/ns/part", "other": "odd/called", "z": "/z"}
        module.MAPPING = {name: str(project / target) for name, target in targets.items()}  # type: ignore[attr-defined]
        module.NAMESPACES = {"name": [str(project / "ns2/name")]}  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])

        code = self.code("/first", roots=[project])

        assert code.import_path == ("/first", "project/src", "project/lib", "project/spaces", "project/ns2")
