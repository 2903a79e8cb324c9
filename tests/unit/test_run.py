"""Run directories: made once, found by id, name or unique beginning."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import USAGE, FormatTooNew, LauncherError, UsageError
from launcher.events import AttemptStarting, ResumeRequested
from launcher.layout import attempt_folder, failure_path, finished_path, log_path
from launcher.record import Code, Tree, check_id, new_id
from launcher.run import Run, create_run, failures
from launcher.runs import find_run, run_ids

MakeRun = Callable[..., Run]


def age(run: Run, seconds: int) -> None:
    """Make a run older than those that were made just now."""
    path = Path(run.storage.root, "run.json")
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


class TestCreate:
    def test_a_run_is_read_back_as_it_was_created(self, make_run: MakeRun, runs_root: Path) -> None:
        created = make_run("one", name="mnist", resources={"nodes": 2})

        found = find_run(runs_root, "one")

        assert found.record == created.record
        assert found.id == "one"
        assert found.record.spec["resources"] == {"nodes": 2}
        assert found.storage.root == str(runs_root / "one")

    def test_a_name_that_is_taken_is_refused_and_the_run_stays_as_it_was(self, make_run: MakeRun) -> None:
        first = make_run("one", name="first")

        with pytest.raises(UsageError, match="'one' exists already"):
            make_run("one", name="second")

        assert Run(first.storage).record.name == "first"

    @pytest.mark.parametrize(
        "bad", ["", ".", "..", ".hidden", "-rf", "a/b", "../a", "a b", "a\n", "ä", "a;b", "a'b", "x" * 96]
    )
    def test_what_is_no_name_for_a_folder_is_refused(self, make_run: MakeRun, runs_root: Path, bad: str) -> None:
        with pytest.raises(UsageError, match="is no name for a run"):
            make_run(bad)

        assert not runs_root.exists()

    def test_a_name_can_be_checked_before_anything_is_done(self) -> None:
        with pytest.raises(UsageError, match=r"'\.\./a' is no name for a run"):
            check_id("../a")

    @pytest.mark.parametrize("good", ["a", "0", "A.b_c-d", "x" * 95])
    def test_what_is_a_name_is_taken(self, make_run: MakeRun, good: str) -> None:
        assert make_run(good).id == good

    def test_a_place_that_cannot_be_written_is_told_with_what_to_do(self, make_run: MakeRun, runs_root: Path) -> None:
        runs_root.write_text("a file, no folder")

        with pytest.raises(LauncherError, match=r"cannot write .*runs/one: Not a directory; .*--runs-root") as raised:
            make_run("one")

        assert raised.value.exit_code != USAGE

    def test_a_full_name_of_a_spec_still_makes_an_id(self, make_run: MakeRun) -> None:
        longest = "x" * 63

        assert make_run(new_id(longest), name=longest).record.name == longest

    def test_ids_say_when_and_differ(self) -> None:
        ids = {new_id("mnist") for _ in range(20)}

        assert len(ids) > 1
        assert all(re.fullmatch(r"mnist-\d{8}-\d{6}-[0-9a-f]{4}", one) for one in ids)


class TestFind:
    def test_by_id(self, make_run: MakeRun, runs_root: Path) -> None:
        make_run("mnist-1")
        make_run("mnist-10")

        assert find_run(runs_root, "mnist-1").id == "mnist-1"

    def test_by_unique_beginning(self, make_run: MakeRun, runs_root: Path) -> None:
        make_run("mnist-1a")
        make_run("mnist-1b")

        assert find_run(runs_root, "mnist-1b").id == find_run(runs_root, "mnist-1b"[:8]).id == "mnist-1b"

    def test_several_that_fit_are_named(self, make_run: MakeRun, runs_root: Path) -> None:
        for one in ("mnist-1a", "mnist-1b", "other"):
            make_run(one)

        with pytest.raises(UsageError, match=r"'mnist-1' fits 2 runs: mnist-1a, mnist-1b$"):
            find_run(runs_root, "mnist-1")

    def test_by_name_the_latest_of_that_name(self, make_run: MakeRun, runs_root: Path) -> None:
        age(make_run("mnist-2", name="mnist"), 60)
        make_run("mnist-1", name="mnist")
        make_run("mnist-large-3", name="mnist-large")

        assert find_run(runs_root, "mnist").id == "mnist-1"

    def test_a_neighbour_that_cannot_be_read_is_in_nobody_s_way(self, make_run: MakeRun, runs_root: Path) -> None:
        damaged = make_run("mnist-0", name="mnist")
        make_run("mnist-1", name="mnist")
        damaged.storage.replace("run.json", b"{")

        assert find_run(runs_root, "mnist").id == "mnist-1"
        with pytest.raises(LauncherError, match=r"mnist-0/run\.json: damaged"):
            find_run(runs_root, "mnist-0")

    @pytest.mark.parametrize("oldest", ["a", "b", "c"])
    def test_without_a_name_the_latest(self, make_run: MakeRun, runs_root: Path, oldest: str) -> None:
        runs = {name: make_run(name) for name in "abc"}
        for seconds, name in enumerate(sorted(runs, key=lambda name: name != oldest)[::-1], 1):
            age(runs[name], 10 * seconds)

        assert run_ids(runs_root)[0] == oldest
        assert find_run(runs_root, None).id == run_ids(runs_root)[-1]

    @pytest.mark.parametrize("wanted", ["nobody", "x/../one", "one/", "/", "*", "one\0", "n" * 5000])
    def test_none_that_fits_is_told_with_what_to_do(self, make_run: MakeRun, runs_root: Path, wanted: str) -> None:
        make_run("one")

        with pytest.raises(UsageError, match="`launcher list`"):
            find_run(runs_root, wanted)

    @pytest.mark.parametrize("wanted", [None, "one"])
    def test_no_runs_at_all_is_told(self, runs_root: Path, wanted: str | None) -> None:
        with pytest.raises(UsageError, match=r"no runs under .*/runs .*LAUNCHER_RUNS"):
            find_run(runs_root, wanted)

    def test_what_is_no_run_is_not_listed(self, make_run: MakeRun, runs_root: Path) -> None:
        make_run("one")
        (runs_root / "folder").mkdir()
        (runs_root / "file").write_text("")
        (runs_root / ".hidden").mkdir()
        (runs_root / ".hidden" / "run.json").write_text("{}")

        assert run_ids(runs_root) == ["one"]


class TestRead:
    def test_a_folder_without_run_json_is_no_run(self, make_run: MakeRun) -> None:
        run = make_run()
        run.storage.delete("run.json")

        with pytest.raises(UsageError, match=r"no run here \(no run\.json\)"):
            Run(run.storage)

    def test_a_newer_format_is_refused_by_the_version_that_wrote_it(self, make_run: MakeRun) -> None:
        run = make_run()
        body = json.loads(run.storage.read("run.json"))
        run.write_json("run.json", body | {"format": 2, "launcher": "9.9", "something": "new"})

        with pytest.raises(FormatTooNew, match=r"written by launcher 9\.9, this is .*; update this one"):
            Run(run.storage)

    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "{",
            "[]",
            "1",
            "null",
            '"text"',
            '{"format": 1}',
            '{"format": "1"}',
            "\xff",
            {"spec": []},
            {"created": "now"},
            {"id": 1},
            {"import_path": "/a"},
            {"code": 1},
            {"code": {}},
            {"code": {"trees": [1], "import_path": []}},
        ],
    )
    def test_what_a_launcher_did_not_write_is_told_with_its_file(self, make_run: MakeRun, damage: Any) -> None:
        run = make_run()
        body = json.loads(run.storage.read("run.json"))
        text = damage if isinstance(damage, str) else json.dumps(body | damage)
        run.storage.replace("run.json", text.encode("latin-1"))

        with pytest.raises(
            LauncherError, match=r"/runs/run/run\.json: damaged, or not written by a launcher \("
        ) as raised:
            Run(run.storage)

        assert raised.value.exit_code != USAGE
        assert "\n" not in str(raised.value)

    def test_what_cannot_be_read_is_told_with_its_file(self, make_run: MakeRun) -> None:
        run = make_run()
        run.storage.delete("run.json")
        Path(run.storage.root, "run.json").mkdir()

        with pytest.raises(LauncherError, match=r"/runs/run/run\.json: damaged, .*IsADirectoryError"):
            Run(run.storage)

    def test_the_code_is_read_back_as_it_was_written(self, make_run: MakeRun, runs_root: Path) -> None:
        trees = (Tree(path="/p", folder="p", commit="abc", changed=3), Tree(path="/q", folder="q"))
        code = Code(digest="12ab", trees=trees, import_path=("p/src", "/elsewhere"), workdir=None, diff=True)

        created = create_run(runs_root, replace(make_run().record, id="coded", code=code))

        assert Run(created.storage).record.code == code

    def test_a_run_from_before_there_was_a_snapshot_has_none(self, make_run: MakeRun) -> None:
        run = make_run()
        body = json.loads(run.storage.read("run.json"))
        del body["code"]
        run.write_json("run.json", body)

        assert Run(run.storage).record == run.record

    def test_keys_that_a_later_launcher_has_added_are_passed_over(self, make_run: MakeRun) -> None:
        run = make_run()
        run.write_json("run.json", json.loads(run.storage.read("run.json")) | {"added": 1})

        assert Run(run.storage).record == run.record

    def test_finished_is_what_the_newest_attempt_says(self, make_run: MakeRun) -> None:
        run = make_run("run", AttemptStarting(attempt=1, target="local"))
        assert run.finished is None

        run.write_json(finished_path(1), {"step": 3})

        assert run.finished == {"step": 3}

    def test_an_overtaken_attempt_that_comes_to_its_end_finishes_nothing(self, make_run: MakeRun) -> None:
        run = make_run("run", AttemptStarting(attempt=1, target="local"), AttemptStarting(attempt=2, target="local"))

        run.write_json(finished_path(1), {"step": 3})

        assert run.finished is None

    def test_a_run_that_was_resumed_is_finished_no_longer(self, make_run: MakeRun) -> None:
        run = make_run("run", AttemptStarting(attempt=1, target="local"))
        run.write_json(finished_path(1), {"step": 3})

        run.ledger.append(ResumeRequested(by="me"), after=1)

        assert run.finished is None

    def test_failures_come_the_earliest_first(self, make_run: MakeRun) -> None:
        run = make_run()
        for rank, at in ((0, 5.0), (1, 3.0), (12, 4.0)):
            run.write_json(failure_path(1, rank), {"rank": rank, "time": at})
        run.write_json(failure_path(2, 0), {"rank": 7, "time": 0.0})
        run.write_json(f"{attempt_folder(1)}/progress.json", {"step": 1})

        assert [record["rank"] for record in failures(run, 1)] == [1, 12, 0]
        assert failures(run, 3) == []

    def test_attempts_and_ranks_sort_by_number(self) -> None:
        paths = [log_path(attempt, rank) for attempt in (2, 10, 100) for rank in (0, 9, 10, 1000)]

        assert paths == sorted(paths)
