"""The snapshot of the user's code as one archive, and unpacked again."""

import os
from pathlib import Path

import pytest

from launcher.address import here, storage_at
from launcher.layout import code_archive, code_home
from launcher.record import Code
from launcher.snapshot import staged, unpack
from launcher.tree import survey


@pytest.fixture
def stored(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Code, dict[str, object]]:
    """A published snapshot, and what is in it; the scratch folder it was made in is gone, as on another machine."""
    project = tmp_path / "project"
    (project / "deep").mkdir(parents=True)
    (project / "deep/module.py").write_text("x = 1\n")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    (project / "naïve 🚀.py").write_text("")
    (project / "link").symlink_to("deep")
    (project / "outside").symlink_to("/usr")
    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path / "first"))
    sources = survey([project], max_bytes=1 << 20, run_dir=place)
    with staged(sources, place, [str(project)], str(project)) as stage:
        assert storage_at(place).files("") == {}
        stage.publish()
    made = contents(Path(code_home(place, stage.code)))
    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path / "second"))
    return stage.code, made


def contents(folder: Path) -> dict[str, object]:
    return {
        str(one.relative_to(folder)): os.readlink(one)  # noqa: PTH115 - as it is stored
        if one.is_symlink()
        else (one.read_bytes(), one.stat().st_mode & 0o777)
        for one in folder.rglob("*")
        if one.is_symlink() or one.is_file()
    }


def test_is_unpacked_with_modes_and_links_as_it_was(place: str, stored: tuple[Code, dict[str, object]]) -> None:
    code, made = stored

    unpack(f"{place}/{code_archive(code)}")

    assert contents(Path(code_home(place, code))) == made
    assert made["project/link"] == "deep"
    assert made["project/run.sh"] == (b"#!/bin/sh\n", 0o555)


def test_is_unpacked_once(place: str, stored: tuple[Code, dict[str, object]]) -> None:
    code, _ = stored
    unpack(f"{place}/{code_archive(code)}")
    storage_at(place).delete(code_archive(code))

    unpack(f"{place}/{code_archive(code)}")


def test_is_whole_or_not_there(
    place: str, stored: tuple[Code, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, made = stored
    with monkeypatch.context() as failing:
        failing.setattr("launcher.snapshot._sync_all", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unpack(f"{place}/{code_archive(code)}")
    assert not Path(code_home(place, code)).exists()
    assert list((here(place) / "code").iterdir()) == []

    unpack(f"{place}/{code_archive(code)}")
    assert contents(Path(code_home(place, code))) == made


def test_of_a_run_directory_that_was_copied_here_lies_there_as_a_folder(
    place: str, stored: tuple[Code, dict[str, object]]
) -> None:
    code, _ = stored
    storage = storage_at(place)
    storage.delete(code_archive(code))
    storage.create(f"code/{code.digest}/project/deep/module.py", b"x = 2\n")

    unpack(f"{place}/{code_archive(code)}")

    assert (Path(code_home(place, code)) / "project/deep/module.py").read_bytes() == b"x = 2\n"


def test_that_is_nowhere_is_an_error(place: str, stored: tuple[Code, dict[str, object]]) -> None:
    code, _ = stored
    storage_at(place).delete(code_archive(code))

    with pytest.raises(FileNotFoundError):
        unpack(f"{place}/{code_archive(code)}")
