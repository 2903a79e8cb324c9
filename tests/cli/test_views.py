"""What the verbs say about a run."""

import json
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cli.commands import JOBS, Done, Shell, copied, in_bash, within
from launcher.errors import FAILED, FINISHED, USAGE

STEPS = 200


class TestRun:
    def test_its_answer_is_the_last_line_of_stdout(self, finished: Done, launcher: Shell) -> None:
        assert finished.answer["run"] == "reference"
        assert finished.answer["state"] == "finished"
        assert finished.answer["run_dir"] == str(launcher.runs / "reference")
        assert len(finished.out.splitlines()) == 1, "what is for people goes to stderr"

    def test_what_the_ranks_print_is_shown_without_escape_codes(self, finished: Done) -> None:
        assert "Trainable params" in finished.err
        assert "\x1b" not in finished.err

    def test_its_ranks_were_started_as_planned(self, finished: Done, launcher: Shell) -> None:
        planned = launcher("plan", JOBS / "net.yaml", "--json")

        executed = json.loads((launcher.runs / "reference/attempts/001/plan.json").read_text())

        assert json.loads(planned.out.replace("net-ID", "reference"))["plan"] == executed
        assert executed["argv"][1:] == ["-m", "launcher.node.worker"]

    def test_resuming_it_does_nothing(self, finished: Done, launcher: Shell) -> None:
        again = launcher("resume", "reference", "--json")

        assert again.code == FINISHED
        assert again.answer == finished.answer

    def test_its_name_cannot_be_taken_twice(self, finished: Done, launcher: Shell) -> None:
        again = launcher("run", JOBS / "net.yaml", "--name", "reference", "--set", "model.class_path=no.Such")

        assert again.code == USAGE
        assert again.err.startswith("launcher: a run named 'reference' exists already: "), "it was checked before"

    def test_it_cannot_be_cancelled(self, finished: Done, launcher: Shell) -> None:
        cancelled = launcher("cancel", "reference")

        assert (cancelled.code, cancelled.err) == (USAGE, "launcher: reference has ended already: finished\n")


