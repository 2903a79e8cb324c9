"""What ranks have compiled, on an object store: it is there on the machines of the next attempt."""

import time
from pathlib import Path

import pytest

from launcher import mirror
from launcher.address import storage_at
from launcher.node.compiled import kept_programs


def test_what_a_rank_has_compiled_is_at_hand_on_the_next_machine(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PERIOD_S", 0.1)
    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path / "one"))
    folder = kept_programs(place, 3)
    assert list(folder.iterdir()) == []

    (folder / "12ab").write_bytes(b"program")
    deadline = time.monotonic() + 120
    while not storage_at(place).list("compiled/rank-00003"):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path / "two"))
    assert (kept_programs(place, 3) / "12ab").read_bytes() == b"program"
    assert list(kept_programs(place, 4).iterdir()) == []


def test_a_store_that_does_not_answer_costs_the_programs_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    monkeypatch.setenv("LAUNCHER_SCRATCH", str(tmp_path))
    monkeypatch.setattr("launcher.node.compiled.refresh", _unreachable)

    assert kept_programs(place, 0).is_dir()
    assert "compiled again: no route" in caplog.text


def _unreachable(*_: object) -> None:
    raise OSError("no route")
