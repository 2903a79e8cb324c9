"""The first cause of an attempt's end, and not its echoes."""

import signal
from collections.abc import Collection
from typing import Any

import pytest

from launcher.diagnosis import attempt_cause
from launcher.policy import Cause

KILLED, TERMINATED, ABORTED = -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT


def record(rank: int, kind: str, type_: str = "RuntimeError", message: str | None = "went wrong") -> dict[str, Any]:
    return {"rank": rank, "kind": kind, "type": type_, "message": message}


def lost_peer(rank: int) -> dict[str, Any]:
    return record(rank, "peer", "DistBackendError", "Connection closed by peer")


def user_error(rank: int) -> dict[str, Any]:
    return record(rank, "error", "KeyError", "'label'")


def cause_of(
    exits: dict[int, int],
    *failures: dict[str, Any],
    ended_by_us: Collection[int] = (),
    left: str | None = None,
) -> tuple[Cause, str]:
    """Failures come the earliest first."""
    return attempt_cause(exits, failures, ended_by_us=ended_by_us, left=left)


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
