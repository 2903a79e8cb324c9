"""A sweep as a user has it: begun, interrupted, looked at, carried on, cancelled, and what failed begun again."""

import json
import re
from collections.abc import Iterator

import pytest

from cli.commands import CTRL_C, JOBS, SOON, AtTerminal, Done, Shell, processes_of, trains, within
from launcher.errors import FAILED, FINISHED, RESUMABLE, USAGE
from launcher.run import Run
from launcher.storage import PosixStorage

SPEC = JOBS / "sweep.yaml"
NAMED = ("run", SPEC, "--name", "swept")


def states(done: Done) -> list[str]:
    return [one["state"] for one in done.answer["cells"]]


class Swept:
    """Four runs: one ends, one fails, one has no end, and one waits for that."""

    def __init__(self, launcher: Shell) -> None:
        self._launcher = launcher
        self.begun: AtTerminal = launcher.start_at_terminal(*NAMED)

    def run(self, index: int) -> Run:
        return Run(PosixStorage(self._launcher.runs / f"swept/{index:04d}"))

    def begins(self, index: int) -> bool:
        path = self._launcher.runs / f"swept/{index:04d}/run.json"
        return within(SOON, path.exists) and within(SOON, lambda: trains(self.run(index)))


@pytest.fixture(scope="module")
def swept(launcher: Shell) -> Iterator[Swept]:
    """Interrupted by Ctrl-C when the endless run had saved."""
    course = Swept(launcher)
    try:
        assert course.begins(2), course.begun.output
        assert within(SOON, lambda: (launcher.runs / "swept/0003/run.json").exists()), course.begun.output
        course.begun.type(CTRL_C)
        assert course.begun.wait() == RESUMABLE, course.begun.output
        yield course
    finally:
        course.begun.end()


@pytest.fixture
def status(swept: Swept, launcher: Shell) -> Done:
    return launcher("status", "swept", "--json")


class TestInterrupted:
    def test_what_ended_has_ended_and_the_rest_has_saved(self, swept: Swept, status: Done) -> None:
        assert states(status)[:3] == ["finished", "failed", "stopped"]
        assert status.answer["state"] == "stopped"
        assert status.answer["best"]["run"] == "swept.0000"
        assert not processes_of(swept.run(2))
        assert swept.run(2).ledger.refresh().checkpoints

    def test_it_has_said_one_line_of_each_run_that_ended(self, swept: Swept) -> None:
        said = re.findall(r"\[\d/4\].*", re.sub(r"\x1b\[[0-9;]*[mK]", "", swept.begun.output))

        assert sum("swept.0000" in line and "finished" in line and "test_loss" in line for line in said) == 1
        assert sum("swept.0001" in line and "failed" in line and "typo" in line for line in said) == 1
        assert "carry it on with: launcher resume swept" in swept.begun.output

    def test_all_import_from_one_copy_of_the_code(self, swept: Swept, launcher: Shell) -> None:
        assert [path.name for path in launcher.runs.glob("swept/*/code")] == []
        (copy,) = [path for path in launcher.runs.glob("swept/code/*") if path.is_dir()]
        plan = (launcher.runs / "swept/0000/attempts/001/plan.json").read_text()

        assert f"{copy}/" in plan
        assert launcher("status", "swept.0", "--json").answer["code"]["digest"] == copy.name

    def test_a_table_shows_what_the_runs_differ_in(self, swept: Swept, launcher: Shell) -> None:
        shown = launcher("status", "swept").out

        head = next(line for line in shown.splitlines() if line.startswith("RUN"))
        columns = ["RUN", "STATE", "STEP", "steps", "typo", "nap", "seed_everything", "test_loss", "REASON"]
        assert head.split() == columns
        (line,) = [line for line in shown.splitlines() if line.startswith("swept.0001")]
        assert line.split()[:5] == ["swept.0001", "failed", "0", "40", "1"]
        assert "best        swept.0000  test_loss" in shown

    def test_the_list_has_one_line_of_it(self, swept: Swept, launcher: Shell) -> None:
        (line,) = [one for one in launcher("list", "--json").answer if one["run"].startswith("swept")]

        assert (line["run"], line["state"], line["counts"]["failed"]) == ("swept", "stopped", 1)

    @pytest.mark.parametrize("verb", ["logs", "why", "events"])
    def test_verbs_for_one_run_take_its_number(self, swept: Swept, launcher: Shell, verb: str) -> None:
        assert launcher(verb, "swept.1").code == FINISHED
        assert launcher(verb, "swe.0001").out == launcher(verb, "swept.1").out

    @pytest.mark.parametrize("verb", ["logs", "why", "events"])
    def test_and_name_the_runs_where_they_are_given_all(self, swept: Swept, launcher: Shell, verb: str) -> None:
        done = launcher(verb, "swept")

        assert (done.code, "is a sweep: name one of its runs, such as swept.0" in done.err) == (USAGE, True)

    def test_another_spec_cannot_have_its_name(self, swept: Swept, launcher: Shell) -> None:
        done = launcher(*NAMED, "--set", "trainer.max_epochs=2")

        assert (done.code, "exists already, of another spec" in done.err) == (USAGE, True)

    def test_nothing_is_changed_in_all_runs(self, swept: Swept, launcher: Shell) -> None:
        done = launcher("resume", "swept", "--set", "trainer.max_epochs=2")

        assert (done.code, "--set and --code change one of them, such as swept.0" in done.err) == (USAGE, True)

    def test_it_stays_on_its_target_and_its_runs_with_it(self, swept: Swept, launcher: Shell) -> None:
        whole, one = launcher("resume", "swept", "--on", "slurm"), launcher("resume", "swept.0", "--on", "slurm")

        assert (whole.code, "stays on its target" in whole.err) == (USAGE, True)
        assert (one.code, "launcher run SPEC --from swept.0000 --on TARGET" in one.err) == (USAGE, True)

    def test_only_a_sweep_has_runs_that_failed(self, swept: Swept, launcher: Shell) -> None:
        assert launcher("resume", "swept.0", "--failed").code == USAGE


