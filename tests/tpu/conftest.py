"""A cloud with hosts for all tests of this folder, and one that is an API alone, which takes no root."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import labs
import object_store
import pytest

from tpu.cloud import Cloud, Settings
from tpu.cloud.cloud import state_folder
from tpu.cloud.packages import NEEDED

STATE = state_folder() / "tests"
GRACE_S = 3.0
REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("LAUNCHER_DATA") or REPOSITORY / "data").resolve()
# Hosts run this Python, and what is installed for it, or that with torch_xla.
PYTHON = {folder for folder in (sys.prefix, sys.base_prefix) if not folder.startswith("/usr")}
XLA = {str(folder) for folder in (REPOSITORY / ".venv-xla",) if folder.is_dir()}
SHARED = tuple(sorted({str(DATA), *PYTHON, *XLA}))
SETTINGS = Settings(create_seconds=0.2, delete_seconds=0.2, queue_seconds=0.2, grace_seconds=GRACE_S, shared=SHARED)
ALONE = Settings(hosts="none", create_seconds=0.2, delete_seconds=0.2, queue_seconds=0.2, operation_seconds=0.05)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.tpu)


@pytest.fixture(scope="session")
def possible() -> None:
    """Hosts take root, and an sshd."""
    if reason := NEEDED.obstacle():
        labs.impossible(f"NOT TESTED: hosts of a fake Cloud TPU; {reason}")


@pytest.fixture(scope="session")
def make(possible: None) -> Callable[[str], Cloud]:
    DATA.mkdir(parents=True, exist_ok=True)  # it is shared
    return labs.by_letter(Cloud, STATE)


@pytest.fixture(scope="session")
def cloud(make: Callable[[str], Cloud]) -> Iterator[Cloud]:
    """With hosts."""
    one = make("a")
    try:
        one.up(SETTINGS)
        yield one
    finally:
        one.down(wipe=True)


@pytest.fixture
def api(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """Without; a test may have settings of its own, by its parameter."""
    one = Cloud("api", tmp_path)
    try:
        one.up(replace(ALONE, **getattr(request, "param", {})))
        yield one
    finally:
        one.down(wipe=True)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; its public one is beside it."""
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def runs(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder of runs on an object store that this machine and all hosts reach."""
    with (
        object_store.emulator(tmp_path_factory.mktemp("emulator"), cloud.address),
        pytest.MonkeyPatch.context() as patch,
    ):
        from launcher.gcs_client import connection

        patch.setenv("LAUNCHER_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        connection().mkdir("runs", acl=None, default_acl=None)
        yield "gs://runs/tests"
