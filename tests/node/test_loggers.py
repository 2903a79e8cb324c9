"""Loggers over many attempts: one curve, no step twice, none missing."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Training, log_of
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing import event_accumulator, plugin_event_multiplexer
from toys import Classifier, NoisyData, Signal

from launcher.node.curves import Curves
from launcher.node.loggers import build_loggers, identity
from launcher.run import Run
from launcher.runs import open_run

BOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}
TABLE = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
MakeRun = Callable[..., Run]
Curve = list[tuple[int, float]]


class Attempt:
    """What one attempt logs; it dies by being forgotten: nothing is closed."""

    clock = 0
    """How far the clock is ahead, in seconds: one more for each attempt, for which it would have to wait otherwise."""

    def __init__(self, run: Run, mark: Any, *described: Mapping[str, Any]) -> None:
        Attempt.clock += 1
        built = build_loggers([dict(one) for one in described or (BOARD, TABLE)], run.storage.root)
        assert isinstance(built, list)
        self.loggers, self.curves = built, Curves(built, run)
        self.curves.rewind(mark)

    def log(self, steps: range, offset: float = 0.0, **more: float) -> None:
        for step in steps:
            for logger in self.loggers:
                logger.log_metrics({"loss": step + offset, **more}, step)

    def die(self) -> None:
        """After all of it has reached the disk, which is worse for the next attempt than if it had not."""
        for logger in self.loggers:
            logger.save()


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + Attempt.clock)


def scalars(folder: Path) -> dict[str, Curve]:
    """As TensorBoard's own reader finds them when it starts now."""
    reader = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.SCALARS: 0})
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def board_of(run: Run) -> Path:
    return Path(run.storage.root, "tensorboard")


def table_of(run: Run) -> Path:
    return Path(run.storage.root, "csv/metrics.csv")


def line(steps: range, offset: float = 0.0) -> Curve:
    return [(step, step + offset) for step in steps]


def assert_one_curve(run: Run, steps: range) -> None:
    assert scalars(board_of(run))["loss"] == line(steps)
    assert [(int(row["step"]), float(row["loss"])) for row in rows(table_of(run))] == line(steps)


