"""Which signal reaches which process of a job: what a launcher can build on. "step" is a task under srun.

All that is said here was first seen on real clusters; a newer Slurm that does otherwise should fail here.
"""

from collections.abc import Callable

import pytest

from slurm.conftest import GRACE_S, KILL_WAIT_S
from slurm.scenarios import Observed

pytestmark = pytest.mark.slurm

See = Callable[[str], Observed]

NOTICE_S = 3.0
"""All signals of a notice have come by then."""
LATE_S = 10.0
"""A busy machine."""
TICK_S = 30.0
"""So often Slurm looks at what has come to its end; with luck, sooner."""
STOP = {"SIGCONT", "SIGTERM"}


def test_preemption_gives_notice_to_steps_and_later_ends_all(observed: See) -> None:
    seen = observed("preempted")

    assert seen.signals("step", 0, NOTICE_S) == STOP
    assert seen.signals("batch", 0, NOTICE_S) == set()
    assert seen.signals("batch") == STOP
    assert GRACE_S - 1 < seen.first("batch") < GRACE_S + TICK_S + LATE_S


def test_a_process_that_stays_is_killed_after_the_grace_and_kill_wait(observed: See) -> None:
    seen = observed("preempted")

    for label in ("batch", "step"):
        assert KILL_WAIT_S - 1.5 < seen.lived(label) - seen.first("batch") < KILL_WAIT_S + LATE_S


def test_a_preempted_job_starts_again_once_the_other_has_ended(observed: See) -> None:
    assert observed("preempted").state == "RUNNING"


def test_a_signal_of_ones_choice_comes_instead_of_sigterm_and_to_steps_only(observed: See) -> None:
    seen = observed("preempted, signal to steps")

    assert seen.signals("step", 0, NOTICE_S) == {"SIGCONT", "SIGUSR2"}
    assert seen.signals("batch", 0, NOTICE_S) == set()
    assert "SIGUSR2" not in seen.signals("batch")
    assert seen.signals("step", GRACE_S - 1) == STOP


def test_or_to_the_batch_process_only(observed: See) -> None:
    seen = observed("preempted, signal to batch, CANCEL")

    assert seen.signals("batch", 0, NOTICE_S) == {"SIGCONT", "SIGUSR1"}
    assert "SIGUSR1" not in seen.signals("step")
    assert "SIGTERM" not in seen.signals("step", 0, NOTICE_S)


def test_in_a_partition_that_cancels_a_preempted_job_does_not_come_back(observed: See) -> None:
    assert observed("preempted, signal to batch, CANCEL").state == "PREEMPTED"


def test_without_grace_all_signals_come_at_once(observed: See) -> None:
    seen = observed("preempted, no grace")

    assert seen.signals("step", 0, NOTICE_S) == STOP | {"SIGUSR2"}
    assert seen.signals("batch", 0, NOTICE_S) == STOP
    assert KILL_WAIT_S - 2 < seen.lived("step") < KILL_WAIT_S + LATE_S


def test_a_site_that_does_not_send_user_signals_sends_sigterm_only(observed: See) -> None:
    seen = observed("preempted, user signals off")

    assert seen.signals("step") == STOP
    assert seen.first("step") + 1 < seen.first("batch")
    assert seen.state == "RUNNING"


def test_the_time_limit_ends_steps_and_batch_at_once(observed: See) -> None:
    seen = observed("timed out")

    assert seen.state == "TIMEOUT"
    assert seen.signals("step") == seen.signals("batch") == STOP
    assert abs(seen.first("step") - seen.first("batch")) < LATE_S
    assert KILL_WAIT_S - 2 < seen.lived("batch") - seen.first("batch") < KILL_WAIT_S + LATE_S


@pytest.mark.parametrize("how", ["cancelled", "requeued"])
def test_cancelling_and_requeueing_end_steps_and_batch_at_once(how: str, observed: See) -> None:
    seen = observed(how)

    assert seen.signals("step") == seen.signals("batch") == STOP
    assert max(seen.first("step"), seen.first("batch")) < NOTICE_S


def test_a_requeued_job_starts_again(observed: See) -> None:
    assert observed("requeued").state == "RUNNING"


def test_a_batch_process_that_replaced_its_shell_lives_until_kill_wait(observed: See) -> None:
    assert KILL_WAIT_S - 1.5 < observed("cancelled").lived("batch") < KILL_WAIT_S + LATE_S


def test_one_under_a_shell_goes_down_with_it(observed: See) -> None:
    seen = observed("cancelled under a shell")

    assert seen.lived("batch") < KILL_WAIT_S - 1.5
