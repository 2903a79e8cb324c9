"""Ranks in .venv-xla, the environment that has torch_xla; tests themselves run in the usual one."""

import sys
from pathlib import Path

import pytest
from driven import Driven

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xla)


@pytest.fixture
def here(tmp_path: Path) -> Driven:
    """DDP, in the environment of the tests."""
    return Driven(tmp_path, Path(sys.executable))


@pytest.fixture
def there(tmp_path: Path, xla_python: Path) -> Driven:
    """XLA, in its own; the same folder of runs."""
    return Driven(tmp_path, xla_python)
