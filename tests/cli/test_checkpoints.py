"""A run's checkpoints from the command line: seen, read in full, exported, deleted, held against one another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.commands import JOBS, Done, Shell, copied, in_bash
from launcher.checkpoints import BadCheckpoint, Manifest, checkpoint_path
from launcher.cli.checkpoints import best_of, looked_at
from launcher.cli.parser import expanded
from launcher.driver import this_process
from launcher.errors import FAILED, USAGE
from launcher.events import CheckpointSaved, CheckpointsDropped, Driving
from launcher.run import Run
from launcher.runs import open_run
from launcher.storage import Storage

STEPS = 200
SAVED = [STEPS - 40, STEPS - 20, STEPS]


@pytest.fixture
def root(finished: Done, launcher: Shell, tmp_path: Path) -> Path:
    """A runs root with a copy of the finished run, to be altered."""
    return copied(launcher, tmp_path, "reference")


def file_of(root: Path, step: int) -> Path:
    return root / f"reference/checkpoints/step-{step:08d}-a001/checkpoint.ckpt"


def damage(root: Path, step: int) -> None:
    data = bytearray(file_of(root, step).read_bytes())
    data[len(data) // 2] ^= 1
    file_of(root, step).write_bytes(data)


class TestList:
    @pytest.mark.parametrize("words", [("checkpoints",), ("checkpoints", "list")])
    def test_they_come_oldest_first_and_end_at_the_last_step(
        self, finished: Done, launcher: Shell, words: tuple[str, ...]
    ) -> None:
        shown = launcher(*words, "reference", "--json").answer

        assert [one["step"] for one in shown] == SAVED
        assert [one["complete"] for one in shown] == [False, False, True]
        for one in shown:
            assert (one["attempt"], one["world_size"], one["precision"]) == (1, 2, "32-true")
            assert (one["monitored"], one["best"], one["problem"]) == (None, False, "")
            assert one["bytes"] == Path(one["path"]).stat().st_size

    def test_for_people_it_is_a_table(self, finished: Done, launcher: Shell) -> None:
        head, *rows = launcher("checkpoints", "reference").out.splitlines()

        assert head.split() == ["STEP", "EPOCH", "ATTEMPT", "RANKS", "PRECISION", "BYTES", "SAVED", "STATE", "PATH"]
        assert [row.split()[0] for row in rows] == [str(step) for step in SAVED]
        assert " complete " in rows[-1]
        assert rows[-1].endswith(".ckpt")

    def test_none_of_them_is_read(self, root: Path, launcher: Shell) -> None:
        file_of(root, STEPS).write_bytes(b"")

        shown = launcher("checkpoints", "--json", "--runs-root", root).answer

        assert shown[-1]["problem"] == ""
        assert shown[-1]["bytes"] > 0

    def test_one_without_a_manifest_is_shown_and_told(self, root: Path, launcher: Shell) -> None:
        file_of(root, STEPS).with_name("manifest.json").write_text("{")

        shown = launcher("checkpoints", "--json", "--runs-root", root).answer

        assert [one["step"] for one in shown] == SAVED
        assert shown[-1]["problem"].startswith("no readable manifest.json")
        assert shown[-1]["world_size"] is None
        assert "no readable manifest.json" in launcher("checkpoints", "--runs-root", root).out

    def test_a_run_without_any_says_so(self, launcher: Shell, make_run: Callable[..., Run], runs_root: Path) -> None:
        make_run("list")

        assert launcher("checkpoints", "list", "list", "--runs-root", runs_root).out == "list has no checkpoints\n"
        assert launcher("checkpoints", "verify", "list", "--runs-root", runs_root).out == "list has no checkpoints\n"
        assert launcher("checkpoints", "list", "list", "--runs-root", runs_root, "--json").answer == []

    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            ("checkpoints", "checkpoints list"),
            ("checkpoints tour", "checkpoints list tour"),
            ("checkpoints --json tour", "checkpoints list --json tour"),
            ("checkpoints list", "checkpoints list"),
            ("checkpoints verify tour", "checkpoints verify tour"),
            ("checkpoints --help", "checkpoints --help"),
            ("status tour", "status tour"),
        ],
    )
    def test_is_what_the_verb_means_without_an_action(self, typed: str, meant: str) -> None:
        assert expanded(typed.split()) == meant.split()


def test_one_that_the_run_deletes_while_it_is_looked_at_is_not_bad(make_run: Callable[..., Run]) -> None:
    run = make_run("living", *(saved(step) for step in (10, 20)))

    def look(storage: Storage, path: str) -> Manifest:
        if "step-00000010" in path:
            dropped = CheckpointsDropped(attempt=1, paths=(path,), reason="keep_last: 1")
            run.ledger.append(dropped, after=run.ledger.refresh().version)
        raise BadCheckpoint("gone")

    assert [(one.step, problem) for one, problem in looked_at(run, look)] == [(20, "gone")]


def saved(step: int) -> CheckpointSaved:
    return CheckpointSaved(attempt=1, step=step, epoch=0, path=checkpoint_path(step, 1), bytes=7, complete=False)


class TestBest:
    def judged(self, value: float | None, name: str = "val_loss", mode: str = "min") -> dict[str, Any]:
        return {"monitored": {"name": name, "mode": mode, "value": value}}

    def test_is_the_lowest_or_the_highest_as_the_metric_has_it(self) -> None:
        lower, higher = self.judged(0.1), self.judged(0.2)
        assert best_of([higher, lower]) is lower

        lower, higher = self.judged(0.1, "acc", "max"), self.judged(0.2, "acc", "max")
        assert best_of([higher, lower]) is higher

    def test_of_equal_ones_is_the_first(self) -> None:
        first = self.judged(0.1)

        assert best_of([first, self.judged(0.1)]) is first

    def test_is_judged_by_the_last_one_s_metric_and_never_by_what_is_no_number(self) -> None:
        best = self.judged(0.8, "acc", "max")

        assert best_of([self.judged(0.9), best, {"monitored": None}, self.judged(None, "acc", "max")]) is best

    def test_there_is_none_without_a_metric(self) -> None:
        assert best_of([{"monitored": None}, self.judged(None)]) is None


class TestVerify:
    def test_whole_ones_are_verified(self, finished: Done, launcher: Shell) -> None:
        done = launcher("checkpoints", "verify", "reference")

        assert done.code == 0
        assert [line.split()[:3] for line in done.out.splitlines()] == [["step", str(one), "verified"] for one in SAVED]

    def test_a_damaged_one_is_told(self, root: Path, launcher: Shell) -> None:
        damage(root, STEPS - 20)

        shown = launcher("checkpoints", "verify", "--json", "--runs-root", root)
        said = launcher("checkpoints", "verify", "--runs-root", root)

        assert (shown.code, said.code) == (FAILED, FAILED)
        assert [one["verified"] for one in shown.answer] == [True, False, True]
        assert "bad: its checksum differs from the manifest's" in said.out
        assert "1 of 3 bad" in said.out

    def test_only_the_one_that_is_asked_for_is_read(self, root: Path, launcher: Shell) -> None:
        damage(root, STEPS - 20)

        done = launcher("checkpoints", "verify", f"reference@{STEPS}", "--json", "--runs-root", root)

        assert (done.code, [one["step"] for one in done.answer]) == (0, [STEPS])
        assert launcher("checkpoints", "verify", f"reference@{STEPS - 20}", "--runs-root", root).code == FAILED

    @pytest.mark.parametrize(
        ("wanted", "problem"),
        [
            ("reference@7", "reference has no checkpoint of step 7; there are: 160, 180, 200"),
            ("reference@x", "reference@x: expected RUN or RUN@STEP, with a whole number for STEP"),
        ],
    )
    def test_what_is_not_there_is_refused(self, finished: Done, launcher: Shell, wanted: str, problem: str) -> None:
        done = launcher("checkpoints", "verify", wanted)

        assert (done.code, done.err) == (USAGE, f"launcher: {problem}\n")


class TestExport:
    def test_the_weights_are_written_alone_and_model_weights_takes_them(
        self, finished: Done, launcher: Shell, tmp_path: Path
    ) -> None:
        file = tmp_path / "my weights.pt"

        done = launcher("checkpoints", "export", "reference", "-o", file)

        assert done.code == 0, done.err
        assert f"of reference, step {STEPS}; {file.stat().st_size:,} bytes" in done.out
        assert loaded(file).keys() == loaded(file_of(launcher.runs, STEPS))["state_dict"].keys()
        assert launcher("checkpoints", "diff", "reference", file).code == 0
        checked = launcher("check", JOBS / "net.yaml", "--set", f"model.weights='{file}'")
        assert checked.code == 0, checked.err

    def test_a_step_may_be_chosen(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        file = tmp_path / "weights.pt"

        launcher("checkpoints", "export", f"reference@{STEPS - 40}", "-o", file)

        assert launcher("checkpoints", "diff", f"reference@{STEPS - 40}", file).code == 0
        assert launcher("checkpoints", "diff", f"reference@{STEPS}", file).code == FAILED

    def test_a_file_is_overwritten_only_by_force(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        file = tmp_path / "weights.pt"
        file.write_text("precious")

        refused = launcher("checkpoints", "export", "reference", "-o", file)
        kept = file.read_text()
        forced = launcher("checkpoints", "export", "reference", "-o", file, "--force")

        assert (refused.code, refused.err) == (USAGE, f"launcher: -o {file}: exists already; --force overwrites it\n")
        assert kept == "precious"
        assert forced.code == 0
        assert "net.0.weight" in loaded(file)

    def test_a_damaged_one_is_passed_over_and_refused_by_its_step(
        self, root: Path, launcher: Shell, tmp_path: Path
    ) -> None:
        damage(root, STEPS)

        newest = launcher("checkpoints", "export", "reference", "-o", tmp_path / "one.pt", "--runs-root", root)
        named = launcher("checkpoints", "export", f"reference@{STEPS}", "-o", tmp_path / "two.pt", "--runs-root", root)

        assert newest.code == 0
        assert newest.err == f"reference: step {STEPS} is not whole; taking step {STEPS - 20}\n"
        assert named.code == USAGE
        assert f"no checkpoint of step {STEPS} that is whole" in named.err
        assert not (tmp_path / "two.pt").exists()

    def test_where_the_disk_is_full_nothing_is_left_and_what_was_there_stays(
        self, finished: Done, launcher: Shell, tmp_path: Path
    ) -> None:
        file = tmp_path / "out/weights.pt"
        file.parent.mkdir()
        file.write_text("precious")

        # Python would leave torn .pyc files behind as well.
        script = f'ulimit -f 1; PYTHONDONTWRITEBYTECODE=1 "$0" checkpoints export reference --force -o {file}'
        done = in_bash(launcher, script)

        assert (done.returncode, done.stdout) == (USAGE, "")
        assert done.stderr == f"launcher: {file}: cannot be written (File too large); choose another place with -o\n"
        assert list(file.parent.iterdir()) == [file]
        assert file.read_text() == "precious"


class TestDiff:
    def test_a_checkpoint_is_the_same_as_itself(self, finished: Done, launcher: Shell) -> None:
        done = launcher("checkpoints", "diff", "reference", f"reference@{STEPS}")

        assert done.code == 0
        assert "weights     the same to the bit: 4 tensors\n" in done.out
        assert "optimizers  the same to the bit\n" in done.out

    def test_two_steps_differ_and_the_first_difference_is_told(self, finished: Done, launcher: Shell) -> None:
        words = ("checkpoints", "diff", f"reference@{STEPS - 20}", "reference")

        said, shown = launcher(*words), launcher(*words, "--json")

        assert (said.code, shown.code) == (FAILED, FAILED)
        found = shown.answer
        assert (found["same"], found["differing"], found["tensors"]) == (False, 4, 4)
        assert found["optimizers_same"] is False
        assert (found["a"]["step"], found["b"]["step"]) == (STEPS - 20, STEPS)
        first = found["differences"][0]
        where = f"{first['name']}{first['index']}: {first['a']} in A, {first['b']} in B"
        assert first["name"] == "net.0.weight"
        assert f"first       {where}; largest difference in it: " in said.out
        assert "weights     4 of 4 tensors differ\n" in said.out
        ours, theirs = (loaded(file_of(launcher.runs, step))["state_dict"] for step in (STEPS - 20, STEPS))
        row, column = first["index"]
        assert float(first["a"]) == ours["net.0.weight"][row, column].item()
        assert float(first["b"]) == theirs["net.0.weight"][row, column].item()

    def test_files_are_taken_too(self, finished: Done, launcher: Shell, tmp_path: Path) -> None:
        file = tmp_path / "copy.ckpt"
        file.write_bytes(file_of(launcher.runs, STEPS).read_bytes())

        done = launcher("checkpoints", "diff", "reference", file, "--json")

        assert (done.code, done.answer["same"], done.answer["b"]["path"]) == (0, True, str(file))

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (None, "{file} is no file; as RUN[@STEP]: no run '{file}'"),
            (b"", "{file}: cannot be loaded under weights_only=True: it is damaged, or torch.save has not written it"),
            (b"{}", "{file}: cannot be loaded under weights_only=True: it is damaged, or torch.save has not written"),
            ("object", "{file}: cannot be loaded under weights_only=True: it holds a pathlib.PosixPath"),
            ("number", "{file}: holds no weights: it is neither a checkpoint of Lightning nor a state_dict"),
        ],
    )
    def test_what_holds_no_weights_is_told_in_one_line(
        self, finished: Done, launcher: Shell, tmp_path: Path, content: bytes | str | None, problem: str
    ) -> None:
        file = tmp_path / "file"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content:
            save({"object": {"path": file}, "number": 3}[content], file)

        done = launcher("checkpoints", "diff", "reference", file)

        assert (done.code, done.out) == (USAGE, "")
        assert problem.format(file=file) in done.err
        assert done.err.count("\n") == 1

    def test_the_current_folder_s_modules_are_not_imported(self, finished: Done, launcher: Shell) -> None:
        trap = launcher.cwd / "torch.py"
        trap.write_text("raise SystemExit(3)")
        try:
            done = launcher("checkpoints", "diff", "reference", "reference")
        finally:
            trap.unlink()

        assert done.code == 0, done.err


class TestPrune:
    def test_all_but_the_newest_are_deleted(self, root: Path, launcher: Shell) -> None:
        freed = sum(file.stat().st_size for file in file_of(root, SAVED[0]).parent.iterdir())
        words = ("checkpoints", "prune", "reference", "--keep-last", "2", "--runs-root", root)

        asked = launcher(*words, "--dry-run")
        before = [one["step"] for one in launcher("checkpoints", "--json", "--runs-root", root).answer]
        done = launcher(*words, "--json")

        assert f"would free {freed:,} bytes; steps that are kept: 180, 200\n" in asked.out
        assert before == SAVED
        assert done.code == 0
        answer = done.answer
        (deleted,) = answer.pop("deleted")
        assert answer == {"run": "reference", "dry_run": False, "freed": freed, "kept": SAVED[1:], "bad": 0}
        assert deleted["path"] == str(file_of(root, SAVED[0]).parent)
        assert not Path(deleted["path"]).exists()
        assert launcher("checkpoints", "verify", "--runs-root", root).code == 0
        assert launcher(*words).out == "freed 0 bytes; steps that are kept: 180, 200\n"

    def test_litter_is_named_and_what_was_set_aside_is_only_mentioned(self, root: Path, launcher: Shell) -> None:
        folder = root / "reference/checkpoints"
        (folder / "step-00000300-a001").mkdir()
        (folder / "bad/step-00000020-a001").mkdir(parents=True)
        (folder / "bad/step-00000020-a001/checkpoint.ckpt").write_bytes(bytes(1234))

        done = launcher("checkpoints", "prune", "--keep-last", "3", "--runs-root", root)

        assert done.out.splitlines()[1].split() == ["300", "0", "litter", str(folder / "step-00000300-a001")]
        assert f"set aside as bad, and not touched: 1,234 bytes in {folder}/bad\n" in done.out
        assert sorted(one.name for one in folder.iterdir()) == ["bad", *(f"step-{one:08d}-a001" for one in SAVED)]

    def test_a_run_that_is_driven_prunes_itself(
        self, launcher: Shell, make_run: Callable[..., Run], runs_root: Path
    ) -> None:
        make_run("living", Driving(driver=this_process()))

        done = launcher("checkpoints", "prune", "--keep-last", "1", "--runs-root", runs_root)

        assert done.code == FAILED
        assert "drives this run, which deletes by itself what checkpoint.keep_last says" in done.err
        assert done.err.count("\n") == 1

    def test_a_run_that_was_pruned_goes_on(self, root: Path, launcher: Shell) -> None:
        launcher("checkpoints", "prune", "--keep-last", "1", "--runs-root", root)

        done = launcher(
            "resume", "--runs-root", root, "--set", "trainer.max_epochs=2", "--no-check", "--json", seconds=120
        )

        assert done.code == 0, done.err
        assert done.answer["attempts"][-1]["first_step"] == STEPS
        assert open_run(root, "reference").finished is not None

    @pytest.mark.parametrize(
        "words", [("--keep-last",), ("--keep-last", "0"), ("--keep-last", "-1"), ("--keep-last", "two")]
    )
    def test_at_least_one_must_be_kept(self, finished: Done, launcher: Shell, words: tuple[str, ...]) -> None:
        done = launcher("checkpoints", "prune", "reference", *words)

        assert done.code == USAGE
        assert "--keep-last" in done.err
        assert len(launcher("checkpoints", "reference", "--json").answer) == 3


def loaded(file: Path) -> Any:
    import torch  # the other tests of the command line do without

    return torch.load(file, weights_only=True)


def save(value: Any, file: Path) -> None:
    import torch

    torch.save(value, file)
