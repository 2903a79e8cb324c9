"""Ranks in .venv-xla, the environment that has torch_xla; tests themselves run in the usual one."""

import os
import sys
from pathlib import Path

import pytest
from driven import Driven

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-xla"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xla)


@pytest.fixture(scope="session")
def python() -> Path:
    """Of the environment."""
    if not (ENVIRONMENT / "requirements.sha256").exists():
        said = "NOT TESTED: trainer.strategy: xla; scripts/setup-xla makes .venv-xla, which it needs"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return ENVIRONMENT / "bin/python"


@pytest.fixture
def here(tmp_path: Path) -> Driven:
    """DDP, in the environment of the tests."""
    return Driven(tmp_path, Path(sys.executable))


@pytest.fixture
def there(tmp_path: Path, python: Path) -> Driven:
    """XLA, in its own; the same folder of runs."""
    return Driven(tmp_path, python)
