"""Runs on an object store, from the command line, with real ranks: killed, moved, and exact all the same.

Everything that takes long is done once, side by side: first three runs that begin, then four that go on.
"""

import csv
import io
import os
import shutil
import signal
import socket
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli.commands import JOBS, Shell, all_gone, processes_of, trains, within
from tensorboard.backend.event_processing import event_accumulator

from launcher.address import storage_at
from launcher.checkpoints import in_order
from launcher.layout import files_prefix
from launcher.mirror import fetch
from launcher.run import Run
from launcher.runs import open_run
from launcher.storage import Storage

SPEC = JOBS / "two_loggers.yaml"
RANKS_S = 240.0
"""Until six ranks have come up at once on two cores."""


class Runs(NamedTuple):
    launcher: Shell
    gs: str
    """The folder of runs on the object store."""
    undisturbed: Run
    killed: Run
    """On gs://, begun in the background; its driver was killed, and it was resumed."""
    copied: Run
    """Begun on this machine and interrupted; its copy on gs://, resumed."""
    moved: Run
    """The same, renamed to another folder of this machine, resumed."""
    returned: Run
    """A copy on this machine of the one that was killed on gs://, resumed."""


@pytest.fixture(scope="module")
def runs(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder, gs = tmp_path_factory.mktemp("runs"), f"gs://{bucket}/my runs"
    os.environ["LAUNCHER_SCRATCH"] = str(folder / "scratch")
    shell = Shell(tmp_path_factory.mktemp("shell"))
    try:
        yield _all(shell, gs, folder)
    finally:
        del os.environ["LAUNCHER_SCRATCH"]
        shell.end()


def _all(shell: Shell, gs: str, folder: Path) -> Runs:
    undisturbed = shell.start("run", SPEC, "--no-check", "--name", "undisturbed")
    interrupted = shell.start("run", SPEC, "--no-check", "--name", "interrupted")
    detached = shell("run", SPEC, "--no-check", "--runs-root", gs, "--name", "killed", "-d", seconds=RANKS_S)
    assert detached.code == 0, detached.err
    killed = open_run(gs, "killed")
    assert within(
        RANKS_S, lambda: (shell.runs / "interrupted/run.json").exists() and trains(shell.run_of("interrupted"))
    )
    interrupted.signal(signal.SIGINT)
    assert within(RANKS_S, lambda: trains(killed))
    ranks = processes_of(killed)
    driver = killed.ledger.refresh().driver
    assert driver is not None
    os.kill(driver.pid, signal.SIGKILL)
    assert within(20, lambda: all_gone([*ranks, driver.pid]))
    assert interrupted.wait() == 75, interrupted.output
    assert undisturbed.wait(RANKS_S) == 0, undisturbed.output

    _copy(storage_at(shell.runs / "interrupted"), storage_at(f"{gs}/interrupted"))
    _copy(storage_at(shell.runs / "interrupted"), storage_at(f"{gs}/cancelled"))
    _copy(storage_at(f"{gs}/killed"), storage_at(folder / "returned/killed"))
    shutil.move(shell.runs / "interrupted", folder / "elsewhere/interrupted")
    elsewhere, returned = str(folder / "elsewhere"), str(folder / "returned")
    places = [("killed", gs), ("killed", returned), ("interrupted", gs), ("interrupted", elsewhere)]
    commands = [shell.start("resume", name, "--runs-root", root) for name, root in places]
    for command in commands:
        assert command.wait(RANKS_S) == 0, command.output
    of_both = open_run(gs, "interrupted"), open_run(elsewhere, "interrupted"), open_run(returned, "killed")
    return Runs(shell, gs, shell.run_of("undisturbed"), killed, *of_both)


def _copy(source: Storage, target: Storage) -> None:
    """As `gcloud storage cp -r` does."""
    for name in source.files(""):
        with target.writer(name) as stream:
            stream.write(source.read(name))


EACH = pytest.mark.parametrize("name", ["killed", "copied", "moved", "returned"])


def weights_of(run: Run) -> dict[str, bytes]:
    """The tensors of the last checkpoint, as they are stored."""
    saved = in_order(run.ledger.refresh())[-1]
    assert saved.complete
    with zipfile.ZipFile(io.BytesIO(run.storage.read(saved.path))) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
        return {name: archive.read(name) for name in names}


def curves_of(run: Run, folder: Path) -> tuple[list[dict[str, str]], dict[str, list[tuple[int, float]]]]:
    """The rows of the table, and all curves that TensorBoard shows."""
    attempt = run.ledger.refresh().attempts[-1].number
    prefix = files_prefix(attempt) if "://" in run.storage.root else ""
    kept = {name: None for name in run.storage.files(prefix) if name.startswith(("csv/", "tensorboard/"))}
    fetch(run.storage, prefix, kept, folder)
    reader = event_accumulator.EventAccumulator(str(folder / "tensorboard"), {event_accumulator.SCALARS: 0})
    reader.Reload()
    with (folder / "csv/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@EACH
def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(runs: Runs, name: str) -> None:
    run: Run = getattr(runs, name)

    assert len(run.ledger.refresh().attempts) == 2
    assert run.ledger.refresh().attempts[1].first_step, "it began anew"
    assert weights_of(run) == weights_of(runs.undisturbed)


@EACH
def test_its_curves_are_complete_and_nothing_in_them_is_there_twice(runs: Runs, name: str, tmp_path: Path) -> None:
    expected = curves_of(runs.undisturbed, tmp_path / "expected")

    found = curves_of(getattr(runs, name), tmp_path / "found")

    assert len(expected[0]) == 201
    assert [step for step, _ in expected[1]["train_loss"]] == list(range(200))
    assert found == expected


def test_nothing_in_a_run_directory_names_its_place_but_what_was_executed(runs: Runs) -> None:
    """Else it could not be moved: plan.json is a record, handles are of processes that are gone."""
    storage = runs.undisturbed.storage
    names = [name for name in storage.files("") if name.endswith((".json", ".csv", ".yaml", ".ckpt"))]

    places = [name for name in names if storage.root.encode() in storage.read(name)]

    assert places == ["attempts/001/plan.json"]


def test_what_the_ranks_printed_is_stored_once_and_whole(runs: Runs) -> None:
    first = runs.launcher("logs", "killed", "--attempt", "1", "--runs-root", runs.gs)
    second = runs.launcher("logs", "killed", "--runs-root", runs.gs)
    missing = runs.launcher("logs", "killed", "--rank", "7", "--runs-root", runs.gs)

    assert first.out.count("starting from the beginning") == 1
    assert second.out.count("resuming from step") == second.out.count("`max_epochs=1` reached") == 1
    assert missing.code == 64
    assert "there are: rank-00000.log, rank-00001.log" in missing.err


def test_followers_and_views_read_it_from_anywhere(runs: Runs) -> None:
    def answer(*words: str) -> str:
        done = runs.launcher(*words, LAUNCHER_RUNS=runs.gs)
        assert done.code == 0, done.err
        return done.out

    listed = answer("list")
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("killed ")] == ["finished"]
    assert f"{runs.gs}/killed" in answer("status", "kil")
    assert "killed finished" in answer("logs", "--follow", "killed")
    assert answer("checkpoints", "verify", "killed").count("verified") == 3
    assert "the launcher that had started it died" in answer("why", "killed", "--attempt", "1")
    assert "AttemptResumes" in answer("events", "killed")


def test_a_run_there_is_cancelled_like_any_other(runs: Runs) -> None:
    done = runs.launcher("cancel", "cancelled", "--runs-root", runs.gs)

    assert done.code == 0, done.err
    assert runs.launcher("status", "cancelled", "--json", "--runs-root", runs.gs).answer["state"] == "cancelled"


def test_the_code_is_one_archive_and_is_unpacked_only_while_it_is_needed(runs: Runs) -> None:
    code = runs.killed.record.code
    assert code is not None

    assert set(runs.killed.storage.files("code")) - {f"{code.digest}.diff"} == {f"{code.digest}.tar"}
    plan = runs.killed.read_json("attempts/002/plan.json")
    first = plan["env"]["PYTHONPATH"].split(":")[0]
    assert first.startswith(os.environ["LAUNCHER_SCRATCH"])
    assert not Path(first).exists()


def test_nothing_of_runs_that_have_ended_is_left_on_this_machine(runs: Runs) -> None:
    assert list(Path(os.environ["LAUNCHER_SCRATCH"]).iterdir()) == []


def test_tensorboard_shows_what_is_there(runs: Runs) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = runs.launcher.start("tensorboard", "killed", "--port", str(port), "--runs-root", runs.gs)

    def shown() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=5) as answer:
                return b"train_loss" in answer.read()
        except OSError:
            time.sleep(0.2)
            return False

    assert within(60, shown), server.output
    below = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert below
    assert all_gone(below)


def test_a_place_that_is_not_there_is_told_in_one_sentence(runs: Runs) -> None:
    listed = runs.launcher("list", "--runs-root", "gs://no-such-bucket/runs")
    run = runs.launcher("run", SPEC, "--no-check", "--runs-root", "gs://no-such-bucket/runs")

    for done in (listed, run):
        assert done.code == 1
        assert "there is no bucket no-such-bucket" in done.err
        assert "Traceback" not in done.err
