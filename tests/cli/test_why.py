"""`launcher why`: the first cause, what became of the others, what to do next. Of runs as their ranks leave them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.commands import Shell
from launcher.cli.main import main
from launcher.cli.why import _ANSWERS
from launcher.errors import FINISHED, USAGE
from launcher.events import AttemptEnded, AttemptStarted, AttemptStarting, ResumeRequested, RunEnded
from launcher.kinds import Kind
from launcher.layout import failure_path, log_path
from launcher.record import Record
from launcher.run import Run, create_run

ERROR = {"type": "KeyError", "message": "'label'", "traceback": "Traceback ...\nKeyError: 'label'\n"}
PEER = {"kind": "peer", "type": "RuntimeError", "message": "Connection closed by peer", "traceback": "Traceback ..."}


class Made:
    """A run directory, written as the supervisor and its ranks write it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        record = Record(
            id="run",
            name="run",
            created=0.0,
            target="local",
            spec={},
            spec_file="/jobs/net.yaml",
            spec_text="",
            overrides=("model.init_args.name=two words",),
        )
        self.run: Run = create_run(root, record)

    def append(self, event: Any) -> None:
        self.run.ledger.append(event, after=self.run.ledger.refresh().version)

    def attempt(self, cause: str, reason: str, *records: dict[str, Any], hosts: tuple[str, ...] = ("here",)) -> None:
        """One that has ended so. Records: the earliest first."""
        number = len(self.run.ledger.refresh().attempts) + 1
        self.append(AttemptStarting(attempt=number, target="local"))
        self.append(AttemptStarted(attempt=number, hosts=hosts, handle={}))
        for at, record in enumerate(records):
            body = {"host": f"node{record['rank']}", "time": float(at), **record}
            self.run.write_json(failure_path(number, record["rank"]), body)
        self.append(AttemptEnded(attempt=number, cause=cause, reason=reason, step=0))

    def fail(self, cause: str, reason: str, *records: dict[str, Any]) -> None:
        self.attempt(cause, reason, *records)
        self.append(RunEnded(state="failed", reason=f"attempt 1: {reason}"))

    def log(self, rank: int, text: str, at: float = 0.0) -> None:
        path = Path(self.run.storage.root) / log_path(1, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (at, at))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def ask(made: Made, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def why(*words: str, code: int = FINISHED) -> str:
        assert main(["why", "run", "--runs-root", str(made.root), *words]) == code
        told = capsys.readouterr()
        return told.out if code == FINISHED else told.err

    return why


Ask = Callable[..., str]


def test_the_first_cause_and_not_the_echoes(made: Made, ask: Ask) -> None:
    echoes = [{"rank": rank, **PEER} for rank in (0, 1, 2, 5)]
    made.fail("error", "rank 3: KeyError: 'label'", *echoes, {"rank": 3, "kind": "error", **ERROR})

    assert ask().splitlines() == [
        "run failed: attempt 1: rank 3: KeyError: 'label'",
        "attempt 1 on local ended: error (rank 3: KeyError: 'label')",
        "first: rank 3 on node3 raised an exception",
        "",
        "Traceback ...",
        "KeyError: 'label'",
        "",
        "others: ranks 0-2, 5: lost their peer (an echo)",
        f"log of rank 3: {made.root}/run/attempts/001/logs/rank-00003.log",
        "next: mend the code, then: launcher resume run --code",
    ]


def test_the_same_for_programs(made: Made, ask: Ask) -> None:
    made.fail("error", "rank 1: KeyError: 'label'", {"rank": 0, **PEER}, {"rank": 1, "kind": "error", **ERROR})

    told = json.loads(ask("--json"))

    assert told["ranks"] == [
        {"rank": 0, "host": "node0", "kind": "peer", "type": "RuntimeError", "message": "Connection closed by peer"},
        {"rank": 1, "host": "node1", "kind": "error", "type": "KeyError", "message": "'label'"},
    ]
    wanted = {"attempt": 1, "cause": "error", "kind": "error", "rank": 1, "host": "node1", "silent": None}
    assert wanted.items() <= told.items()
    assert told["traceback"] == ERROR["traceback"]
    assert (told["run"], told["state"], told["last_lines"]) == ("run", "failed", [])


def test_a_single_echo_is_told_of_its_rank(made: Made, ask: Ask) -> None:
    made.fail("error", "rank 0: KeyError: 'label'", {"rank": 0, "kind": "error", **ERROR}, {"rank": 1, **PEER})

    assert "\nothers: rank 1: lost its peer (an echo)\n" in ask()


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("error", "mend the code, then: launcher resume run --code"),
        ("spec", "correct the spec: launcher resume run --set KEY=VALUE; or mend the code, then"),
        ("import", "install the module in this environment or mend the import, then: launcher resume run --code; or"),
        ("import", "begin anew: launcher run /jobs/net.yaml --set 'model.init_args.name=two words'"),
        ("memory", "resources.mem, or lower data.init_args.num_workers or batch_size: launcher resume run --set data."),
        ("gpu-memory", "to 16-mixed: launcher resume run --set data.init_args.batch_size=N; if other programs"),
        ("gpu-memory", "lower data.init_args.batch_size and raise trainer.accumulate_grad_batches by as much, or set"),
        ("shared-memory", "enlarge /dev/shm (docker: --shm-size)"),
        ("checkpoint", "change code and spec back to what wrote it, then: launcher resume run; or begin anew: "),
        ("drift", "change back what is named above"),
        ("port", "launcher resume run (each attempt takes a new port"),
        ("loader", "data.init_args.num_workers=0 gives a better traceback"),
        ("peer", "see whether the logs of other ranks end without a word"),
        ("hang", "see the log of the rank that did not come"),
        ("preempted", "nothing is wrong: launcher resume run"),
    ],
)
def test_each_recorded_kind_has_its_next_step(made: Made, ask: Ask, kind: str, step: str) -> None:
    made.fail("error", "rank 0: KeyError: 'label'", {"rank": 0, **ERROR, "kind": kind})

    next_ = ask().splitlines()[-1]

    assert next_.startswith("next: ")
    assert step in next_
    assert "{" not in next_
    assert json.loads(ask("--json"))["kind"] == kind


