"""An object store on this machine, one for all tests here."""

import os
import uuid
from collections.abc import Iterator

import object_store
import pytest

HERE = os.path.dirname(__file__)  # noqa: PTH120 - compared with strings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.gcs)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL; also in the environment, where gcsfs looks for it."""
    with object_store.emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


@pytest.fixture(scope="session")
def bucket(emulator: str) -> str:
    from launcher.gcs_client import connection

    connection().mkdir("launcher-tests", acl=None, default_acl=None)
    return "launcher-tests"


@pytest.fixture
def place(bucket: str) -> str:
    """An address below which there is nothing."""
    return f"gs://{bucket}/{uuid.uuid4().hex}"
