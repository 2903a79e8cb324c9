"""What is left on a machine by a run on an object store."""

from pathlib import Path
from typing import Any

import pytest

from launcher.address import here
from launcher.output import store
from launcher.scratch import clear
from launcher.storage import PosixStorage

LOG = "attempts/001/logs/rank-00000.log"


class ObjectStore:
    """A folder, as far as it is not its address."""

    root = "gs://bucket/run"

    def __init__(self, folder: Path) -> None:
        self._stored = PosixStorage(folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """With a scratch folder in which there are a snapshot and a log of nine bytes."""
    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path / "scratch"))
    for name, text in (("code/12ab/model.py", "x = 1"), (LOG, "some text")):
        path = here("gs://bucket/run") / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return ObjectStore(tmp_path / "store")


def test_it_goes_when_the_output_is_stored(storage: ObjectStore) -> None:
    store(storage, LOG, 0, b"some text")

    clear(storage)

    assert not here(storage.root).exists()


def test_it_stays_while_the_output_is_not_stored_to_its_end(storage: ObjectStore) -> None:
    store(storage, LOG, 0, b"some")

    clear(storage)

    assert (here(storage.root) / LOG).read_text() == "some text"


def test_a_run_directory_on_this_machine_is_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()

    clear(PosixStorage(tmp_path))

    assert (tmp_path / "run.json").exists()
