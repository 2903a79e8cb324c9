"""The one loop that drives a run: read the ledger, look at the backend, decide, act, write it down.

Each step may be the last before a crash; whoever drives next carries on from the ledger.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from launcher.backend import Allocation, Backend, Ending
from launcher.driver import RENEW_S, renew_lease, this_process
from launcher.errors import LedgerConflict, NotTheDriver
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    Driving,
    RunEnded,
    Submitted,
    Submitting,
)
from launcher.layout import attempt_folder, finished_path, spec_path
from launcher.policy import Cause, Finish, Phase, Seen, Start, Wait, decide
from launcher.run import Run
from launcher.scratch import clear
from launcher.spec import JobSpec
from launcher.state import Attempt, RunState
from launcher.status import last_step, living_driver
from launcher.sweep import Sweep

STOP_GRACE_S = 120.0
"""How long ranks may take to save and leave before they are killed."""
LAST_WORDS_S = 2.0
"""How long the ranks of a cancelled job are waited for. What they save after that counts all the same."""


@dataclass(frozen=True, slots=True)
class Place:
    """The scheduler's job that a supervisor is the batch process of."""

    submission: int
    """The one of the run that has brought it up."""
    job: str
    allocation: Allocation


class Supervisor:
    """Drives one run on one backend until it ends, goes on elsewhere, or this process is told to stop."""

    def __init__(self, run: Run, spec: JobSpec, backend: Backend, place: Place | None = None) -> None:
        self._run, self._spec, self._backend, self._place = run, spec, backend, place
        self._me = this_process(place.job if place else "")
        self._left = False
        self._renewed = 0.0
        self._stop_since: float | None = None
        self._killed = False
        self._asked = 0
        self._cancelled_at: float | None = None
        self._unfit: Ending | None = None

    def stop(self) -> None:
        """Save and leave at the next step. May be called from a signal handler: it only takes a note."""
        self._stop_since = self._stop_since or time.monotonic()

    def kill(self) -> None:
        """Leave at once, without saving. May be called from a signal handler: it only takes a note."""
        self._stop_since, self._killed = self._stop_since or time.monotonic(), True

    @property
    def killed(self) -> bool:
        return self._killed

    def take_over(self) -> None:
        """Become the driver of the run.

        Raises:
            NotTheDriver: another living process is.
        """
        while True:
            state = self._run.ledger.refresh()
            if self._place:
                self._check_submission(state, self._place)
            # A job is the only driver of the run that it was submitted for: what drove before was another job, which
            # the scheduler has ended, or an earlier start of this one.
            driver = None if self._place else living_driver(self._run, state)
            if driver and driver != self._me:
                raise NotTheDriver(
                    f"{self._run.id}: process {driver.pid} on {driver.host} drives this run already; "
                    f"`launcher logs -f {self._run.id}` follows it"
                )
            self._renew_lease()
            with suppress(LedgerConflict):
                if self._place and state.submission and state.submission.job is None:
                    # Whoever submitted the job died before it could write this down.
                    submitted = Submitted(submission=self._place.submission, job=self._place.job)
                    self._run.ledger.append(submitted, after=state.version)
                    continue
                self._run.ledger.append(Driving(driver=self._me), after=state.version)
                return

    def drive(self, on_tick: Callable[[RunState], None] = lambda state: None) -> RunEnded | None:
        """Take the run over and carry it to its end.

        Returns:
            The end; None if the run goes on in another allocation.

        Raises:
            NotTheDriver: another living process drives it, or has taken it over meanwhile.
            LauncherError: it would have to go on in another allocation, and the scheduler refuses.
        """
        self.take_over()
        while True:
            state = self.tick()
            on_tick(state)
            if state.ended:
                return state.ended
            if self._left:
                return None
            time.sleep(self._run.storage.pause_s)

    def tick(self) -> RunState:
        """One turn of the loop; the state after it.

        Raises:
            NotTheDriver: another process has taken the run over.
        """
        with suppress(LedgerConflict):  # somebody wrote in between: look again, decide again
            self.step()
        state = self._run.ledger.refresh()
        if not state.ended and not self._left:
            self._renew_lease()
        return state

    def step(self) -> None:
        """Do at most one thing for the run.

        Raises:
            LedgerConflict: the state changed in between; nothing was done.
            NotTheDriver: another process has taken the run over.
        """
        state = self._run.ledger.refresh()
        self._check_driver(state)
        if state.ended:
            return
        attempt = state.open_attempt
        if attempt is None:
            self._between_attempts(state)
        elif attempt.handle is None:
            self._settle(attempt)
        else:
            self._watch(state, attempt)

    def _between_attempts(self, state: RunState) -> None:
        stopping = self._stop_since is not None
        match decide(state, self._spec.retry, stopping=stopping, now=time.time()):
            case Start() | Wait() if ending := self._ending() or self._unfit:
                self._leave(state, ending)
            case Start(number):
                plan = self._backend.plan(self._run.storage.root, self._run.now, self._spec, number)
                self._run.ledger.append(AttemptStarting(attempt=number, target=plan.target), after=state.version)
                self._run.write_json(f"{attempt_folder(number)}/plan.json", plan.as_json())
                self._run.write_json(spec_path(number), self._spec.model_dump(mode="json", exclude_unset=True))
                handle = self._backend.start(plan)
                self._append(AttemptStarted(attempt=number, hosts=plan.hosts, idle=plan.idle, handle=handle))
            case Finish(end, reason):
                clear(self._run.storage)  # before that: whoever resumes the run may be at home there
                self._run.ledger.append(RunEnded(state=end, reason=reason), after=state.version)
            case Wait():
                pass

    def _settle(self, attempt: Attempt) -> None:
        """An intent without an outcome: its supervisor died in between. Was it started?"""
        handle = self._backend.find(self._run.storage.root, attempt.number)
        if handle:
            self._append(AttemptStarted(attempt=attempt.number, hosts=(), handle=handle))
        elif self._finished_by(attempt):
            self._end(attempt, Cause.FINISHED, "")
        else:
            self._end(attempt, Cause.INFRA, "the launcher died while it started this attempt")

    def _watch(self, state: RunState, attempt: Attempt) -> None:
        assert attempt.handle is not None
        seen = self._backend.poll(self._run, attempt.number, attempt.handle)
        if seen.phase == Phase.ENDED:
            self._end(attempt, *self._judged(state, attempt, seen), lost=seen.lost)
            return
        ending = self._ending()
        if ending and ending.cause == Cause.CANCELLED:
            self._watch_cancelled(state, attempt, ending)
        elif (state.cancelling and not state.saves_first) or self._killed:
            self._backend.kill(attempt.handle)
        elif self._stop_since or state.cancelling:
            self._stop_since = self._stop_since or time.monotonic()
            if time.monotonic() - self._stop_since > STOP_GRACE_S:
                self._backend.kill(attempt.handle)
            else:
                self._ask_to_stop(attempt)
        elif self._place and self._place.allocation.stops_soon():
            self._ask_to_stop(attempt)

    def _watch_cancelled(self, state: RunState, attempt: Attempt, ending: Ending) -> None:
        """The scheduler ends this process soon, perhaps before the ranks have left: all is written down before."""
        self._cancelled_at = self._cancelled_at or time.monotonic()
        if not state.cancelling:
            self._run.ledger.append(CancelRequested(by=ending.reason, checkpoint=True), after=state.version)
        elif time.monotonic() - self._cancelled_at > LAST_WORDS_S:
            self._end(attempt, Cause.CANCELLED, ending.reason)

    def _ask_to_stop(self, attempt: Attempt) -> None:
        if attempt.handle is not None and self._asked != attempt.number:
            self._backend.stop(attempt.handle)
            self._asked = attempt.number

    def _judged(self, state: RunState, attempt: Attempt, seen: Seen) -> tuple[Cause, str]:
        """Cause and reason of an attempt that has ended, with what is known here and not to the backend."""
        if self._finished_by(attempt):
            return Cause.FINISHED, ""
        if state.cancelling:
            return Cause.CANCELLED, seen.reason if seen.cause == Cause.CANCELLED else "cancelled by the user"
        if self._stop_since and seen.cause != Cause.ERROR:
            return Cause.STOPPED, "killed by the user" if self._killed else "stopped by the user"
        return seen.cause or Cause.INFRA, seen.reason

    def _ending(self) -> Ending | None:
        return self._place.allocation.ending() if self._place else None

    def _leave(self, state: RunState, ending: Ending) -> None:
        """No attempt runs, another one is due, and this is no longer the place for it."""
        assert self._place is not None
        if ending.cause == Cause.CANCELLED:
            self._run.ledger.append(RunEnded(state="cancelled", reason=ending.reason), after=state.version)
            return
        if not ending.comes_back:
            self._place.allocation.renew(self._run, self._spec)
        self._left = True

    def _finished_by(self, attempt: Attempt) -> bool:
        return self._run.read_json(finished_path(attempt.number)) is not None

    def _end(self, attempt: Attempt, cause: Cause, reason: str, lost: tuple[str, ...] = ()) -> None:
        step = last_step(self._run, self._run.ledger.refresh(), attempt) or 0
        self._append(AttemptEnded(attempt=attempt.number, cause=cause, reason=reason, step=step, lost=lost))
        if lost and self._place:
            excluded = self._run.ledger.refresh().excluded
            self._unfit = self._place.allocation.unfit(self._spec, lost, excluded)

    def _append(self, event: AttemptStarted | AttemptEnded) -> None:
        self._run.ledger.append_while(self._check_driver, event)

    def _check_submission(self, state: RunState, place: Place) -> None:
        """Raises NotTheDriver when the run waits for another job than this one, or for none."""
        now = state.submission
        if now is None or now.number != place.submission or now.job not in (None, place.job):
            raise NotTheDriver(f"{self._run.id}: job {place.job} is not the one that it waits for any more")

    def _check_driver(self, state: RunState) -> None:
        if state.driver != self._me:
            other = state.driver
            by = f"taken over by process {other.pid} on {other.host}" if other else "resumed by somebody else"
            raise NotTheDriver(f"{self._run.id}: {by}")

    def _renew_lease(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            renew_lease(self._run.storage, self._me)
            self._renewed = time.monotonic()


def submit(
    run: Run | Sweep,
    target: str,
    send: Callable[[int, tuple[str, ...]], str],
    *,
    after: int | None = None,
    cells: tuple[int, ...] = (),
) -> str:
    """Have a scheduler bring up a supervisor for a run, or for some of a sweep: intent, effect, outcome.

    Args:
        run: that waits for no other job; or a sweep.
        target: where to.
        send: submits the job that carries this number, not to run on these hosts, and returns its id.
        after: the version of the state that this was decided on; None: as it is now.
        cells: as in Submitting.

    Raises:
        LedgerConflict: somebody else acts on the run; nothing was submitted.
        LauncherError: as `send` raises it; nothing was submitted.
    """
    state = run.ledger.refresh()
    number = state.submissions + 1
    event = Submitting(submission=number, target=target, exclude=state.excluded, cells=cells)
    run.ledger.append(event, after=state.version if after is None else after)
    job = send(number, state.excluded)
    run.ledger.append_while(lambda state: None, Submitted(submission=number, job=job))
    return job
