"""Runs in the background, runs that fail, and what is said about them."""

import os
import signal
from pathlib import Path

import pytest

from cli.commands import (
    JOBS,
    SOON,
    Done,
    Shell,
    all_gone,
    children_of,
    command_line,
    processes_of,
    ranks_of,
    state_of,
    within,
)
from launcher.errors import FAILED, FINISHED, INTERRUPTED, USAGE
from launcher.status import status

TYPO = "model.init_args.napp=1"


class TestInTheBackground:
    def test_a_killed_rank_comes_back_and_the_log_is_followed_to_the_end(self, launcher: Shell) -> None:
        accepted = launcher("run", JOBS / "boring.yaml", "-d", "--no-check", "--name", "boring", "--json")
        assert accepted.code == FINISHED
        assert accepted.answer["state"] in ("queued", "running")
        run = launcher.run_of("boring")
        following = launcher.start("logs", "-f", "boring")
        assert within(SOON, lambda: status(run)["step"])

        os.kill(ranks_of(run)[0], signal.SIGKILL)

        assert following.wait() == 0
        assert "attempt 1 ended at step" in following.output
        assert "attempt 2 starts from the beginning" in following.output
        assert following.output.endswith("boring finished\n")
        shown = launcher("status", "boring", "--json").answer
        assert (shown["state"], shown["step"]) == ("finished", 6000)
        assert [attempt["cause"] for attempt in shown["attempts"]] == ["infra", "finished"]

    def test_cancelled_it_leaves_nothing_behind(self, launcher: Shell) -> None:
        accepted = launcher("run", JOBS / "net.yaml", "--no-check", "--detach", "--name", "background")
        assert accepted.code == FINISHED
        assert "launcher logs -f background" in accepted.out
        run = launcher.run_of("background")
        assert within(SOON, lambda: len(processes_of(run)) >= 2)
        driver = run.ledger.refresh().driver
        assert driver is not None

        cancelled = launcher("cancel", "background")

        assert cancelled.code == 0
        assert "launcher resume background" in cancelled.out
        assert state_of(run) == "cancelled"
        assert processes_of(run) == []
        assert within(5, lambda: all_gone([driver.pid]))
        assert launcher("cancel", "background").code == USAGE
        why = launcher("why", "background", "--json").answer
        assert (why["cause"], why["traceback"]) == ("cancelled", None)

    def test_cancelled_while_its_launcher_dies_it_leaves_nothing_behind_either(self, launcher: Shell) -> None:
        assert launcher("run", JOBS / "net.yaml", "--no-check", "--detach", "--name", "dying").code == 0
        run = launcher.run_of("dying")
        assert within(SOON, lambda: len(processes_of(run)) >= 2)
        driver = run.ledger.refresh().driver
        assert driver is not None
        os.kill(driver.pid, signal.SIGSTOP)
        cancelling = launcher.start("cancel", "dying")
        assert within(SOON, lambda: run.ledger.refresh().cancelling)

        os.kill(driver.pid, signal.SIGKILL)

        assert cancelling.wait() == 0
        assert state_of(run) == "cancelled"
        assert within(5, lambda: processes_of(run) == [])


@pytest.fixture(scope="module")
def failed(launcher: Shell) -> int:
    """The run `raising`, whose rank 1 raises; its terminal is closed and nobody reads what it prints."""
    words = ("run", JOBS / "net.yaml", "--no-check", "--name", "raising", "--set", "model.init_args.raises_at=3")
    reader, writer = os.pipe()
    command = launcher.start(*words, before=("nohup",), stdout=writer)
    os.close(writer)
    assert os.read(reader, 11) == b"run raising"
    os.close(reader)
    run = launcher.run_of("raising")
    assert within(SOON, lambda: len(processes_of(run)) >= 2)
    command.signal(signal.SIGHUP)
    return command.wait()


class TestTheUsersException:
    def test_ends_the_run(self, failed: int, launcher: Shell) -> None:
        assert failed == FAILED
        shown = launcher("status", "raising", "--json").answer
        assert shown["state"] == "failed"
        assert shown["reason"] == "attempt 1: rank 1: KeyError: 'label'"
        assert len(shown["attempts"]) == 1
        assert processes_of(launcher.run_of("raising")) == []

    def test_is_why_with_the_line_of_the_user_s_code(self, failed: int, launcher: Shell) -> None:
        module = JOBS / "slow_net.py"
        line = 1 + [text.strip() for text in module.read_text().splitlines()].index('raise KeyError("label")')

        said = launcher("why", "raising")

        assert said.code == 0
        assert "attempt 1 on local ended: error (rank 1: KeyError: 'label')" in said.out
        assert f'{module.name}", line {line}, in training_step' in said.out
        assert "first: rank 1 on " in said.out
        assert "others: rank 0: lost its peer (an echo)" in said.out
        assert "log of rank 1: " in said.out
        assert "next: mend the code, then: launcher resume raising --code" in said.out

    def test_is_why_for_programs_too(self, failed: int, launcher: Shell) -> None:
        said = launcher("why", "raising", "--json").answer

        assert (said["run"], said["state"], said["attempt"], said["cause"]) == ("raising", "failed", 1, "error")
        assert (said["rank"], said["kind"]) == (1, "error")
        assert [(one["rank"], one["kind"]) for one in said["ranks"]] == [(0, "peer"), (1, "error")]
        assert 'raise KeyError("label")' in said["traceback"]
        assert said["log"] == f"{launcher.runs}/raising/attempts/001/logs/rank-00001.log"
        assert "launcher resume raising" in said["next"]


class TestTheSpecsTypo:
    def test_is_found_by_check(self, launcher: Shell) -> None:
        self._assert_refused(launcher("check", JOBS / "net.yaml", "--set", TYPO))

    def test_is_found_by_run_before_there_is_a_run(self, launcher: Shell, tmp_path: Path) -> None:
        self._assert_refused(launcher("run", JOBS / "net.yaml", "--set", TYPO, "--runs-root", tmp_path / "runs"))
        assert not (tmp_path / "runs").exists()

    def test_fails_the_run_that_was_not_checked(self, launcher: Shell) -> None:
        words = ("run", JOBS / "net.yaml", "--set", TYPO, "--set", "resources.tasks_per_node=1", "--name", "unchecked")

        done = launcher(*words, "--no-check")

        assert done.code == FAILED
        assert "napp" in launcher("why", "unchecked").out
        assert "Traceback" not in done.out

    def _assert_refused(self, done: Done) -> None:
        assert done.code == USAGE
        assert done.out == ""
        assert "'napp'" in done.err
        assert "Traceback" not in done.err


def test_ctrl_c_during_the_check_leaves_no_run(launcher: Shell, tmp_path: Path) -> None:
    command = launcher.start("run", JOBS / "net.yaml", "--runs-root", tmp_path / "runs")

    def checking_ones() -> list[int]:
        """Not git, which is asked what belongs to the project."""
        return [pid for pid in children_of(command.pid) if b"launcher.node.check" in command_line(pid)]

    assert within(SOON, checking_ones)
    (checking,) = checking_ones()

    os.kill(checking, signal.SIGINT)
    command.signal(signal.SIGINT)

    assert command.wait() == INTERRUPTED
    assert command.output == "launcher: interrupted\n"
    assert not (tmp_path / "runs").exists()
    assert within(5, lambda: all_gone([checking]))