@pytest.mark.usefixtures("fast_clock")
class TestCurves:
    def test_what_was_logged_after_the_mark_is_gone(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(10))
        mark = first.curves.mark()
        first.log(range(10, 18), offset=100, odd=1)
        first.die()

        second = Attempt(run, mark)
        assert_one_curve(run, range(10))
        assert list(rows(table_of(run))[0]) == ["loss", "step"]

        second.log(range(10, 13))
        second.die()
        assert_one_curve(run, range(13))
        assert list(scalars(board_of(run))) == ["loss"]

    def test_five_attempts_of_which_some_take_no_checkpoint(self, make_run: MakeRun) -> None:
        run, mark, at = make_run(), None, 0
        for kept in (4, 0, 3, 0, 5):
            attempt = Attempt(run, mark)
            attempt.log(range(at, at + kept))
            if kept:
                at, mark = at + kept, attempt.curves.mark()
            attempt.log(range(at, at + 3), offset=100)
            attempt.die()

        Attempt(run, mark)
        assert_one_curve(run, range(12))

    def test_an_older_mark_than_the_newest_can_be_taken(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(3))
        older = first.curves.mark()
        first.log(range(3, 6), offset=100, extra=1)
        second = Attempt(run, first.curves.mark())
        second.log(range(6, 9), offset=100)
        second.curves.mark()

        third = Attempt(run, older)
        third.log(range(3, 5))
        third.die()
        assert_one_curve(run, range(5))

    def test_several_values_of_one_step_before_and_after_the_mark(self, make_run: MakeRun) -> None:
        """As at an epoch's end, and in a validation that is repeated: the step says nothing about where to cut."""
        run = make_run()
        first = Attempt(run, None)
        first.log(range(10))
        first.loggers[0].log_metrics({"val": 1.0}, 9)
        first.loggers[0].log_metrics({"images": 1.0}, 640)
        mark = first.curves.mark()
        first.loggers[0].log_metrics({"val": 2.0, "loss": 100.0}, 9)
        first.die()

        second = Attempt(run, mark)
        second.log(range(10, 12))
        second.loggers[0].log_metrics({"val": 3.0}, 9)
        second.die()
        assert scalars(board_of(run)) == {"loss": line(range(12)), "val": [(9, 1.0), (9, 3.0)], "images": [(640, 1.0)]}

    def test_nothing_is_left_when_an_attempt_starts_from_the_beginning(self, make_run: MakeRun) -> None:
        run = make_run()
        for _ in range(2):
            killed = Attempt(run, None)
            killed.log(range(5), offset=100, odd=1)
            killed.die()

        last = Attempt(run, None)
        assert scalars(board_of(run)) == {}
        assert rows(table_of(run)) == []
        last.log(range(3))
        last.die()
        assert_one_curve(run, range(3))
        assert list(scalars(board_of(run))) == ["loss"]

    @pytest.mark.parametrize("through", ["json", "torch"])
    def test_a_mark_is_plain_values(self, make_run: MakeRun, tmp_path: Path, through: str) -> None:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(3))
        mark = first.curves.mark()
        first.log(range(3, 5), offset=100)
        first.die()

        if through == "json":
            mark = json.loads(json.dumps(mark))
        else:
            torch.save(mark, tmp_path / "mark")
            mark = torch.load(tmp_path / "mark", weights_only=True)
        Attempt(run, mark)
        assert_one_curve(run, range(3))

    def test_a_mark_before_anything_was_logged(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None)
        mark = first.curves.mark()
        first.log(range(3), offset=100)
        first.die()

        second = Attempt(run, mark)
        second.log(range(2), offset=100)
        second.die()
        Attempt(run, mark)
        assert scalars(board_of(run)) == {}
        assert rows(table_of(run)) == []

    def test_half_written_ends_are_cut(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(4))
        mark = first.curves.mark()
        first.die()
        for file in (*board_of(run).iterdir(), table_of(run)):
            with file.open("ab") as stream:
                stream.write(b"5.0,\x00\xff")

        second = Attempt(run, mark)
        second.log(range(4, 6))
        second.die()
        assert_one_curve(run, range(6))

    def test_a_run_directory_may_be_moved(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(4))
        mark = first.curves.mark()
        shutil.move(run.storage.root, tmp_path / "elsewhere/run")

        moved = open_run(tmp_path / "elsewhere", "run")
        second = Attempt(moved, mark)
        second.log(range(4, 6))
        second.die()
        assert_one_curve(moved, range(6))

    def test_marking_does_not_create_files(self, make_run: MakeRun) -> None:
        run = make_run()
        assert Attempt(run, None).curves.mark() == {
            "events": {},
            "tables": {"csv/metrics.csv": {"rows": 0, "columns": []}},
        }
        assert not board_of(run).exists()

    def test_no_loggers(self, make_run: MakeRun) -> None:
        curves = Curves([], make_run())
        curves.rewind(None)
        curves.rewind(curves.mark())


@pytest.mark.usefixtures("fast_clock")
class TestGhost:
    """An attempt that was stopped, taken for dead, and goes on when its successor has begun."""

    @pytest.fixture
    def ghost(self, make_run: MakeRun) -> tuple[Run, Attempt, Any]:
        run = make_run()
        ghost = Attempt(run, None)
        ghost.log(range(5))
        return run, ghost, ghost.curves.mark()

    @pytest.mark.parametrize("more", [{}, {"new_column": 1.0}])
    def test_alters_nothing(self, ghost: tuple[Run, Attempt, Any], more: dict[str, float]) -> None:
        run, first, mark = ghost

        second = Attempt(run, mark)
        first.log(range(5, 9), offset=100, **more)
        first.die()
        second.log(range(5, 7))
        second.die()
        first.log(range(9, 12), offset=100, **more)
        first.die()
        second.log(range(7, 8))
        second.die()

        assert_one_curve(run, range(8))
        now = second.curves.mark()
        assert now["events"].items() >= mark["events"].items(), "readers pass over what it wrote, but it is there"
        Attempt(run, now)
        assert_one_curve(run, range(8))

    def test_that_has_written_nothing_yet_alters_nothing(self, make_run: MakeRun) -> None:
        run = make_run()
        ghost = Attempt(run, None)

        second = Attempt(run, None, TABLE)
        second.log(range(3))
        second.die()
        ghost.log(range(3), offset=100)
        ghost.loggers[1].save()

        assert [float(row["loss"]) for row in rows(table_of(run))] == [0, 1, 2]

    def test_cannot_touch_what_only_it_has_written(self, ghost: tuple[Run, Attempt, Any]) -> None:
        """Files that the mark does not know stay empty."""
        run, first, _ = ghost

        second = Attempt(run, None)
        first.log(range(5, 9), offset=100)
        first.die()
        second.log(range(2))
        second.die()

        assert_one_curve(run, range(2))


