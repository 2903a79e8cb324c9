"""Addresses: which storage is at one, how it is called, and what stands in for it on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.address import absolute, below, own, scratch, split, storage_at
from launcher.errors import LauncherError
from launcher.storage import PosixStorage


@pytest.mark.parametrize("given", ["runs/a", Path("runs/a"), "runs/a/"])
def test_a_path_is_a_folder_of_this_machine(given: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    storage = storage_at(given)

    assert isinstance(storage, PosixStorage)
    assert storage.root == absolute(given) == f"{tmp_path}/runs/a"


def test_what_is_neither_a_path_nor_an_object_store_is_refused() -> None:
    with pytest.raises(LauncherError, match=r"s3://bucket/runs: no such kind of address; expected a path or gs://"):
        storage_at("s3://bucket/runs")


@pytest.mark.parametrize("given", ["gs://", "gs:///runs"])
def test_an_address_without_a_bucket_is_refused(given: str) -> None:
    with pytest.raises(LauncherError, match="there is no bucket in this address"):
        storage_at(given)


def test_an_object_store_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.gcs_client._made", {})
    for name in ("gcsfs", "gcsfs.core"):  # another test of this process may have imported it
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(LauncherError, match=r"pip install 'launcher\[gcs\]'"):
        storage_at("gs://bucket/runs")


def test_a_path_loads_nothing_of_the_object_store_s_client() -> None:
    code = "import sys; from launcher.address import storage_at; storage_at('/tmp'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "launcher.gcs" in loaded
    assert not {"gcsfs", "fsspec", "aiohttp", "google.auth"} & set(loaded)


def test_a_run_is_below_its_folder_of_runs() -> None:
    assert below("gs://bucket/runs/", "a") == below("gs://bucket/runs", "a") == "gs://bucket/runs/a"
    assert split("gs://bucket/runs/a/") == ("gs://bucket/runs", "a")
    assert split(below(Path("/runs"), "a")) == ("/runs", "a")


class TestScratch:
    def test_is_one_for_each_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAUNCHER_SCRATCH", "/fast")

        one, other = scratch("gs://bucket/runs/a"), scratch("gs://another/runs/a")

        assert one == scratch("gs://bucket/runs/a/")
        assert one.parent == other.parent == Path("/fast")
        assert one != other
        assert one.name.startswith("a-")

    def test_is_nobody_else_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = own(tmp_path / "base/run")

        assert [one.stat().st_mode & 0o777 for one in (folder, folder.parent)] == [0o700, 0o700]
        if os.getuid() == 0:
            os.chown(folder, 12345, -1)
        else:
            monkeypatch.setattr("launcher.address.os.getuid", lambda: 12345)
        with pytest.raises(LauncherError, match="LAUNCHER_SCRATCH"):
            own(tmp_path / "base/run")
