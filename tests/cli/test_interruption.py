"""A run is killed and stopped in all the ways there are, and goes on."""

import os
import re
import signal
import zipfile
from collections.abc import Iterator

import pytest

from cli.commands import (
    CTRL_C,
    JOBS,
    SOON,
    AtTerminal,
    Done,
    Shell,
    all_gone,
    newest,
    processes_of,
    ranks_of,
    state_of,
    trains,
    within,
)
from launcher.backends.local import ECHO_S
from launcher.checkpoints import in_order
from launcher.errors import FAILED, FINISHED, INTERRUPTED, RESUMABLE
from launcher.run import Run

ENDS_S = ECHO_S + 30
"""Within this time after a rank's end nothing of the attempt is left."""


class Training:
    """A run without an end, at a terminal."""

    def __init__(self, launcher: Shell) -> None:
        self._launcher = launcher
        self._command: AtTerminal | None = None

    @property
    def run(self) -> Run:
        return self._launcher.run_of("endless")

    @property
    def command(self) -> AtTerminal:
        assert self._command is not None
        return self._command

    def carry_on(self) -> None:
        """Start or resume it, unless it runs."""
        if self._command is None:
            words = ("run", JOBS / "net.yaml", "--set", "model.init_args.steps=100000", "--no-check", "--name")
            self._command = self._launcher.start_at_terminal(*words, "endless")
            assert within(SOON, (self._launcher.runs / "endless/run.json").exists), self._command.output
        elif self._command.process.poll() is not None:
            self._command = self._launcher.start_at_terminal("resume", "endless")
        assert self._trains(), self.command.output

    def comes_back(self, before: int) -> bool:
        """Without anybody's help."""
        return self._trains(before + 1)

    def _trains(self, attempt: int = 1) -> bool:
        run = self.run
        within(SOON, lambda: trains(run, attempt) or self.command.process.poll() is not None)
        return trains(run, attempt)


@pytest.fixture(scope="module")
def endless(launcher: Shell) -> Training:
    return Training(launcher)


@pytest.fixture
def training(endless: Training) -> Iterator[Training]:
    """It trains when a test begins, whatever the one before has done to it."""
    endless.carry_on()
    return endless


class TestWhileItTrains:
    def test_a_second_driver_is_refused(self, training: Training, launcher: Shell) -> None:
        before = newest(training.run).number

        second = launcher("resume", "endless")

        assert second.code == FAILED
        assert f"process {training.command.pid} on " in second.err
        assert "drives this run" in second.err
        assert second.err.count("\n") == 1
        assert newest(training.run).number == before
        assert training.command.process.poll() is None

    def test_its_status_is_running(self, training: Training, launcher: Shell) -> None:
        assert within(10, lambda: launcher("status", "endless", "--json").answer["step"])

        shown = launcher("status", "endless", "--json").answer

        assert shown["state"] == "running"
        assert shown["attempts"][-1]["cause"] is None
        assert shown["attempts"][-1]["ended"] is None
        assert shown["checkpoint"]["step"] > 0

    def test_following_it_draws_a_bar_and_leaves_it_alone(self, training: Training, launcher: Shell) -> None:
        watching = launcher.start_at_terminal("logs", "-f", "endless")

        assert within(20, lambda: re.search(r"\r\x1b\[Kepoch 0  \[ {24}] \d+/100000  train_loss", watching.output))
        watching.type(CTRL_C)

        assert watching.wait() == 0
        assert state_of(training.run) == "running"
        assert "Traceback" not in watching.output

    def test_it_draws_a_bar_itself(self, training: Training) -> None:
        assert within(20, lambda: re.search(r"epoch 0  \[ {24}] \d+/100000  train_loss", training.command.output))


