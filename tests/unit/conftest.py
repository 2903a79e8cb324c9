"""What tests of several modules stand on."""

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's commands are fakes."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)