class TestCarriedOn:
    """In this order: one after the other."""

    def test_one_run_alone_with_a_change(self, swept: Swept, launcher: Shell) -> None:
        steps = swept.run(2).ledger.refresh().checkpoints[-1].step + 10

        done = launcher("resume", "swept.2", "--set", f"trainer.max_steps={steps}", "--no-check", "--json")

        assert (done.code, done.answer["state"], done.answer["step"]) == (FINISHED, "finished", steps)

    def test_the_same_command_again_does_what_is_missing(self, swept: Swept, launcher: Shell) -> None:
        attempts = [one["attempts"] for one in launcher("status", "swept", "--json").answer["cells"]]

        done = launcher(*NAMED, "--json")

        assert (done.code, done.answer["state"]) == (FAILED, "failed")
        assert states(done) == ["finished", "failed", "finished", "finished"]
        assert [one["attempts"] for one in done.answer["cells"]][:3] == attempts[:3]

    def test_what_failed_is_begun_again_only_if_that_is_wanted(self, swept: Swept, launcher: Shell) -> None:
        before = launcher("status", "swept", "--json").answer["cells"][1]["attempts"]
        assert launcher("resume", "swept").code == FAILED
        assert launcher("status", "swept", "--json").answer["cells"][1]["attempts"] == before

        done = launcher("resume", "swept", "--failed", "--json")

        assert done.code == FAILED
        assert done.answer["cells"][1]["attempts"] == before + 1

    def test_what_has_ended_cannot_be_cancelled(self, swept: Swept, launcher: Shell) -> None:
        done = launcher("cancel", "swept")

        assert (done.code, done.err) == (USAGE, "launcher: swept has ended already: 3 of 4 finished, 1 failed\n")


class TestInTheBackground:
    def test_cancelled_it_ends_all_and_leaves_nothing_behind(self, launcher: Shell) -> None:
        keys = json.dumps({"list": [{"seed_everything": seed} for seed in range(3)]})
        words = ("--set", f"sweep={keys}", "--set", "model.init_args.steps=100000", "--set", "model.init_args.nap=0.02")
        accepted = launcher("run", SPEC, "--name", "behind", "--detach", "--no-check", *words)
        assert accepted.code == FINISHED, accepted.err
        assert "launcher status behind" in accepted.out
        assert within(SOON, (launcher.runs / "behind/0000/run.json").exists)
        first = Run(PosixStorage(launcher.runs / "behind/0000"))
        assert within(SOON, lambda: len(processes_of(first)) >= 2)

        assert launcher("resume", "behind").code == FAILED, "somebody drives it"
        cancelled = launcher("cancel", "behind", "--json")

        assert cancelled.code == FINISHED
        assert states(cancelled) == ["cancelled"] * 3
        assert within(SOON, lambda: not processes_of(first))
        assert within(SOON, lambda: launcher("list", "--json").answer[-1]["state"] == "cancelled")


class TestRefused:
    def test_what_is_wrong_with_any_run_is_told_before_there_is_anything(self, launcher: Shell) -> None:
        bad = "sweep={list: [{seed_everything: -1}, {trainer.max_epoch: 3}]}"

        done = launcher("run", SPEC, "--name", "bad", "--set", bad)

        assert done.code == USAGE
        assert [line.rpartition(bad + ": ")[2].split(": ")[0] for line in done.err.splitlines()] == [
            "sweep.list.0.seed_everything",
            "sweep.list.1.trainer.max_epoch",
        ]
        assert not (launcher.runs / "bad").exists()

    def test_a_model_that_cannot_be_made_is_told_before_there_is_anything(self, launcher: Shell) -> None:
        done = launcher("run", SPEC, "--name", "bad", "--set", "sweep.list.0={model.init_args.typo: 1}")

        assert (done.code, "typo" in done.err) == (USAGE, True)
        assert not (launcher.runs / "bad").exists()

    def test_a_checkpoint_to_begin_with_is_for_one_run(self, launcher: Shell) -> None:
        assert launcher("run", SPEC, "--from", "anything").code == USAGE
