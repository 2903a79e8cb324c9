"""decide: what follows upon each way in which an attempt can end."""

from dataclasses import dataclass
from typing import Literal

import pytest

from launcher.policy import BACKOFF_MAX_S, Cause, Finish, Start, Wait, decide
from launcher.state import Attempt, RunState

LATE = 1e9
"""Long after each back-off."""


@dataclass(frozen=True)
class Budgets:
    """The defaults of a job spec."""

    preemption: int | Literal["unlimited"] = "unlimited"
    timeout: int | Literal["unlimited"] = "unlimited"
    infra: int = 3
    error: int = 0
    max_no_progress: int = 5


def after(*causes: str, budget_from: int = 0, cancelling: bool = False) -> RunState:
    """A run whose attempts ended so, the n-th at second 100 * n; `+` marks those that made progress."""
    attempts = tuple(
        Attempt(
            number=number,
            target="local",
            started=0.0,
            ended=100.0 * number,
            cause=cause.rstrip("+"),
            reason=f"reason {number}",
            progressed=cause.endswith("+"),
        )
        for number, cause in enumerate(causes, 1)
    )
    return RunState(attempts=attempts, budget_from=budget_from, cancelling=cancelling)


def answer(
    state: RunState, retry: Budgets | None = None, *, stopping: bool = False, now: float = LATE
) -> Start | Wait | Finish:
    return decide(state, retry or Budgets(), stopping=stopping, now=now)


def failure(state: RunState, retry: Budgets | None = None) -> str:
    decision = answer(state, retry)
    assert isinstance(decision, Finish), decision
    assert decision.state == "failed"
    return decision.reason


def test_a_new_run_starts() -> None:
    assert answer(after(), now=0.0) == Start(1)


@pytest.mark.parametrize(
    ("causes", "retry"),
    [
        (["preempted+"] * 50, Budgets()),
        (["timeout+"] * 50, Budgets()),
        (["preempted+"] * 3, Budgets(preemption=3)),
        (["timeout+"] * 3, Budgets(timeout=3)),
        (["infra"] * 3, Budgets()),
        (["infra+"] * 50, Budgets()),
        (["infra"] * 3 + ["infra+"], Budgets(infra=3)),  # progress: the three before it are forgiven
        (["infra+", "infra", "infra"], Budgets(infra=3)),
        (["error+"] * 2, Budgets(error=2)),
        (["infra", "preempted", "infra", "timeout"], Budgets(infra=2)),
        (["preempted", "infra", "preempted", "infra"], Budgets(preemption=2)),
        (["infra"] * 4, Budgets(infra=9)),
    ],
)
def test_within_its_budget_a_cause_is_answered_by_the_next_attempt(causes: list[str], retry: Budgets) -> None:
    assert answer(after(*causes), retry) == Start(len(causes) + 1)


@pytest.mark.parametrize(
    ("causes", "retry", "reason"),
    [
        (["error"], Budgets(), "attempt 1: reason 1"),
        (["preempted+", "error+"], Budgets(), "attempt 2: reason 2"),
        (["error+"] * 3, Budgets(error=2), "attempt 3: reason 3 (retry.error: 2 used up)"),
        (["infra"] * 4, Budgets(), "attempt 4: reason 4 (retry.infra: 3 used up)"),
        (["infra"], Budgets(infra=0), "attempt 1: reason 1"),
        (["infra+"], Budgets(infra=0), "attempt 1: reason 1"),
        (["infra", "preempted", "infra"], Budgets(infra=1), "attempt 3: reason 3 (retry.infra: 1 used up)"),
        (["infra+", "infra", "infra"], Budgets(infra=2), "attempt 3: reason 3 (retry.infra: 2 used up)"),
        (["preempted+"] * 3, Budgets(preemption=2), "attempt 3: reason 3 (retry.preemption: 2 used up)"),
        (["preempted+"], Budgets(preemption=0), "attempt 1: reason 1"),
        (["timeout+", "infra+", "timeout+"], Budgets(timeout=1), "attempt 3: reason 3 (retry.timeout: 1 used up)"),
    ],
)
def test_beyond_its_budget_a_cause_fails_the_run(causes: list[str], retry: Budgets, reason: str) -> None:
    assert failure(after(*causes), retry) == reason


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.TIMEOUT, Cause.INFRA, Cause.ERROR])
def test_without_a_new_checkpoint_every_cause_comes_to_an_end(cause: Cause) -> None:
    plenty = Budgets(infra=99, error=99, max_no_progress=3)

    assert answer(after(*[cause] * 2), plenty) == Start(3)
    assert failure(after(*[cause] * 3), plenty) == (
        "no new checkpoint in 3 attempts in a row (retry.max_no_progress); the last, attempt 3: reason 3"
    )


def test_no_progress_is_counted_over_different_causes_and_from_the_last_progress_on() -> None:
    retry = Budgets(max_no_progress=3)

    assert answer(after("preempted", "preempted", "infra+", "timeout", "preempted"), retry) == Start(6)
    assert "in 3 attempts" in failure(after("preempted+", "infra", "timeout", "preempted"), retry)


