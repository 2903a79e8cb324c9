"""Fixtures of the tests that train."""

from pathlib import Path

import pytest
from forked import Training


@pytest.fixture
def launch(tmp_path: Path) -> Training:
    return Training(tmp_path)