class TestOneProcessIsLost:
    def test_a_killed_rank_ends_the_attempt_for_all_and_the_run_comes_back(self, training: Training) -> None:
        before = newest(training.run).number
        processes = processes_of(training.run)
        assert len(processes) >= 4, "two ranks, each with a DataLoader worker"

        os.kill(ranks_of(training.run)[1], signal.SIGKILL)

        assert within(ENDS_S, lambda: all_gone(processes))
        assert training.comes_back(before)
        ended, now = training.run.ledger.refresh().attempts[before - 1 :]
        assert ended.cause == "infra"
        assert "rank 1 was killed by SIGKILL" in (ended.reason or "")
        assert 0 < (now.first_step or 0) <= (ended.last_step or 0), "from a checkpoint"

    def test_a_killed_data_loader_worker_too(self, training: Training) -> None:
        before = newest(training.run).number
        processes = processes_of(training.run)
        workers = [pid for pid in processes if pid not in ranks_of(training.run)]

        os.kill(workers[0], signal.SIGKILL)

        assert within(ENDS_S, lambda: all_gone(processes))
        assert training.comes_back(before)
        ended = training.run.ledger.refresh().attempts[before - 1]
        assert ended.cause == "infra"
        assert "DataLoader worker" in (ended.reason or "")

    @pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR2)])
    def test_a_signal_to_one_rank_loses_no_step(self, training: Training, rank: int, number: signal.Signals) -> None:
        before = newest(training.run).number
        processes = processes_of(training.run)

        os.kill(ranks_of(training.run)[rank], number)

        assert training.comes_back(before)
        assert all_gone(processes)
        ended, now = training.run.ledger.refresh().attempts[before - 1 :]
        assert (ended.cause, ended.reason) == ("preempted", f"saved and left at {number.name}")
        assert now.first_step == ended.last_step


class TestStops:
    def test_a_terminated_launcher_saves_first(self, training: Training, launcher: Shell) -> None:
        training.command.signal(signal.SIGTERM)

        assert training.command.wait() == RESUMABLE
        assert "launcher resume endless" in training.command.output
        self._assert_saved(training, launcher)

    def test_so_it_does_when_the_terminal_is_closed(self, training: Training, launcher: Shell) -> None:
        training.command.hang_up()

        assert training.command.wait() == RESUMABLE
        self._assert_saved(training, launcher)

    def test_ctrl_c_twice_does_not_wait(self, training: Training, launcher: Shell) -> None:
        training.command.type(CTRL_C)
        assert within(5, lambda: "once more" in training.command.output)
        training.command.type(CTRL_C)

        assert training.command.wait(60) == INTERRUPTED
        assert processes_of(training.run) == []
        assert state_of(training.run) == "stopped"
        assert "Traceback" not in training.command.output
        assert "nothing is wrong: launcher resume endless" in launcher("why", "endless").out

        assert launcher("cancel", "endless").code == 0
        assert state_of(training.run) == "cancelled"

    def _assert_saved(self, training: Training, launcher: Shell) -> None:
        assert processes_of(training.run) == []
        shown = launcher("status", "endless", "--json").answer
        assert shown["state"] == "stopped"
        assert shown["attempts"][-1]["cause"] == "stopped"
        assert shown["checkpoint"]["step"] == shown["attempts"][-1]["last_step"] > 0


def test_stopped_and_killed_it_ends_where_an_undisturbed_run_does(finished: Done, launcher: Shell) -> None:
    command = launcher.start("run", JOBS / "net.yaml", "--name", "disturbed", "--no-check")
    assert within(SOON, (launcher.runs / "disturbed/run.json").exists), command.output
    run = launcher.run_of("disturbed")
    assert within(SOON, lambda: trains(run)), command.output

    command.signal(signal.SIGINT)
    assert command.wait() == RESUMABLE
    assert "carry it on with: launcher resume disturbed" in command.output

    command = launcher.start("resume", "disturbed")
    assert within(SOON, lambda: trains(run, 2)), command.output
    processes = processes_of(run)
    command.signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert within(5, lambda: all_gone(processes))
    shown = launcher("status", "disturbed", "--json").answer
    assert shown["state"] == "stopped"
    assert "launcher resume disturbed" in shown["reason"]

    ended = launcher("resume", "disturbed", "--json")
    assert ended.code == FINISHED, ended.err
    assert ended.answer["state"] == "finished"
    assert [attempt["cause"] for attempt in ended.answer["attempts"]] == ["stopped", "infra", "finished"]
    assert ended.answer["attempts"][1]["first_step"] == ended.answer["attempts"][0]["last_step"]
    assert ended.answer["metrics"] == finished.answer["metrics"]
    assert tensors(run) == tensors(launcher.run_of("reference"))


def tensors(run: Run) -> dict[str, bytes]:
    """Weights and optimizer state, bit for bit, as torch stores them: one entry of a zip file each."""
    path = in_order(run.ledger.refresh())[-1].path
    with zipfile.ZipFile(f"{run.storage.root}/{path}") as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    found = {name: data for name, data in entries.items() if name.startswith("data/")}
    assert found
    return found