class TestBackoff:
    @pytest.mark.parametrize(
        ("causes", "seconds"),
        [
            (["infra"], 1),
            (["infra"] * 2, 2),
            (["infra"] * 3, 4),
            (["infra"] * 6, 32),
            (["infra"] * 7, BACKOFF_MAX_S),
            (["infra"] * 30, BACKOFF_MAX_S),
            (["infra", "infra+", "infra"], 1),
            (["error"], 1),
            (["infra", "error"], 2),
        ],
    )
    def test_failures_wait_twice_as_long_each_time(self, causes: list[str], seconds: float) -> None:
        state, retry = after(*causes), Budgets(infra=99, error=99, max_no_progress=99)
        ended = 100.0 * len(causes)

        assert answer(state, retry, now=ended) == Wait(ended + seconds)
        assert answer(state, retry, now=ended + seconds - 0.01) == Wait(ended + seconds)
        assert answer(state, retry, now=ended + seconds) == Start(len(causes) + 1)

    @pytest.mark.parametrize("causes", [["preempted"], ["timeout"], ["infra", "infra", "preempted"], ["infra+"]])
    def test_preemption_time_limit_and_progress_do_not_wait(self, causes: list[str]) -> None:
        assert answer(after(*causes), now=100.0 * len(causes)) == Start(len(causes) + 1)


class TestResume:
    @pytest.mark.parametrize("causes", [["error"], ["infra"] * 4, ["preempted"] * 5, ["stopped"], ["cancelled"]])
    def test_a_resumed_run_starts_at_once_whatever_ended_it(self, causes: list[str]) -> None:
        state = after(*causes, budget_from=len(causes))

        assert answer(state, now=0.0) == Start(len(causes) + 1)

    def test_a_resumed_run_has_its_budgets_anew(self) -> None:
        four = ["infra"] * 4

        assert answer(after(*four, *["infra"] * 3, budget_from=4)) == Start(8)
        assert failure(after(*four, *four, budget_from=4)) == "attempt 8: reason 8 (retry.infra: 3 used up)"

    def test_a_resumed_run_counts_attempts_without_progress_anew(self) -> None:
        state = after(*["preempted"] * 9, budget_from=5)

        assert answer(state, Budgets(max_no_progress=5)) == Start(10)

    def test_a_resumed_run_begins_with_the_shortest_back_off(self) -> None:
        assert answer(after("infra", "infra", "infra", budget_from=2), now=300.0) == Wait(301.0)


class TestEnds:
    def test_a_finished_attempt_finishes_the_run(self) -> None:
        assert answer(after("infra", "finished")) == Finish("finished", "reason 2")

    @pytest.mark.parametrize("stopping", [False, True])
    @pytest.mark.parametrize("cancelling", [False, True])
    def test_finished_wins_over_all_wishes(self, stopping: bool, cancelling: bool) -> None:
        state = after("finished", cancelling=cancelling)

        assert answer(state, stopping=stopping) == Finish("finished", "reason 1")

    def test_a_finished_run_that_was_resumed_goes_on(self) -> None:
        assert answer(after("finished", budget_from=1)) == Start(2)
        assert answer(after("finished", budget_from=1), stopping=True) == Finish("stopped", "stopped by the user")

    @pytest.mark.parametrize(
        ("causes", "reason"),
        [
            *((causes, "cancelled by the user") for causes in ([], ["infra"], ["error"], ["preempted+"], ["stopped"])),
            (["cancelled"], "reason 1"),  # that of the attempt knows who: the user, or somebody's scancel
        ],
    )
    def test_a_cancelled_run_never_starts_again(self, causes: list[str], reason: str) -> None:
        for stopping in (False, True):
            state = after(*causes, cancelling=True)

            assert answer(state, stopping=stopping) == Finish("cancelled", reason)

    @pytest.mark.parametrize("causes", [[], ["infra"], ["error", "infra"], ["preempted+"], ["stopped"], ["cancelled"]])
    def test_a_supervisor_that_stops_starts_nothing(self, causes: list[str]) -> None:
        assert answer(after(*causes), Budgets(error=9), stopping=True) == Finish("stopped", "stopped by the user")

    @pytest.mark.parametrize("error", [0, 9])
    @pytest.mark.parametrize("causes", [["error"], ["preempted+", "error+"]])
    def test_an_error_is_not_resumable_because_the_user_stops(self, causes: list[str], error: int) -> None:
        last = len(causes)

        decision = answer(after(*causes), Budgets(error=error), stopping=True, now=0.0)

        assert decision == Finish("failed", f"attempt {last}: reason {last}")

    def test_what_has_used_up_its_budget_failed_though_the_user_stops(self) -> None:
        decision = answer(after(*["infra"] * 4), stopping=True)

        assert decision == Finish("failed", "attempt 4: reason 4 (retry.infra: 3 used up)")

    @pytest.mark.parametrize("causes", [["error"], ["infra"] * 4])
    def test_a_resumed_run_that_is_stopped_before_it_starts_is_stopped(self, causes: list[str]) -> None:
        state = after(*causes, budget_from=len(causes))

        assert answer(state, stopping=True) == Finish("stopped", "stopped by the user")

    def test_a_stop_is_not_delayed_by_the_back_off(self) -> None:
        assert isinstance(answer(after("infra"), now=100.0), Wait)
        assert answer(after("infra"), stopping=True, now=100.0) == Finish("stopped", "stopped by the user")

    @pytest.mark.parametrize("cause", ["stopped", "cancelled"])
    def test_what_the_user_ended_stays_ended_if_the_supervisor_died_before_it_could_say_so(self, cause: str) -> None:
        assert answer(after("infra", cause)) == Finish(cause, "reason 2")


def test_every_cause_has_an_answer() -> None:
    for cause in Cause:
        assert isinstance(answer(after(cause)), Start | Finish)