@pytest.mark.usefixtures("fast_clock")
class TestLostFiles:
    @pytest.fixture
    def killed(self, make_run: MakeRun) -> tuple[Run, Any]:
        run = make_run()
        first = Attempt(run, None)
        first.log(range(6))
        mark = first.curves.mark()
        first.die()
        return run, mark

    def test_gone(self, killed: tuple[Run, Any], caplog: pytest.LogCaptureFixture) -> None:
        run, mark = killed
        shutil.rmtree(board_of(run))
        table_of(run).unlink()

        second = Attempt(run, mark)
        second.log(range(6, 8))
        second.die()
        assert len(caplog.records) == 1
        assert "csv/metrics.csv" in caplog.text
        assert_one_curve(run, range(6, 8))

    def test_shorter(self, killed: tuple[Run, Any], caplog: pytest.LogCaptureFixture) -> None:
        run, mark = killed
        (events,) = board_of(run).glob("events*")
        os.truncate(events, events.stat().st_size - 20)
        os.truncate(table_of(run), table_of(run).read_bytes().index(b"4.0,4"))

        second = Attempt(run, mark)
        second.log(range(6, 8))
        second.die()
        assert len(caplog.records) == 1
        assert scalars(board_of(run))["loss"] == line(range(5)) + line(range(6, 8))
        assert [int(row["step"]) for row in rows(table_of(run))] == [0, 1, 2, 3, 6, 7]

    @pytest.mark.parametrize("missing", [1, 2, 3, 6])
    def test_a_table_whose_last_row_is_torn(self, killed: tuple[Run, Any], missing: int) -> None:
        run, mark = killed
        os.truncate(table_of(run), table_of(run).stat().st_size - missing)

        second = Attempt(run, mark)
        second.log(range(6, 8))
        second.die()
        assert [int(row["step"]) for row in rows(table_of(run))] == [0, 1, 2, 3, 4, 6, 7]

    def test_zeros_after_the_machine_has_crashed(self, killed: tuple[Run, Any]) -> None:
        run, mark = killed
        for file in (*board_of(run).iterdir(), table_of(run)):
            file.write_bytes(b"\0" * file.stat().st_size)
        Attempt(run, mark)

        (events,) = board_of(run).glob("events*")
        events.write_bytes(b"\xff" * events.stat().st_size)
        Attempt(run, mark)


