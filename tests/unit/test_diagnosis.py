"""The first cause of an attempt's end, and not its echoes."""

import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from launcher.diagnosis import UNWRITABLE, Diagnosis, attempt_cause, diagnose, ended, first_failure, kind_of
from launcher.kinds import CAUSES, ECHOES, Kind
from launcher.oom import oom_kills, oom_kills_since
from launcher.policy import Cause

KILLED, TERMINATED, ABORTED = -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT


def record(
    rank: int, kind: str, type_: str = "RuntimeError", message: str | None = "went wrong", **more: Any
) -> dict[str, Any]:
    return {"rank": rank, "kind": kind, "type": type_, "message": message, **more}


def lost_peer(rank: int) -> dict[str, Any]:
    return record(rank, "peer", "DistBackendError", "Connection closed by peer")


def timed_out(rank: int) -> dict[str, Any]:
    return record(rank, "hang", message="Timed out waiting 3000ms for recv operation to complete")


def user_error(rank: int, **more: Any) -> dict[str, Any]:
    return record(rank, "error", "KeyError", "'label'", **more)


def diagnosis_of(
    exits: dict[int, int],
    *failures: dict[str, Any],
    ended_by_us: Collection[int] = (),
    left: str | None = None,
    oom_kills: int | None = None,
) -> Diagnosis:
    """Failures come the earliest first. What is said at once can be told from what is left later."""
    found = diagnose(exits, failures, ended_by_us=ended_by_us, left=left, oom_kills=oom_kills)
    assert attempt_cause(exits, failures, ended_by_us=ended_by_us, left=left, oom_kills=oom_kills) == found[::3]
    assert ended(found.cause, found.reason, failures) == (found.kind, found.rank)
    return found


def cause_of(
    exits: dict[int, int],
    *failures: dict[str, Any],
    ended_by_us: Collection[int] = (),
    left: str | None = None,
) -> tuple[Cause, str]:
    found = diagnosis_of(exits, *failures, ended_by_us=ended_by_us, left=left)
    return found.cause, found.reason


def test_a_killed_rank_is_the_cause_and_the_lost_peers_are_its_echoes() -> None:
    cause, reason = cause_of({0: 1, 1: 1, 2: KILLED, 3: 1}, lost_peer(0), lost_peer(1), lost_peer(3))

    assert (cause, reason) == (Cause.INFRA, "rank 2 was killed by SIGKILL; by the out-of-memory killer?")


def test_a_killed_rank_is_the_cause_even_if_an_echo_looks_like_the_user_s_error() -> None:
    assert cause_of({0: 1, 1: KILLED}, user_error(0))[0] == Cause.INFRA


def test_a_crash_in_native_code_is_named_by_its_signal() -> None:
    assert cause_of({0: 0, 1: -signal.SIGSEGV}) == (Cause.INFRA, "rank 1 was killed by SIGSEGV")


def test_a_signal_that_python_has_no_name_for_is_named_by_its_number() -> None:
    assert cause_of({0: -40}) == (Cause.INFRA, "rank 0 was killed by signal 40")


def test_a_user_s_error_is_the_cause_with_its_rank_and_not_the_earlier_echoes() -> None:
    cause, reason = cause_of({0: 1, 1: 1, 2: 1}, lost_peer(0), user_error(2), lost_peer(1))

    assert (cause, reason) == (Cause.ERROR, "rank 2: KeyError: 'label'")


def test_of_several_errors_the_earliest_is_the_cause() -> None:
    assert cause_of({0: 1, 1: 1}, user_error(1), user_error(0))[1].startswith("rank 1:")


def test_of_a_long_message_the_first_line_is_told() -> None:
    error = record(0, "error", "ValueError", "\nbad shape\nhint: look\nagain")

    assert cause_of({0: 1}, error) == (Cause.ERROR, "rank 0: ValueError: bad shape")


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    assert cause_of({0: 1}, record(0, "error", "StopIteration", None)) == (Cause.ERROR, "rank 0: StopIteration: ")


def test_ranks_that_we_killed_are_no_evidence() -> None:
    cause, reason = cause_of({0: KILLED, 1: 1, 2: KILLED}, user_error(1), ended_by_us={0, 2})

    assert (cause, reason) == (Cause.ERROR, "rank 1: KeyError: 'label'")


