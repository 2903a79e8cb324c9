"""Calls that are wrong, and folders that are not what they should be: one line, the right code, never a traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import JOBS, Done, Shell
from launcher.errors import FAILED, USAGE
from launcher.run import Run

NET = str(JOBS / "net.yaml")
RUN = ("run", NET, "--no-check")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("run",), "the following arguments are required: SPEC"),
        (("bogus",), "invalid choice: 'bogus'"),
        (("status", "--bogus"), "unrecognized arguments: --bogus"),
        (("logs", "--rank", "x"), "invalid int value: 'x'"),
        (("run", "nowhere.yaml"), "nowhere.yaml: there is no such file"),
        (("check", "."), ".: this is a directory"),
        (("plan", NET, "--set", "traner.max_epochs=1"), "unknown key 'traner'"),
        ((*RUN, "--set", "trainer"), "expected key=value"),
        ((*RUN, "--name", "../out"), "'../out' is no name for a run"),
        ((*RUN, "--name", ""), "'' is no name for a run"),
    ],
)
def test_a_wrong_call_is_refused(launcher: Shell, words: tuple[str, ...], problem: str) -> None:
    done = launcher(*words)

    assert done.code == USAGE
    assert problem in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_without_a_verb_it_says_what_there_is(launcher: Shell) -> None:
    done = launcher()

    assert done.code == USAGE
    assert "exit codes:" in done.out
    assert done.err == ""


VERBS = ("status", "resume", "logs", "why", "events", "cancel", "checkpoints", "tensorboard")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_any_run_says_so(launcher: Shell, verb: str, tmp_path: Path) -> None:
    assert_refused(launcher(verb, "--runs-root", tmp_path / "nothing"), "there are no runs under")


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_does_not_exist_is_named(launcher: Shell, verb: str, make_run: Callable[..., Run]) -> None:
    root = Path(make_run("one").storage.root).parent

    assert_refused(launcher(verb, "nope", "--runs-root", root), "no run 'nope' under ")


@pytest.mark.parametrize("name", ["a file/runs", "a file", "/proc/runs"])
def test_a_runs_root_that_cannot_be_written_is_named(launcher: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()

    done = launcher(*RUN, "--runs-root", tmp_path / name)

    assert done.code in (FAILED, USAGE)
    assert done.err.startswith("launcher: cannot write the run directory ")
    assert done.err.count("\n") == 1


def test_plan_creates_nothing(launcher: Shell, tmp_path: Path) -> None:
    done = launcher("plan", NET, "--runs-root", tmp_path / "my runs")

    assert done.code == 0
    assert "2 rank(s), cpu, 32-true" in done.out
    assert re.search(r"PYTHONPATH='?\S.*?/net-ID/code/[0-9a-f]{16}/[^/]+/tests/cli/jobs:", done.out)
    assert f">> '{tmp_path}/my runs/net-ID/attempts/001/logs/rank-00001.log'" in done.out
    assert list(tmp_path.iterdir()) == []


class TestABrokenRun:
    """One of three in a folder; a newer one is good."""

    @pytest.fixture(params=["empty", "torn", "no object", "incomplete", "newer", "no ledger", "newer event"])
    def root(self, request: pytest.FixtureRequest, make_run: Callable[..., Run]) -> Path:
        broken, root = Path(make_run("broken").storage.root), Path(make_run("good").storage.root).parent
        record = broken / "run.json"
        body = json.loads(record.read_text())
        event = {"format": 1, "number": 1, "time": 0.0, "kind": "RunEnded", "state": "failed", "reason": ""}
        match request.param:
            case "empty":
                record.write_text("")
            case "torn":
                record.write_text(record.read_text()[:50])
            case "no object":
                record.write_text("[]")
            case "incomplete":
                record.write_text('{"format": 1}')
            case "newer":
                record.write_text(json.dumps(body | {"format": 99, "launcher": "9.0"}))
            case "no ledger":
                (broken / "events").mkdir()
                (broken / "events/00000001.json").write_text("{")
            case "newer event":
                (broken / "events").mkdir()
                (broken / "events/00000001.json").write_text(json.dumps(event | {"kind": "Teleported"}))
        (root / "foreign").mkdir()
        (root / "a file").touch()
        return root

    def test_does_not_hide_the_others(self, launcher: Shell, root: Path) -> None:
        done = launcher("list", "--json", "--runs-root", root)

        assert done.code == 0
        states = {one["run"]: one["state"] for one in done.answer}
        assert states == {"broken": "unknown", "good": "queued"}
        (reason,) = (one["reason"] for one in done.answer if one["run"] == "broken")
        assert "damaged" in reason or "newer launcher" in reason or "written by launcher 9.0" in reason
        assert reason in launcher("list", "--runs-root", root).out

    @pytest.mark.parametrize("verb", ["status", "resume"])
    def test_is_refused_by_name(self, launcher: Shell, root: Path, verb: str) -> None:
        done = launcher(verb, "broken", "--runs-root", root)

        assert done.code == FAILED
        assert done.err.startswith("launcher: ")
        assert done.err.count("\n") == 1


def test_a_folder_that_is_gone_is_named(launcher: Shell, make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("run")
    record = Path(run.storage.root) / "run.json"
    record.write_text(record.read_text().replace(f'"workdir": "{tmp_path}"', f'"workdir": "{tmp_path}/gone"'))

    done = launcher("resume", "--runs-root", tmp_path / "runs")

    assert done.code == FAILED
    assert done.err == f"launcher: No such file or directory: {tmp_path}/gone\n"
    assert launcher("status", "--json", "--runs-root", tmp_path / "runs").answer["state"] == "stopped"


def assert_refused(done: Done, problem: str) -> None:
    assert done.code == USAGE
    assert done.err.startswith(f"launcher: {problem}")
    assert done.err.count("\n") == 1