@pytest.mark.usefixtures("fast_clock")
class TestTable:
    def test_a_new_column_after_the_mark_and_another_in_the_next_attempt(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None, TABLE)
        first.log(range(2))
        first.log(range(2, 3), val=0.5)
        mark = first.curves.mark()
        first.log(range(3, 4), a=1)
        first.die()

        second = Attempt(run, mark, TABLE)
        second.log(range(3, 4))
        second.log(range(4, 5), z=2)
        second.die()
        assert rows(table_of(run)) == [
            {"loss": "0.0", "step": "0", "val": "", "z": ""},
            {"loss": "1.0", "step": "1", "val": "", "z": ""},
            {"loss": "2.0", "step": "2", "val": "0.5", "z": ""},
            {"loss": "3.0", "step": "3", "val": "", "z": ""},
            {"loss": "4.0", "step": "4", "val": "", "z": "2"},
        ]

    def test_killed_while_a_new_column_is_written(self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
        run = make_run()
        first = Attempt(run, None, TABLE)
        first.log(range(5))
        mark = first.curves.mark()
        first.log(range(5, 6), val=1)

        def kill(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(csv.DictWriter, "writerows", kill)
            with pytest.raises(KeyboardInterrupt):
                first.die()

        Attempt(run, mark, TABLE)
        assert [int(row["step"]) for row in rows(table_of(run))] == [0, 1, 2, 3, 4]

    def test_text_with_line_breaks_is_one_row(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None, TABLE)
        first.loggers[0].log_metrics({"note": 'two\nlines, "quoted"'}, 0)  # type: ignore[dict-item]
        mark = first.curves.mark()
        first.log(range(1, 3))
        first.die()

        Attempt(run, mark, TABLE)
        assert rows(table_of(run)) == [{"note": 'two\nlines, "quoted"', "step": "0"}]


@pytest.mark.usefixtures("fast_clock")
class TestHyperparameters:
    def test_they_stand_there_once(self, make_run: MakeRun) -> None:
        run = make_run()

        def begin(attempt: Attempt) -> None:
            for logger in attempt.loggers:
                logger.log_hyperparams({"lr": 0.1})
            board = attempt.loggers[0]
            assert isinstance(board, TensorBoardLogger)
            board.log_hyperparams({"lr": 0.1}, {"hp/best": 0.1, "hp/other": torch.tensor(0.25)})
            for logger in attempt.loggers:
                logger.save()

        first = Attempt(run, None)
        begin(first)
        first.log(range(3))
        mark = first.curves.mark()
        first.log(range(3, 5), offset=100)
        first.die()

        second = Attempt(run, mark)
        begin(second)
        second.log(range(3, 6))
        board = second.loggers[0]
        assert isinstance(board, TensorBoardLogger)
        board.log_hyperparams({"lr": 0.1}, {"hp/best": 0.9})
        second.die()

        found = scalars(board_of(run))
        assert found.pop("hp/best") == [(0, pytest.approx(0.1)), (0, pytest.approx(0.9))]
        assert found == {"hp_metric": [(0, -1.0)], "hp/other": [(0, 0.25)], "loss": line(range(6))}
        for folder in (board_of(run), table_of(run).parent):
            assert (folder / "hparams.yaml").read_text() == "lr: 0.1\n"

    def test_with_a_prefix(self, make_run: MakeRun) -> None:
        run, described = make_run(), {**BOARD, "init_args": {"prefix": "p"}}
        mark = None
        for _ in range(3):
            attempt = Attempt(run, mark, described)
            attempt.loggers[0].log_hyperparams({"lr": 0.1})
            mark = attempt.curves.mark()
        assert scalars(board_of(run)) == {"p-hp_metric": [(0, -1.0)]}


@pytest.mark.usefixtures("fast_clock")
class TestFiles:
    def test_curves_in_folders_of_their_own(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None, BOARD)
        writer = first.loggers[0].experiment  # type: ignore[attr-defined]
        writer.add_scalars("pair", {"a": 1.0}, 0)
        mark = first.curves.mark()
        writer.add_scalars("pair", {"a": 2.0, "b": 2.0}, 1)
        writer.add_hparams({"lr": 1}, {"hp": 1.0}, run_name="lost")
        writer.flush()

        second = Attempt(run, mark, BOARD)
        second.loggers[0].experiment.add_scalars("pair", {"a": 3.0}, 1)  # type: ignore[attr-defined]
        second.die()
        assert scalars(board_of(run) / "pair_a") == {"pair": [(0, 1.0), (1, 3.0)]}
        assert scalars(board_of(run) / "pair_b") == scalars(board_of(run) / "lost") == {}

    def test_a_clock_that_is_behind_is_reported(
        self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = make_run()
        first = Attempt(run, None, BOARD)
        first.log(range(1))
        mark = first.curves.mark()
        now = time.time
        monkeypatch.setattr("launcher.node.boards._CLOCK_WAIT_S", 0.1)
        monkeypatch.setattr(time, "time", lambda: now() - 60)

        Attempt(run, mark, BOARD)
        assert "s behind the one of an earlier attempt" in caplog.text

    def test_a_folder_that_others_use_too(self, make_run: MakeRun, tmp_path: Path) -> None:
        """Pinned by the user to the last detail, so that nothing but the names of the files tells whose they are."""
        shared = {**BOARD, "init_args": {"save_dir": str(tmp_path / "shared"), "name": "x", "version": "y"}}
        theirs, ours = Attempt(make_run("theirs"), None, shared), Attempt(make_run("ours"), None, shared)
        for attempt in (theirs, ours):
            attempt.log(range(2))
        mark = ours.curves.mark()
        for attempt in (theirs, ours):
            attempt.log(range(2, 4))
            attempt.die()

        folder = tmp_path / "shared/x/y"
        mine = f"*{identity(open_run(tmp_path / 'runs', 'ours'))}"
        others = {path: path.read_bytes() for path in {*folder.glob("events*")} - {*folder.glob(mine)}}
        assert len(others) == 1

        for kept, expected in ((mark, 2), (None, 0)):
            Attempt(open_run(tmp_path / "runs", "ours"), kept, shared)
            (file,) = folder.glob(mine)
            assert len(scalars(file).get("loss", [])) == expected
            assert {path: path.read_bytes() for path in others} == others

    def test_a_place_outside_the_run_directory_is_rewound_like_any_other(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        outside = [{**one, "init_args": {"save_dir": str(tmp_path / "logs")}} for one in (BOARD, TABLE)]
        run = make_run()
        first = Attempt(run, None, *outside)
        first.log(range(3))
        mark = first.curves.mark()
        first.log(range(3, 5), offset=100)
        first.die()

        second = Attempt(run, mark, *outside)
        second.log(range(3, 4))
        second.die()
        folder = tmp_path / "logs/lightning_logs" / identity(run)
        assert scalars(folder)["loss"] == line(range(4))
        assert [int(row["step"]) for row in rows(folder / "metrics.csv")] == [0, 1, 2, 3]

    def test_what_is_no_local_folder_is_left_alone(self, make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
        Attempt(make_run(), None, {**TABLE, "init_args": {"save_dir": "memory://logs"}})
        assert "memory://logs" in caplog.text


def test_names_of_event_files_sort_in_the_order_of_attempts(make_run: MakeRun) -> None:
    run, mark, names = make_run(), None, list[str]()
    for step in range(3):
        attempt = Attempt(run, mark, BOARD)
        attempt.log(range(step, step + 1))
        mark = attempt.curves.mark()
        names += [path.name for path in board_of(run).iterdir() if path.name not in names]
    stamps = [name.split(".")[3] for name in names]
    assert len(stamps) == 3
    assert stamps == sorted(set(stamps))


@pytest.mark.usefixtures("fast_clock")
class TestRunningTensorBoard:
    """One that has read what is then cut. It never looks back at a file, but can be told to forget."""

    def test_the_reader_in_python(self, make_run: MakeRun) -> None:
        run = make_run()
        first = Attempt(run, None, BOARD)
        first.log(range(5))
        mark = first.curves.mark()
        first.log(range(5, 9), offset=100, odd=1)
        first.die()
        reader = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(board_of(run)))

        def shown(tag: str) -> list[int]:
            reader.Reload()
            return [one.step for one in reader.Tensors(".", tag)]

        assert shown("loss") == list(range(9))
        dead_early = Attempt(run, mark, BOARD)
        dead_early.log(range(5, 7), offset=100)
        dead_early.die()
        assert shown("loss") == list(range(7))
        assert shown("odd") == []

        third = Attempt(run, mark, BOARD)
        assert shown("loss") == list(range(7))  # until the attempt logs for the first time
        third.log(range(5, 8))
        third.die()
        assert shown("loss") == list(range(8))
        from_the_beginning = Attempt(run, None, BOARD)
        from_the_beginning.log(range(2))
        from_the_beginning.die()
        assert shown("loss") == list(range(2))

    def test_the_one_that_users_start(self, make_run: MakeRun) -> None:
        """Its reader, written in Rust where there is one for the machine, drops later values when an earlier comes."""
        run = make_run()
        first = Attempt(run, None, BOARD)
        first.log(range(5))
        mark = first.curves.mark()
        first.log(range(5, 9), offset=100)
        first.die()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(board_of(run)), "--port", str(port)]
        board = subprocess.Popen([*command, "--reload_interval", "1"], stderr=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=.&tag=loss"

        def await_shown(wanted: Curve) -> None:
            deadline, shown = time.monotonic() + 60, None
            while shown != wanted:
                assert time.monotonic() < deadline, shown
                time.sleep(0.2)
                try:
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        shown = [(int(step), value) for _, step, value in json.load(answer)]
                except OSError:  # not there yet
                    continue

        try:
            await_shown([*line(range(5)), *line(range(5, 9), offset=100)])
            second = Attempt(run, mark, BOARD)
            second.log(range(5, 7))
            second.die()
            await_shown(line(range(7)))
        finally:
            board.terminate()
            board.wait()


class StandIn(Logger):
    """For loggers of packages that are not installed."""

    name = version = None

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class WandbLogger(StandIn):
    """With those parameters of Lightning's that say who a run is."""

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        version: str | None = None,
        id: str | None = None,
        experiment: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.id, self.save_to, self.resume = version or id, save_dir, kwargs.get("resume", "allow")


class MLFlowLogger(StandIn):
    """It asks a server for a run when it is first used, as Lightning's does."""

    served = 0

    def __init__(self, save_dir: str = "./mlruns", run_id: str | None = None) -> None:
        super().__init__()
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        if self._run_id is None:
            MLFlowLogger.served += 1
            self._run_id = f"served-{MLFlowLogger.served}"
        return self._run_id


WANDB = {"class_path": "test_loggers.WandbLogger"}
MLFLOW = {"class_path": "test_loggers.MLFlowLogger"}


@pytest.mark.usefixtures("fast_clock")
class TestIdentity:
    def test_of_a_run_is_the_same_in_each_attempt_and_no_other_run_has_it(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        run = make_run("a", created=1.5)
        assert identity(run) == identity(open_run(tmp_path / "runs", "a"))
        shutil.move(run.storage.root, tmp_path / "other/a")
        assert identity(open_run(tmp_path / "other", "a")) == identity(run)
        assert len({identity(one) for one in (run, make_run("a", created=2.5), make_run("b", created=1.5))}) == 3

    def test_wandb(self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        run = make_run()
        for _ in range(2):
            (logger,) = Attempt(run, None, WANDB).loggers
            assert isinstance(logger, WandbLogger)
            assert (logger.id, logger.resume, logger.save_to) == (identity(run), "allow", run.storage.root)

    @pytest.mark.parametrize("name", ["id", "version"])
    def test_wandb_with_the_users_own(self, make_run: MakeRun, name: str) -> None:
        described = {**WANDB, "init_args": {name: "mine", "resume": "must"}}
        (logger,) = Attempt(make_run(), None, described).loggers
        assert isinstance(logger, WandbLogger)
        assert (logger.id, logger.resume) == ("mine", "must")

    def test_wandb_with_the_users_own_in_the_environment(
        self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_RUN_ID", "mine")
        (logger,) = Attempt(make_run(), None, WANDB).loggers
        assert isinstance(logger, WandbLogger)
        assert logger.id is None

    def test_mlflow_s_first_run_is_every_attempt_s(self, make_run: MakeRun) -> None:
        run = make_run()
        own = {**MLFLOW, "init_args": {"run_id": "mine"}}
        attempts = [Attempt(run, None, BOARD, MLFLOW, own, MLFLOW) for _ in range(3)]
        ids = [[one.run_id for one in attempt.loggers if isinstance(one, MLFlowLogger)] for attempt in attempts]
        assert ids[0] == ids[1] == ids[2]
        assert len(set(ids[0])) == 3
        assert ids[0][1] == "mine"

    def test_a_check_knows_no_run(self, tmp_path: Path) -> None:
        built = build_loggers([BOARD, TABLE, WANDB, MLFLOW], str(tmp_path))
        assert isinstance(built, list)
        assert len(built) == 4
        assert not list(tmp_path.iterdir())


class OwnBoard(TensorBoardLogger):
    """A user's, that decides for itself where to write."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="own")


@pytest.mark.usefixtures("fast_clock")
class TestBuilding:
    def test_tensorboard_unless_the_spec_says_otherwise(self, tmp_path: Path) -> None:
        assert build_loggers(False, str(tmp_path)) is False
        for described in (True, None, BOARD, [BOARD]):
            built = build_loggers(described, str(tmp_path))
            assert isinstance(built, list)
            (board,) = built
            assert isinstance(board, TensorBoardLogger)
            assert Path(board.log_dir) == tmp_path / "tensorboard"

    def test_each_of_several_has_a_place_of_its_own(self, make_run: MakeRun) -> None:
        run = make_run()
        named = {**TABLE, "init_args": {"name": "named"}}
        attempt = Attempt(run, None, BOARD, TABLE, BOARD, TABLE, named)
        places = [Path(one.log_dir or "").relative_to(run.storage.root).as_posix() for one in attempt.loggers]
        assert places == ["tensorboard", "csv", "tensorboard/2", "csv/2", "csv/named"]

        attempt.log(range(3))
        mark = attempt.curves.mark()
        attempt.log(range(3, 5))
        attempt.die()
        Attempt(run, mark, BOARD, TABLE, BOARD, TABLE, named)
        for place in places:
            folder = Path(run.storage.root, place)
            if place.startswith("csv"):
                assert len(rows(folder / "metrics.csv")) == 3
            else:
                assert scalars(folder)["loss"] == line(range(3))

    def test_a_subclass_keeps_its_place(self, make_run: MakeRun) -> None:
        run, mark = make_run(), None
        for step in range(3):
            attempt = Attempt(run, mark, {"class_path": "test_loggers.OwnBoard"})
            attempt.log(range(step, step + 1))
            mark = attempt.curves.mark()
        assert scalars(board_of(run) / "own" / identity(run))["loss"] == line(range(3))


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*LeafSpec.*:DeprecationWarning"
)
def test_a_trainer_that_has_closed_its_loggers_and_is_killed_in_its_test(make_run: MakeRun) -> None:
    run = make_run()

    def trainer(attempt: Attempt) -> Trainer:
        return Trainer(
            max_epochs=1,
            limit_train_batches=4,
            log_every_n_steps=1,
            logger=attempt.loggers,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    class Tested(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", torch.ones(()))

    first = Attempt(run, None)
    fitting = trainer(first)
    fitting.fit(Tested(), NoisyData())
    mark = first.curves.mark()
    fitting.test(Tested(), NoisyData(), verbose=False)
    assert len(scalars(board_of(run))["test_loss"]) == 1

    second = Attempt(run, mark)
    found = scalars(board_of(run))
    assert [step for step, _ in found["train_loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["val_loss"]] == [3]
    assert "test_loss" not in found
    trainer(second).test(Tested(), NoisyData(), verbose=False)
    assert len(scalars(board_of(run))["test_loss"]) == 1
    assert [row["test_loss"] for row in rows(table_of(run))] == ["", "", "", "", "", "1.0"]


class Chatty(Classifier):
    """Logs at all occasions: hyperparameters at the start, steps of validations, ends of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": self.lr})

    def on_train_start(self) -> None:
        board = self.loggers[0]
        assert isinstance(board, TensorBoardLogger)
        board.log_hyperparams({"lr": self.lr}, {"hp/best": 0})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_step", float(batch_idx), on_step=True, on_epoch=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self.log("epoch_end", float(self.global_step), sync_dist=True)


class SignalInValidation(Signal):
    """Sends it in the midst of the validation after the given steps."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Not here."""

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer)


SPEC: dict[str, Any] = {
    "model": {"class_path": "test_loggers.Chatty"},
    "data": {"class_path": "toys.NoisyData"},
    "trainer": {
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "val_check_interval": 4,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "logger": [BOARD, TABLE],
    },
    "resources": {"tasks_per_node": 2},
    "checkpoint": {"every_n_steps": 5},
}


def interrupted(spec: Mapping[str, Any], callback: str, **init_args: Any) -> dict[str, Any]:
    return {
        **spec,
        "trainer": {**spec["trainer"], "callbacks": [{"class_path": callback, "init_args": init_args}]},
    }


def assert_same_curves(one: Run, other: Run) -> None:
    expected = scalars(board_of(one))
    assert [step for step, _ in expected["train_loss"]] == list(range(24))
    assert [step for step, _ in expected["epoch_end"]] == [11, 23]
    assert scalars(board_of(other)) == expected
    assert rows(table_of(other)) == rows(table_of(one))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that was never touched."""
    return Training(tmp_path_factory.mktemp("whole")).run(SPEC)


@pytest.mark.parametrize(
    ("callback", "at", "number", "ranks"),
    [
        ("toys.Signal", [3, 8, 12, 18], "SIGKILL", [0, 1]),
        ("toys.Signal", [3, 8, 12, 18], "SIGKILL", [1]),
        ("toys.Signal", [3, 8, 12], "SIGTERM", [0]),
        ("test_loggers.SignalInValidation", [4, 12, 20], "SIGKILL", [0]),
    ],
)
def test_curves_of_a_run_that_was_interrupted_several_times(
    launch: Training, whole: Run, callback: str, at: list[int], number: str, ranks: list[int]
) -> None:
    torn = launch.run(interrupted(SPEC, callback, at=at, number=number, ranks=ranks))

    assert len(torn.ledger.refresh().attempts) >= len(at), log_of(torn)
    assert_same_curves(whole, torn)


def test_curves_of_a_run_whose_validations_were_left_half_way(launch: Training) -> None:
    alone = {**SPEC, "resources": {"tasks_per_node": 1}, "data": {**SPEC["data"], "init_args": {"size": 96}}}
    untouched = launch.run(alone, "untouched")
    torn = launch.run(interrupted(alone, "test_loggers.SignalInValidation", at=[4, 12, 20], number="SIGTERM"), "torn")

    assert len(torn.ledger.refresh().attempts) == 4, log_of(torn)
    assert_same_curves(untouched, torn)