def test_a_full_disk_is_named(made: Made, ask: Ask) -> None:
    made.fail("infra", "rank 0: OSError: full", {"rank": 0, "kind": "disk", **ERROR, "type": "OSError"})

    mount = next(one for one in made.root.parents if one.is_mount())
    assert f"the run directory lies on {mount}, where " in ask()


@pytest.mark.parametrize(
    ("cause", "reason", "kind", "step"),
    [
        ("infra", "rank 1 was killed by SIGKILL; by the out-of-memory killer?", "killed", "look at memory (dmesg"),
        ("infra", "rank 1 was killed by SIGKILL; by the out-of-memory killer", "memory", "resources.mem"),
        ("infra", "rank 1 was killed by SIGSEGV", "crash", "PYTHONFAULTHANDLER"),
        ("error", "rank 1 exited with code 3 and left no traceback; see its log", "exit", "see the end of its log"),
        ("infra", "rank 1 could not write to the run directory; see its log", "disk", "make room"),
    ],
)
def test_without_a_traceback_the_end_of_the_log_is_shown(
    made: Made, ask: Ask, cause: str, reason: str, kind: str, step: str
) -> None:
    made.fail(cause, reason, {"rank": 0, **PEER})
    made.log(1, "".join(f"line {number}\n" for number in range(9)))

    told = json.loads(ask("--json"))

    assert (told["kind"], told["rank"], told["host"], told["traceback"]) == (kind, 1, "here", None)
    assert told["last_lines"] == [f"line {number}" for number in range(4, 9)]
    assert "\nline 7\nline 8\n\nothers: rank 0: lost its peer (an echo)\n" in ask()
    assert step in told["next"]


def test_an_exception_needs_no_log(made: Made, ask: Ask) -> None:
    made.fail("infra", "rank 0: RuntimeError: Connection closed by peer", {"rank": 0, **PEER})
    made.log(0, "line\n")

    assert json.loads(ask("--json"))["last_lines"] == []


def test_a_message_that_says_it_all_needs_no_log(made: Made, ask: Ask) -> None:
    spec = {"kind": "spec", "type": "CannotInstantiate", "message": "model: no such class", "traceback": None}
    made.fail("error", "rank 0: CannotInstantiate: model: no such class", {"rank": 0, **spec})
    made.log(0, "line\n")

    assert json.loads(ask("--json"))["last_lines"] == []