class TestStatus:
    def test_tells_state_progress_and_attempts(self, finished: Done, launcher: Shell) -> None:
        shown = launcher("status", "reference", "--json").answer

        assert {key: shown[key] for key in ("run", "name", "target", "state", "reason")} == {
            "run": "reference",
            "name": "reference",
            "target": "local",
            "state": "finished",
            "reason": "",
        }
        assert (shown["step"], shown["epoch"], shown["precision"]) == (STEPS, 1, "32-true")
        assert set(shown["metrics"]) == {"train_loss", "test_loss"}
        (attempt,) = shown["attempts"]
        assert (attempt["number"], attempt["cause"]) == (1, "finished")
        assert (attempt["first_step"], attempt["last_step"]) == (0, STEPS)
        assert attempt["started"] < attempt["ended"]
        assert len(attempt["hosts"]) == 1
        assert shown["checkpoint"]["step"] == STEPS
        assert Path(shown["checkpoint"]["path"]).is_file()

    @pytest.mark.parametrize("wanted", ["reference", "refer"])
    def test_takes_a_name_or_a_unique_beginning(
        self, finished: Done, launcher: Shell, tmp_path: Path, wanted: str
    ) -> None:
        runs = copied(launcher, tmp_path, "reference")
        (runs / "other").mkdir()

        done = launcher("status", wanted, "--json", LAUNCHER_RUNS=str(runs))

        assert done.answer["run"] == "reference"

    def test_without_a_run_it_is_the_latest(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        runs = copied(launcher, tmp_path, "reference", "later")

        assert launcher("status", "--json", "--runs-root", runs).answer["run"] == "later"

    def test_a_beginning_of_two_runs_is_refused(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        runs = copied(launcher, tmp_path, "one-a", "one-b")

        done = launcher("status", "one", "--runs-root", runs)

        assert (done.code, done.err) == (USAGE, "launcher: 'one' fits 2 runs: one-a, one-b\n")

    def test_is_coloured_at_a_terminal(self, finished: Done, launcher: Shell) -> None:
        command = launcher.start_at_terminal("status", "reference")

        assert command.wait() == 0
        assert "\x1b[32mfinished\x1b[0m" in command.output

    @pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_is_not_coloured_where_nobody_wants_it(self, finished: Done, launcher: Shell, env: dict[str, str]) -> None:
        command = launcher.start_at_terminal("status", "reference", **env)

        assert command.wait() == 0
        assert "finished" in command.output
        assert "\x1b" not in command.output

    def test_is_plain_in_a_pipe(self, finished: Done, launcher: Shell) -> None:
        done = launcher("status", "reference")

        assert done.out.splitlines()[0] == "reference  finished"
        assert f"{STEPS}/{STEPS}" in done.out
        assert "\x1b" not in done.out


class TestLogs:
    def test_show_the_rank_that_is_asked_for(self, finished: Done, launcher: Shell) -> None:
        zero, one = launcher("logs", "reference"), launcher("log", "reference", "--rank", "1", "--attempt", "1")

        assert (zero.code, one.code) == (0, 0)
        assert "starting from the beginning" in zero.out
        assert "starting from the beginning" not in one.out

    def test_followed_after_the_end_they_say_how_it_ended(self, finished: Done, launcher: Shell) -> None:
        done = launcher("logs", "-f", "reference")

        assert done.code == 0
        assert "Trainable params" in done.out
        assert done.out.endswith("reference finished\n")

    def test_may_hold_what_the_terminal_cannot_show(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        runs = copied(launcher, tmp_path, "reference")
        with (runs / "reference/attempts/001/logs/rank-00000.log").open("a") as log:
            log.write("snow: \u2603\n")

        done = launcher("logs", "-f", "--runs-root", runs, PYTHONIOENCODING="ascii")

        assert done.code == 0
        assert "snow: ?\n" in done.out

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (("--attempt", "0"), "reference has no attempt 0; the newest is 1"),
            (("--attempt", "2"), "reference has no attempt 2; the newest is 1"),
            (("--rank", "2"), "no log of rank 2 in attempt 1; there are: rank-00000.log, rank-00001.log"),
            (("-f", "--attempt", "1"), "--follow shows the newest attempt: leave out --attempt"),
        ],
    )
    def test_that_do_not_exist_are_refused(
        self, finished: Done, launcher: Shell, words: tuple[str, ...], problem: str
    ) -> None:
        done = launcher("logs", "reference", *words)

        assert (done.code, done.out, done.err) == (USAGE, "", f"launcher: {problem}\n")


class TestOtherVerbs:
    def test_list_names_every_run(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        runs = copied(launcher, tmp_path, "one", "two")

        listed = launcher("list", "--json", "--runs-root", runs).answer
        table = launcher("ls", "--runs-root", runs).out.splitlines()

        assert [(one["run"], one["state"], one["step"], one["attempts"]) for one in listed] == [
            ("one", "finished", STEPS, 1),
            ("two", "finished", STEPS, 1),
        ]
        assert [line.split()[:2] for line in table] == [["RUN", "STATE"], ["one", "finished"], ["two", "finished"]]

    def test_events_are_the_ledger(self, finished: Done, launcher: Shell) -> None:
        shown = launcher("events", "reference", "--json").answer

        kinds = [one["kind"] for one in shown]
        assert kinds[:4] == ["Driving", "AttemptStarting", "AttemptStarted", "AttemptResumes"]
        assert kinds[-2:] == ["AttemptEnded", "RunEnded"]
        assert [one["number"] for one in shown] == list(range(1, len(shown) + 1))
        assert len(launcher("events", "reference").out.splitlines()) == len(shown)

    def test_why_has_nothing_to_say_about_a_finished_run(self, finished: Done, launcher: Shell) -> None:
        assert launcher("why", "reference").out == "reference finished\n"
        assert launcher("why", "reference", "--json").answer["next"] is None

    def test_schema_is_one_of_a_spec(self, launcher: Shell) -> None:
        schema = json.loads(launcher("schema").out)

        assert {"name", "model", "data", "trainer", "resources"} <= set(schema["properties"])

    def test_tensorboard_shows_the_run_s_curves(self, finished: Done, launcher: Shell) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        launcher.start("tensorboard", "reference", "--port", str(port))

        def answers() -> Any:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                    return json.load(answer)
            except OSError:
                return None

        assert within(60, answers), "it does not answer"
        assert within(10, lambda: answers() == ["."])


class TestCompletion:
    def test_bash_completes_verbs_and_options(self, launcher: Shell, tmp_path: Path) -> None:
        script = tmp_path / "completion.bash"
        script.write_text(launcher("completion", "bash").out)

        assert self._completed(script, "launcher", "sta") == ["status"]
        assert self._completed(script, "launcher", "logs", "--at") == ["--attempt"]
        assert self._completed(script, "launcher", "checkpoints", "ver") == ["verify"]
        assert self._completed(script, "launcher", "checkpoints", "prune", "--k") == ["--keep-last"]

    def test_zsh_has_a_script_too(self, launcher: Shell) -> None:
        assert launcher("completion", "zsh").out.startswith("#compdef launcher\n")

    def _completed(self, script: Path, *words: str) -> list[str]:
        typed = " ".join(words)
        asked = (
            f"set -e; source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{typed}'; "
            f"COMP_POINT={len(typed)}; $(complete -p launcher | grep -o '[-]F [^ ]*' | cut -c4-) launcher; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.split()


class TestNobodyReads:
    @pytest.mark.parametrize("words", ["events reference", "logs reference", "schema", "--help", "list"])
    def test_a_closed_pipe_is_no_error(self, finished: Done, launcher: Shell, words: str) -> None:
        done = in_bash(launcher, f'(sleep 0.5; "$0" {words}; echo $? >&2) | true')

        assert done.stderr == "0\n"

    def test_a_closed_stdout_is_none(self, finished: Done, launcher: Shell) -> None:
        done = in_bash(launcher, '"$0" list >&-')

        assert (done.returncode, done.stderr) == (0, "")

    def test_a_full_disk_is_one(self, finished: Done, launcher: Shell) -> None:
        done = in_bash(launcher, '"$0" list > /dev/full')

        assert done.returncode == FAILED
        assert done.stderr == "launcher: No space left on device\n"
