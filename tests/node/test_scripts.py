"""The scripts that measure: that they judge rightly, and that a small piece of each runs."""

import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from killed import SHARED_MEMORY, Attempts, State

from launcher.checkpoints import in_order
from launcher.events import CheckpointSaved, Record
from launcher.policy import Cause
from launcher.state import Attempt, RunState

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def load(name: str) -> Any:
    """A script as a module, which specs find by its name too."""
    module_name = f"script_{Path(name).name}"
    if module_name not in sys.modules:
        spec = spec_from_loader(module_name, SourceFileLoader(module_name, str(SCRIPTS / name)))
        assert spec
        assert spec.loader
        sys.modules[module_name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


def test_exactness_finds_the_launcher_exact_and_plain_lightning_not(tmp_path: Path) -> None:
    script = load("exactness")
    killed = script.Interruption("mid-epoch", "SIGKILL", [0])

    assert script.Launched(tmp_path).cell(1, killed) == []
    assert "weights" in script.Plain(tmp_path / "plain").cell(1, killed)


def test_exactness_shows_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    script = load("exactness")

    assert [script.shown(cell) for cell in ([], ["hang", "weights", "metrics"])] == ["=", "HWM"]
    assert "2 of 3 the same to the last bit, 1 not; 1 hung" in script.summary("it", [[], ["hang", "weights"], []])
    with pytest.raises(SystemExit):
        script.parse(["--places", "nowhere"])
    assert "no such place: nowhere" in capsys.readouterr().err


def test_signals_meet_a_run_that_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("signals")
    for name, value in {"RANKS": [2], "EPOCHS": 1, "STEPS_AN_EPOCH": 30, "PLACES": {"train": 0.2}}.items():
        monkeypatch.setattr(script, name, value)

    assert script.main(trials=1, seed=0) == 0
    assert "0 of 1 epochs" in capsys.readouterr().out


def line(attempt: int, step: int, at: float, place: str = "train", rank: int = 0) -> dict[str, Any]:
    return {"attempt": attempt, "step": step, "time": at, "place": place, "rank": rank, "samples": [step]}


def test_signals_counts_what_is_lost_and_what_comes_too_late() -> None:
    script = load("signals")
    trials = {number: script.Trial(2, "one rank", 15, "train", sent_at=2.5) for number in (1, 2)}
    lines = [line(1, 0, 1.0), line(1, 1, 2.0), line(1, 2, 3.0), line(1, 3, 5.0), line(2, 2, 9.0)]
    saved = CheckpointSaved(attempt=1, step=2, epoch=0, path="", bytes=0, complete=False)
    attempts = (
        Attempt(number=1, target="local", started=0.0, first_step=0, cause=Cause.PREEMPTED),
        Attempt(number=2, target="local", started=8.0, first_step=2, cause=Cause.FINISHED),
    )

    script.judge(trials, lines, [Record(1, 4.0, saved)], RunState(attempts=attempts))

    assert (trials[1].place, trials[1].lost, trials[1].after, trials[1].mistaken) == ("train", 2, 1, "")
    assert (trials[2].place, trials[2].mistaken) == ("start-up", "finished with steps missing")


def test_signals_sees_a_sample_that_was_handed_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("signals")
    for name, value in {"EPOCHS": 2, "STEPS_AN_EPOCH": 3, "BATCH": 1}.items():
        monkeypatch.setattr(script, name, value)
    lines = [{**line(1, step, 0.0), "samples": [step % 3]} for step in range(6)]

    assert script.complete(lines, ranks=1)
    assert script.unfair_epochs(lines, ranks=1) == []
    assert script.unfair_epochs([*lines, lines[4]], ranks=1) == [1]


def test_overhead_compares_neighbours() -> None:
    script = load("bench/overhead")
    drifting = {"plain": [1.0, 2.0, 3.0], "launcher": [1.0, 3.0, 5.0]}

    assert script.ratios(drifting) == [pytest.approx(ratio) for ratio in (1.0, 2.0, 2.0)]
    assert script.spread([1.0, 1.1, 1.2]).startswith("1.100")


def test_overhead_hands_the_token_over(tmp_path: Path) -> None:
    script = load("bench/overhead")
    for side in script.SIDES:
        os.mkfifo(tmp_path / f"token-{side}")
    first, second = (script.Clock(str(tmp_path), side) for side in ("launcher", "plain"))
    rank: Any = SimpleNamespace(global_rank=0)
    os.write(second._other, b".")

    for clock in (first, second):  # the second would wait forever had the first kept the token
        clock.on_train_epoch_start(rank, None)
        clock.on_train_end(rank, None)

    assert all(len(json.loads((tmp_path / f"{side}.json").read_text())) == 1 for side in script.SIDES)


def test_torn_finds_nothing_torn_by_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    if "CI" not in os.environ and (os.geteuid() != 0 or not os.access(SHARED_MEMORY, os.W_OK)):
        pytest.skip(f"takes {SHARED_MEMORY}, and root to mount a small filesystem; in CI this fails")
    script = load("torn")

    assert script.main(trials=2, size=8, other=SHARED_MEMORY) == 0
    rows = {line[:30].strip(): line[30:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["launcher"] == ["went", "on,", "saved", "again,", "kept", "the", "checkpoint", "before"]
    assert "lost" in rows["torch.save"]
    assert "kept" in rows["Lightning, TMPDIR beside it"]


def test_torn_spreads_its_kills_over_the_save_and_somewhat_beyond() -> None:
    took_s = iter([10.0, 9.0, 50.0, 20.0])
    found = list(load("torn").instants(5, lambda: next(took_s)))

    assert found == [pytest.approx(at) for at in (1.1, 3.3, 5.5, 7.7, 19.8)]


def test_torn_counts_a_committed_checkpoint_that_was_spoilt(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, State(1))
    attempts.save()
    assert attempts.begin() == []
    attempts.save()
    newest = in_order(attempts.run.ledger.refresh())[-1]
    with Path(attempts.run.storage.root, newest.path).open("r+b") as file:
        file.truncate(1000)

    found = attempts.begin()
    assert any("though checkpoints/step-00000002-a002/checkpoint.ckpt is the newest" in problem for problem in found)
    assert "checkpoints/step-00000002-a002/checkpoint.ckpt holds step None" in found


def test_checkpoint_measures_each_method_and_the_floors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("bench/checkpoint")
    monkeypatch.setattr(script.writer, "prune", script.prune)  # which the script replaces
    measured = script.peak_memory  # starts a process for each
    monkeypatch.setattr(script, "peak_memory", lambda name, size: measured(name, size) if name == "launcher" else 0.0)
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    with warnings.catch_warnings():
        script.main([4], rounds=1)
    torch.set_num_threads(threads)
    logging.disable(disabled)

    said = capsys.readouterr().out
    assert {line[4:32].strip() for line in said.splitlines()} > script.METHODS.keys(), said
    assert said.count("goal") == len(("stall", "total", "durable", "memory", "cached", "dropped"))
    assert re.search(r"memory at its peak, to the state: (0\.9|1\.[0-3])\d x", said), said


def test_checkpoint_meets_a_goal_by_the_median(capsys: pytest.CaptureFixture[str]) -> None:
    script = load("bench/checkpoint")

    assert script.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert script.verdict("stall", "it", [1.0, 1.5, 9.0])
    assert not script.verdict("stall", "it", [1.0, 2.5, 2.5])
    assert "MISSED it: 2.50 x (middle half 1.00 - 2.50), goal 2 x" in capsys.readouterr().out


def test_checkpoint_counts_steps_that_a_save_slows_down(tmp_path: Path) -> None:
    script = load("bench/checkpoint")
    slow = threading.Event()
    slow_steps: list[float] = []

    class Stepping:
        def step(self) -> float:
            time.sleep(0.01)
            if not slow.is_set():
                return 0.1
            slow_steps.append(0.2)
            return 0.2

        def state(self) -> dict[str, Any]:
            return {}

    class Saving:
        def save(self, state: dict[str, Any]) -> None:
            slow.set()

        def wait(self) -> float:
            while len(slow_steps) < 10:
                time.sleep(0.001)
            slow.clear()
            return time.perf_counter()

    cost = script.measure(Stepping(), Saving(), tmp_path)
    assert cost.stall < 0.5
    assert 9.0 < cost.total < 12.0  # ten steps, and perhaps one more, took twice their time
    assert cost.durable_s >= 0.1