def test_a_rank_that_we_killed_does_not_hide_one_that_somebody_else_did() -> None:
    cause, reason = cause_of({0: KILLED, 1: KILLED}, ended_by_us={0})

    assert cause == Cause.INFRA
    assert reason.startswith("rank 1 was killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_signal_before_the_rank_was_ready_is_a_preemption(number: signal.Signals) -> None:
    cause, reason = cause_of({0: 1, 1: -number}, lost_peer(0))

    assert (cause, reason) == (Cause.PREEMPTED, f"rank 1 was ended by {number.name}")


def test_ranks_that_saved_and_left_were_preempted() -> None:
    assert cause_of({0: 0, 1: 0}, left="SIGUSR2") == (Cause.PREEMPTED, "saved and left at SIGUSR2")


def test_an_error_while_leaving_is_an_error() -> None:
    assert cause_of({0: 0, 1: 1}, user_error(1), left="SIGTERM")[0] == Cause.ERROR


def test_only_echoes_are_infrastructure() -> None:
    cause, reason = cause_of({0: 1, 1: 1}, lost_peer(1), lost_peer(0))

    assert (cause, reason) == (Cause.INFRA, "rank 1: DistBackendError: Connection closed by peer")


def test_a_lost_helper_process_is_infrastructure() -> None:
    worker = record(0, "infra", "RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed.")

    assert cause_of({0: 1}, worker)[0] == Cause.INFRA


def test_an_exit_code_without_a_traceback_is_the_user_s_error_and_points_to_the_log() -> None:
    cause, reason = cause_of({0: 0, 1: 3})

    assert (cause, reason) == (Cause.ERROR, "rank 1 exited with code 3 and left no traceback; see its log")


def test_leaving_in_peace_before_the_end_is_not_finishing() -> None:
    cause, reason = cause_of({0: 0, 1: 0})

    assert cause == Cause.INFRA
    assert "before the end of training" in reason


class TestEchoes:
    @pytest.mark.parametrize("kind", list(Kind)[: list(Kind).index(Kind.PEER)])
    @pytest.mark.parametrize("echo", [lost_peer(0), timed_out(0)], ids=["peer", "hang"])
    def test_any_true_cause_beats_any_earlier_echo(self, kind: Kind, echo: dict[str, Any]) -> None:
        found = diagnosis_of({0: 1, 1: 1}, echo, record(1, kind))

        assert (found.kind, found.rank, found.cause) == (kind, 1, CAUSES[kind])

    def test_of_true_causes_of_different_kinds_the_earliest_counts(self) -> None:
        disk, error = record(1, "disk", "OSError", "full"), user_error(0)

        assert diagnosis_of({0: 1, 1: 1}, disk, error).kind == Kind.DISK
        assert diagnosis_of({0: 1, 1: 1}, error, disk).kind == Kind.ERROR

    def test_an_exit_without_a_word_beats_echoes(self) -> None:
        found = diagnosis_of({0: 1, 1: 3, 2: 1}, lost_peer(0), lost_peer(2))

        assert found == (Cause.ERROR, Kind.EXIT, 1, "rank 1 exited with code 3 and left no traceback; see its log")

    def test_ranks_that_had_agreed_to_leave_may_lose_one_another(self) -> None:
        assert diagnosis_of({0: 0, 1: 1}, lost_peer(1), left="SIGTERM").kind == Kind.PREEMPTED

    def test_a_hang_names_those_who_did_not_come(self) -> None:
        found = diagnosis_of({0: 1, 1: KILLED, 2: KILLED}, timed_out(0), ended_by_us={1, 2})

        assert (found.kind, found.rank) == (Kind.HANG, 0)
        assert found.reason.endswith("for recv operation to complete; ranks 1, 2 did not come")

    def test_a_hang_of_which_all_ranks_speak_blames_none(self) -> None:
        found = diagnosis_of({0: 1, 1: 1}, timed_out(0), lost_peer(1))

        assert found.reason == "rank 0: RuntimeError: Timed out waiting 3000ms for recv operation to complete"

    def test_of_a_thousand_silent_ranks_a_few_are_named(self) -> None:
        exits = {0: 1, **dict.fromkeys(range(1, 1000), KILLED)}

        found = diagnosis_of(exits, timed_out(0), ended_by_us=set(range(1, 1000)))

        assert found.reason.endswith("; ranks 1, 2, 3, 4, 5, 6, 7, 8 ... did not come")


class TestSignals:
    def test_a_crash_gives_way_to_an_exception_that_it_may_be_the_echo_of(self) -> None:
        found = diagnosis_of({0: ABORTED, 1: 1, 2: -signal.SIGSEGV}, lost_peer(0), user_error(1))

        assert (found.kind, found.rank) == (Kind.ERROR, 1)

    def test_a_crash_beats_echoes(self) -> None:
        found = diagnosis_of({0: 1, 1: ABORTED}, lost_peer(0))

        assert found == (Cause.INFRA, Kind.CRASH, 1, "rank 1 was killed by SIGABRT")

    def test_a_rank_that_was_killed_beats_one_that_crashed(self) -> None:
        assert diagnosis_of({0: ABORTED, 1: KILLED}).rank == 1

    def test_a_signal_from_outside_other_than_sigkill_is_no_crash(self) -> None:
        assert diagnosis_of({0: -signal.SIGXCPU}).kind == Kind.KILLED
        assert diagnosis_of({0: -signal.SIGXCPU}, oom_kills=1).kind == Kind.KILLED

    def test_an_error_that_came_before_the_stop_signal_is_the_cause(self) -> None:
        found = diagnosis_of({0: 1, 1: TERMINATED}, user_error(0, stopping=False))

        assert (found.cause, found.rank) == (Cause.ERROR, 0)

    def test_an_error_that_came_after_the_stop_signal_is_not(self) -> None:
        found = diagnosis_of({0: 1, 1: TERMINATED}, user_error(0, stopping=True))

        assert (found.cause, found.kind, found.rank) == (Cause.PREEMPTED, Kind.PREEMPTED, 1)

    def test_a_counted_kill_is_the_out_of_memory_killer_s(self) -> None:
        found = diagnosis_of({0: 1, 1: KILLED}, lost_peer(0), oom_kills=1)

        assert found == (Cause.INFRA, Kind.MEMORY, 1, "rank 1 was killed by SIGKILL; by the out-of-memory killer")

    def test_a_peer_on_the_same_machine_may_have_counted_it(self) -> None:
        assert diagnosis_of({0: 1, 1: KILLED}, {**lost_peer(0), "oom_kills": 2}).kind == Kind.MEMORY
        assert diagnosis_of({0: 1, 1: KILLED}, {**lost_peer(0), "oom_kills": 0}).reason.endswith("killer?")
        assert diagnosis_of({0: 1, 1: KILLED}, {**lost_peer(0), "oom_kills": None}).kind == Kind.KILLED

    def test_where_none_was_counted_nothing_is_guessed(self) -> None:
        found = diagnosis_of({0: 1, 1: KILLED}, lost_peer(0), oom_kills=0)

        assert (found.kind, found.reason) == (Kind.KILLED, "rank 1 was killed by SIGKILL")


def test_a_rank_that_cannot_even_write_down_its_failure_has_a_full_disk() -> None:
    found = diagnosis_of({0: UNWRITABLE, 1: 1}, lost_peer(1))

    assert (found.cause, found.kind, found.rank) == (Cause.INFRA, Kind.DISK, 0)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("error", Cause.ERROR),
        ("spec", Cause.ERROR),
        ("import", Cause.ERROR),
        ("gpu-memory", Cause.ERROR),
        ("checkpoint", Cause.ERROR),
        ("drift", Cause.ERROR),
        ("memory", Cause.INFRA),
        ("shared-memory", Cause.INFRA),
        ("disk", Cause.INFRA),
        ("port", Cause.INFRA),
        ("loader", Cause.INFRA),
        ("infra", Cause.INFRA),  # what a loader was called before
        ("peer", Cause.INFRA),
        ("hang", Cause.INFRA),
        ("preempted", Cause.PREEMPTED),
        ("unheard-of", Cause.ERROR),
    ],
)
def test_each_recorded_kind_draws_on_its_budget(kind: str, cause: Cause) -> None:
    assert diagnosis_of({0: 1}, record(0, kind)).cause == cause