def test_of_a_hang_the_rank_is_named_that_was_silent_the_longest(made: Made, ask: Ask) -> None:
    hang = {"rank": 0, "kind": "hang", "type": "RuntimeError", "message": "Timed out", "traceback": "Traceback ..."}
    made.fail("infra", "rank 0: RuntimeError: Timed out; ranks 1, 2 did not come", hang)
    for rank, at in ((0, 300.0), (1, 200.0), (2, 100.0)):
        made.log(rank, "", at)

    assert json.loads(ask("--json"))["silent"] == {"rank": 2, "time": 100.0}
    assert "\nsilent the longest: rank 2, whose log ends at " in ask()


def test_where_the_host_is_not_known_none_is_told(made: Made, ask: Ask) -> None:
    made.attempt("infra", "rank 1 was killed by SIGKILL", hosts=("one", "two"))

    assert "\nfirst: rank 1 was killed\n" in ask()


class TestEarlierAttempts:
    @pytest.fixture
    def told(self, made: Made, ask: Ask) -> Callable[..., dict[str, Any]]:
        made.attempt("infra", "rank 1 was killed by SIGKILL")
        made.attempt("error", "rank 0: KeyError: 'label'", {"rank": 0, "kind": "error", **ERROR})
        made.append(RunEnded(state="failed", reason="..."))
        return lambda *words: json.loads(ask("--json", *words))

    def test_the_last_one_unless_another_is_asked_for(self, told: Callable[..., dict[str, Any]]) -> None:
        assert (told()["attempt"], told()["kind"]) == (2, "error")
        assert (told("--attempt", "1")["attempt"], told("--attempt", "1")["kind"]) == (1, "killed")

    def test_one_that_there_is_not(self, told: Callable[..., dict[str, Any]], ask: Ask) -> None:
        assert ask("--attempt", "3", code=USAGE) == "launcher: run has no attempt 3; the newest is 2\n"
        assert ask("--attempt", "0", code=USAGE) == "launcher: run has no attempt 0; the newest is 2\n"

    def test_one_that_has_not_ended(self, told: Callable[..., dict[str, Any]], made: Made, ask: Ask) -> None:
        made.append(ResumeRequested(by="test"))
        made.append(AttemptStarting(attempt=3, target="local"))

        assert ask("--attempt", "3", code=USAGE) == "launcher: run: attempt 3 has not ended yet\n"

    def test_one_that_finished(self, told: Callable[..., dict[str, Any]], made: Made, ask: Ask) -> None:
        made.append(ResumeRequested(by="test"))
        made.attempt("finished", "")

        assert told("--attempt", "3")["kind"] == "finished"


@pytest.mark.parametrize(
    ("cause", "state", "reason", "kind", "step"),
    [
        ("stopped", "stopped", "stopped by the user", "stopped", "nothing is wrong: launcher resume run"),
        ("cancelled", "cancelled", "cancelled by the user", "cancelled", "it was cancelled; to carry it on"),
        ("infra", "failed", "the launcher that had started it died", "launcher", "nothing is wrong"),
        ("preempted", "failed", "saved and left at SIGTERM", "preempted", "nothing is wrong"),
        ("timeout", "failed", "out of time", "timeout", "nothing is wrong"),
        ("infra", "failed", "all ranks left before the end of training without saying why", "left", "see the logs"),
    ],
)
def test_endings_that_are_no_rank_s_doing(
    made: Made, ask: Ask, cause: str, state: str, reason: str, kind: str, step: str
) -> None:
    made.attempt(cause, reason)
    made.append(RunEnded(state=state, reason=reason))

    told = json.loads(ask("--json"))

    assert (told["kind"], told["rank"]) == (kind, None)
    assert step in told["next"]
    assert "first:" not in ask()


def test_a_run_that_has_not_failed(made: Made, ask: Ask) -> None:
    told = json.loads(ask("--json"))

    assert (told["attempt"], told["kind"], told["ranks"]) == (None, None, [])
    assert told["next"] == "it goes on by itself: launcher logs -f run"


def test_every_kind_has_an_answer() -> None:
    assert _ANSWERS.keys() == set(Kind)


def test_the_command_of_a_user(made: Made, launcher: Shell) -> None:
    made.fail("error", "rank 0: KeyError: 'label'", {"rank": 0, "kind": "error", **ERROR})

    told = launcher("why", "--attempt", "1", "--runs-root", made.root)

    assert (told.code, told.err) == (0, "")
    assert "first: rank 0 on node0 raised an exception" in told.out
