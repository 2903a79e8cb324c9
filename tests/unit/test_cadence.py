"""How often to save, from what it costs and how often work is lost."""

import math

import pytest

from launcher.cadence import (
    FIRST_S,
    LONGEST_S,
    PRIOR_S,
    SHARE,
    Cadence,
    best_interval_s,
    between_losses_s,
    drain_s,
)
from launcher.events import AttemptEnded, AttemptStarting, CheckpointSaved, Event, Record
from launcher.policy import Cause
from launcher.state import RunState, fold


def state_of(*events: tuple[float, Event]) -> RunState:
    return fold(Record(number, at, event) for number, (at, event) in enumerate(events, start=1))


def starting(number: int) -> AttemptStarting:
    return AttemptStarting(attempt=number, target="local")


def ended(number: int, cause: Cause) -> AttemptEnded:
    return AttemptEnded(attempt=number, cause=cause, reason="", step=0)


def saved(step: int, *, attempt: int = 1, stall_s: float = 0.0, write_s: float = 0.0) -> CheckpointSaved:
    return CheckpointSaved(
        attempt=attempt, step=step, epoch=0, path=f"{step}", bytes=0, complete=False, stall_s=stall_s, write_s=write_s
    )


def total_loss(interval_s: float, cost_s: float, between_s: float) -> float:
    """Share of the time that saving and lost work take: half an interval is lost each time."""
    return cost_s / interval_s + interval_s / 2 / between_s


class TestBestInterval:
    @pytest.mark.parametrize(("cost_s", "between_s"), [(0.1, 3600.0), (1.0, 7200.0), (5.0, 86400.0)])
    def test_neither_a_shorter_nor_a_longer_one_loses_less(self, cost_s: float, between_s: float) -> None:
        best = best_interval_s(cost_s, between_s)

        for factor in (0.5, 0.9, 1.1, 2.0):
            assert total_loss(best, cost_s, between_s) < total_loss(best * factor, cost_s, between_s)

    def test_saving_never_takes_more_than_its_share(self) -> None:
        cost_s, between_s = 5.0, 60.0  # all is lost all the time
        assert math.sqrt(2 * cost_s * between_s) < cost_s / SHARE

        assert cost_s / best_interval_s(cost_s, between_s) == pytest.approx(0.035)

    def test_however_reliable_it_saves_now_and_then(self) -> None:
        assert best_interval_s(10.0, 1e9) == LONGEST_S


class TestBetweenLosses:
    def test_a_run_that_has_seen_nothing_takes_what_is_assumed(self) -> None:
        assert between_losses_s(state_of((0.0, starting(1))), now=0.0) == PRIOR_S

    def test_losses_shorten_it_and_time_without_lengthens_it(self) -> None:
        lost = state_of((0.0, starting(1)), (100.0, ended(1, Cause.INFRA)), (200.0, starting(2)))

        assert between_losses_s(lost, now=300.0) == (PRIOR_S + 200.0) / 2
        assert between_losses_s(lost, now=3900.0) > between_losses_s(lost, now=300.0)

    @pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.TIMEOUT, Cause.STOPPED])
    def test_who_saves_and_leaves_loses_nothing(self, cause: Cause) -> None:
        state = state_of((0.0, starting(1)), (100.0, ended(1, cause)))

        assert between_losses_s(state, now=100.0) == PRIOR_S + 100.0


class TestDrain:
    def test_is_unknown_before_the_first_save(self) -> None:
        assert drain_s(state_of((0.0, starting(1)))) is None

    def test_is_that_of_the_slowest_of_the_last_saves(self) -> None:
        slow_long_ago = [(0.0, saved(0, write_s=99.0))]
        recent = [(0.0, saved(step, stall_s=0.5, write_s=float(step))) for step in (1, 4, 2, 1, 1)]

        assert drain_s(state_of(*slow_long_ago, *recent)) == 4.5

    def test_a_checkpoint_of_another_run_says_nothing(self) -> None:
        assert drain_s(state_of((0.0, saved(5, attempt=0, write_s=3.0)))) is None


class TestCadence:
    def test_a_fixed_interval_counts_from_the_last_save(self) -> None:
        cadence = Cadence(10.0, auto=False, state=RunState(), now=0.0, clock=100.0)

        assert not cadence.is_due(109.0)
        assert cadence.is_due(110.0)
        cadence.saved(112.0)
        assert not cadence.is_due(121.0)
        assert cadence.is_due(122.0)

    def test_never_is_never(self) -> None:
        assert not Cadence(None, auto=False, state=RunState(), now=0.0, clock=0.0).is_due(1e9)

    def test_what_is_measured_changes_no_interval_that_was_given(self) -> None:
        cadence = Cadence(10.0, auto=False, state=RunState(), now=0.0, clock=0.0)

        cadence.measured(1.0)

        assert cadence.interval_s == 10.0

    def test_auto_learns_the_cost_from_the_first_save(self) -> None:
        cadence = Cadence(None, auto=True, state=RunState(), now=0.0, clock=0.0)
        assert cadence.interval_s == FIRST_S

        cadence.measured(2.0)

        assert cadence.interval_s == best_interval_s(2.0, PRIOR_S)

    def test_auto_knows_it_from_the_attempt_before(self) -> None:
        state = state_of((0.0, starting(1)), (0.0, saved(5, stall_s=0.5, write_s=1.5)))

        assert Cadence(None, auto=True, state=state, now=0.0, clock=0.0).interval_s == best_interval_s(2.0, PRIOR_S)