def test_every_kind_has_a_cause_and_an_echo_is_infrastructure() -> None:
    assert CAUSES.keys() == set(Kind)
    assert {CAUSES[kind] for kind in ECHOES} == {Cause.INFRA}


@pytest.mark.parametrize(
    ("cause", "reason", "kind", "rank"),
    [
        ("stopped", "stopped by the user", Kind.STOPPED, None),
        ("cancelled", "cancelled by the user", Kind.CANCELLED, None),
        ("timeout", "out of time", Kind.TIMEOUT, None),
        ("infra", "the launcher that had started it died", Kind.LAUNCHER, None),
        ("infra", "host 1 does not answer: Connection timed out", Kind.MACHINE, None),
        ("infra", "its queued resource is gone", Kind.MACHINE, None),
        ("error", "host 0: tpu.setup: exit code 1: no such package", Kind.SPEC, None),
        ("error", "cannot ask for run-a1-1 in us-central2-b: Permission 'x' denied", Kind.SPEC, None),
        ("infra", "node n7 went down", Kind.KILLED, None),
        ("infra", "rank 2 was killed by SIGKILL; by the out-of-memory killer?", Kind.KILLED, 2),
    ],
)
def test_an_attempt_that_was_ended_from_outside(cause: str, reason: str, kind: Kind, rank: int | None) -> None:
    assert ended(cause, reason, []) == (kind, rank)


