"""A run that is changed: mended code, more epochs, a new run from an old one's checkpoint."""

import json
from pathlib import Path

import pytest

from cli.commands import Shell
from launcher.errors import FAILED, FINISHED, USAGE

MODULE = """
import lightning.pytorch.demos.boring_classes as demos

class Net(demos.BoringModel):
    def training_step(self, batch, batch_idx):
        if self.global_step == 3:
            {line}
        return super().training_step(batch, batch_idx)
"""
SPEC = """
name: mended
model: {class_path: own_net.Net}
trainer: {max_steps: 6, logger: false, enable_model_summary: false}
checkpoint: {every_n_steps: 2}
resources: {tasks_per_node: 1}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, and a module beside it that raises."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "job.yaml").write_text(SPEC)
    (folder / "own_net.py").write_text(MODULE.format(line='raise ValueError("a mistake")'))
    return folder


@pytest.fixture(scope="module")
def mended(project: Path, launcher: Shell) -> Path:
    """The run `mended` failed, its code was corrected, and it was resumed as `why` says."""
    assert launcher("run", project / "job.yaml", "--name", "mended", "--no-check", seconds=240).code == FAILED
    (project / "own_net.py").write_text(MODULE.format(line="pass"))
    return project


def test_mended_code_is_taken_when_it_is_asked_for_and_not_before(mended: Path, launcher: Shell) -> None:
    assert "a mistake" in launcher("why", "mended").out
    assert launcher("resume", "mended", seconds=240).code == FAILED

    done = launcher("resume", "mended", "--code", "--no-check", seconds=240)

    assert done.code == FINISHED, done.err
    assert "change: code: from here on as it is now" in done.out
    shown = launcher("status", "mended", "--json").answer
    assert (shown["state"], shown["step"]) == ("finished", 6)
    assert [one["first_step"] for one in shown["attempts"]] == [0, 2, 2]


def test_a_finished_run_goes_on_when_it_is_changed_and_says_what_that_does(mended: Path, launcher: Shell) -> None:
    assert "is finished already" in launcher("resume", "mended").out

    done = launcher("resume", "mended", "--set", "trainer.max_steps=9", "--no-check", seconds=240)

    assert done.code == FINISHED, done.err
    assert "change: trainer.max_steps: 6 -> 9: as if it had been so from the beginning" in done.out
    shown = launcher("status", "mended", "--json").answer
    assert (shown["state"], shown["step"], shown["attempts"][-1]["first_step"]) == ("finished", 9, 6)
    assert [one["kind"] for one in launcher("events", "mended", "--json").answer].count("ResumeRequested") == 3


def test_a_change_that_is_wrong_changes_nothing(mended: Path, launcher: Shell) -> None:
    before = launcher("events", "mended", "--json").answer
    done = launcher("resume", "mended", "--set", "trainer.max_step=9")

    assert done.code == USAGE
    assert "did you mean 'max_steps'?" in done.err
    assert launcher("events", "mended", "--json").answer == before


def test_a_number_of_ranks_that_cannot_share_the_global_batch_changes_nothing(mended: Path, launcher: Shell) -> None:
    before = launcher("events", "mended", "--json").answer
    done = launcher("resume", "mended", "--set", "resources.tasks_per_node=2")

    assert done.code == USAGE
    assert "2 ranks cannot share the 1 micro-batches of a step" in done.err
    assert "possible numbers of ranks: 1" in done.err
    assert launcher("events", "mended", "--json").answer == before


def test_a_new_run_begins_with_another_one_s_checkpoint(mended: Path, launcher: Shell) -> None:
    done = launcher(
        *("run", mended / "job.yaml", "--name", "branch", "--from", "mended@6", "--no-check"),
        *("--set", "trainer.max_steps=8"),
        seconds=240,
    )

    assert done.code == FINISHED, done.err
    assert "begins with step 6 of mended" in done.out
    shown = launcher("status", "branch", "--json").answer
    assert (shown["step"], shown["attempts"][0]["first_step"]) == (8, 6)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mended@7", "mended has no checkpoint of step 7 that is whole; there are: "),
        ("mended@x", "expected RUN or RUN@STEP"),
        ("nobody", "no run 'nobody'"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(source: str, said: str, mended: Path, launcher: Shell) -> None:
    done = launcher("run", mended / "job.yaml", "--name", "never", "--from", source, "--no-check")

    assert done.code == USAGE
    assert said in done.err
    assert launcher("status", "never").code == USAGE


@pytest.fixture
def targets(tmp_path: Path) -> dict[str, str]:
    """Two clouds of which nobody is asked anything."""
    tpu = {"project": "p", "zone": "z-a", "accelerator_type": "v4-16"}
    folder = tmp_path / "launcher/targets"
    folder.mkdir(parents=True)
    (folder / "cloud.yaml").write_text(json.dumps({"kind": "tpu", "tpu": tpu}))
    (folder / "xla.yaml").write_text(json.dumps({"kind": "tpu", "tpu": tpu, "trainer": {"strategy": "xla"}}))
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "clout"), "no target 'clout'; did you mean 'cloud'?"),
        (("--on", "cloud"), "launcher resume mended --on cloud --to gs://BUCKET/FOLDER"),
        (("--on", "cloud", "--to", "gs://b/runs"), "2 ranks cannot share the 1 micro-batches of a step"),
        (("--on", "slurm", "--to", "gs://b/runs"), "launcher resume mended --on slurm --to FOLDER"),
        (("--on", "slurm", "--to", "/dev/shm/runs"), "is in the memory of this machine (tmpfs)"),
        (
            ("--on", "xla", "--to", "gs://b/runs", "--set", "trainer.precision=16-mixed"),
            "trainer.precision: 16-mixed does not run with trainer.strategy: xla",
        ),
    ],
)
def test_a_place_where_it_cannot_go_on_changes_nothing(
    words: tuple[str, ...], said: str, mended: Path, launcher: Shell, targets: dict[str, str]
) -> None:
    before = launcher("events", "mended", "--json").answer

    done = launcher("resume", "mended", "--set", "trainer.max_steps=20", *words, **targets)

    assert done.code == USAGE
    assert said in done.err
    assert launcher("events", "mended", "--json").answer == before


def test_a_run_is_brought_to_another_folder_and_goes_on_there(mended: Path, launcher: Shell, tmp_path: Path) -> None:
    done = launcher(
        *("resume", "branch", "--to", tmp_path / "new runs", "--set", "trainer.max_steps=10", "--no-check"),
        seconds=240,
    )

    assert done.code == FINISHED, done.err
    assert f"it is found with --runs-root '{tmp_path}/new runs'" in done.out
    shown = launcher("status", "branch", "--json", "--runs-root", tmp_path / "new runs").answer
    assert (shown["step"], shown["attempts"][-1]["first_step"]) == (10, 8)
    assert launcher("status", "branch", "--json").answer["state"] == "moved"
    again = launcher("resume", "branch")
    assert again.code == USAGE
    assert f"launcher resume branch --runs-root '{tmp_path}/new runs'" in again.err