def test_an_attempt_that_was_stopped_is_not_explained_by_its_echoes() -> None:
    assert ended("stopped", "stopped by the user", [lost_peer(0)]) == (Kind.STOPPED, None)


def test_a_reason_that_is_not_ours_is_explained_by_the_first_record_that_is_no_echo() -> None:
    assert ended("infra", "node n7 went down", [lost_peer(0), user_error(1)]) == (Kind.ERROR, 1)


def test_the_first_failure_is_an_echo_only_if_there_is_nothing_else() -> None:
    assert first_failure([]) is None
    assert first_failure([lost_peer(0), timed_out(1)]) == lost_peer(0)
    assert first_failure([lost_peer(0), user_error(1), user_error(0)]) == user_error(1)


def test_kinds_are_read_as_they_were_written() -> None:
    assert [kind_of(record(0, kind)) for kind in Kind] == list(Kind)


class TestSentence:
    @pytest.mark.parametrize(
        ("type_", "message", "told"),
        [
            (
                "RuntimeError",
                "[/a/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:16604: Connection reset by peer. "
                "This is typically caused by a remote worker hanging or bugs in the application.",
                "Read error [127.0.0.1]:16604: Connection reset by peer.",
            ),
            (
                "RuntimeError",
                "Error(s) in loading state_dict for Net:\n\tsize mismatch for weight: copying a param\n\tand more",
                "Error(s) in loading state_dict for Net: size mismatch for weight: copying a param",
            ),
            (
                "KeyError",
                "Caught KeyError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
                "  File ...\nKeyError: 'label'\n",
                "'label' (in DataLoader worker 1)",
            ),
            ("ValueError", "x" * 1000, "x" * 300 + "..."),
            ("ValueError", "nothing follows:", "nothing follows:"),
        ],
        ids=["gloo", "colon", "loader", "long", "colon at the end"],
    )
    def test_says_what_matters(self, type_: str, message: str, told: str) -> None:
        assert diagnosis_of({0: 1}, record(0, "error", type_, message)).reason == f"rank 0: {type_}: {told}"


class TestOutOfMemoryKiller:
    """The kernel's formats: Documentation/admin-guide/cgroup-v2.rst (memory.events), cgroup-v1/memory.rst."""

    V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
    V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"

    def count(self, folder: Path, own: str, **files: str) -> int | None:
        for name, text in files.items():
            path = folder / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / "own").write_text(own)
        return oom_kills(folder / "cgroup", folder / "own")

    def test_v2(self, tmp_path: Path) -> None:
        assert self.count(tmp_path, "0::/a/b\n", **{"a/b/memory.events": self.V2}) == 2

    def test_v2_in_a_namespace_of_its_own(self, tmp_path: Path) -> None:
        assert self.count(tmp_path, "0::/\n", **{"memory.events": self.V2}) == 2

    def test_v1_and_hybrid(self, tmp_path: Path) -> None:
        own = "8:pids:/\n4:memory:/job/7\n1:name=systemd:/x:y\n0::/\n"
        files = {"memory/job/7/memory.oom_control": self.V1, "memory/memory.oom_control": "oom_kill 9\n"}
        assert self.count(tmp_path, own, **files) == 4

    def test_v1_in_a_container_whose_path_is_the_host_s(self, tmp_path: Path) -> None:
        assert self.count(tmp_path, "4:memory:/docker/abc\n0::/\n", **{"memory/memory.oom_control": self.V1}) == 4

    def test_not_readable(self, tmp_path: Path) -> None:
        assert self.count(tmp_path, "0::/\n") is None
        assert self.count(tmp_path, "4:memory:/\n", **{"memory/memory.oom_control": "under_oom 0\n"}) is None
        assert oom_kills(tmp_path, tmp_path / "nothing") is None
        assert oom_kills_since(None) is None

    def test_of_this_process(self) -> None:
        assert oom_kills_since(oom_kills()) in (0, None)
