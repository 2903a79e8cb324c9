"""The one loop that drives a run: read the ledger, look at the backend, decide, act, write it down.

Each step may be the last before a crash; whoever drives next carries on from the ledger.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from launcher.backends import Backend
from launcher.driver import RENEW_S, renew_lease, this_process
from launcher.errors import LedgerConflict, NotTheDriver
from launcher.ledger import (
    Attempt,
    AttemptEnded,
    AttemptStarted,
    AttemptStarting,
    Driving,
    RunEnded,
    RunState,
)
from launcher.policy import Cause, Finish, Phase, Start, Wait, decide
from launcher.run import Run, attempt_folder, finished_path, spec_path
from launcher.spec import JobSpec
from launcher.status import last_step, living_driver

STOP_GRACE_S = 120.0
"""How long ranks may take to save and leave before they are killed."""


class Supervisor:
    """Drives one run on one backend until it ends or this process is told to stop."""

    def __init__(self, run: Run, spec: JobSpec, backend: Backend) -> None:
        self._run, self._spec, self._backend = run, spec, backend
        self._me = this_process()
        self._renewed = 0.0
        self._stop_since: float | None = None
        self._killed = False
        self._asked = False

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
            driver = living_driver(self._run, state)
            if driver and driver != self._me:
                raise NotTheDriver(
                    f"{self._run.id}: process {driver.pid} on {driver.host} drives this run already; "
                    f"`launcher logs -f {self._run.id}` follows it"
                )
            self._renew_lease()
            with suppress(LedgerConflict):
                self._run.ledger.append(Driving(driver=self._me), after=state.version)
                return

    def drive(self, on_tick: Callable[[RunState], None] = lambda state: None) -> RunEnded:
        """Take the run over and carry it to its end.

        Raises:
            NotTheDriver: another living process drives it, or has taken it over meanwhile.
        """
        self.take_over()
        while True:
            state = self.tick()
            on_tick(state)
            if state.ended:
                return state.ended
            time.sleep(self._run.storage.pause_s)

    def tick(self) -> RunState:
        """One turn of the loop; the state after it.

        Raises:
            NotTheDriver: another process has taken the run over.
        """
        with suppress(LedgerConflict):  # somebody wrote in between: look again, decide again
            self.step()
        state = self._run.ledger.refresh()
        if not state.ended:
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
            case Start(number):
                plan = self._backend.plan(self._run.storage.root, self._run.now, self._spec, number)
                self._run.ledger.append(AttemptStarting(attempt=number, target=plan.target), after=state.version)
                self._run.write_json(f"{attempt_folder(number)}/plan.json", plan.as_json())
                self._run.write_json(spec_path(number), self._spec.model_dump(mode="json", exclude_unset=True))
                handle = self._backend.start(plan)
                self._append(AttemptStarted(attempt=number, hosts=plan.hosts, handle=handle))
            case Finish(end, reason):
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
            if self._finished_by(attempt):
                self._end(attempt, Cause.FINISHED, "")
            elif state.cancelling:
                self._end(attempt, Cause.CANCELLED, "cancelled by the user")
            elif self._stop_since and seen.cause != Cause.ERROR:
                self._end(attempt, Cause.STOPPED, "killed by the user" if self._killed else "stopped by the user")
            else:
                self._end(attempt, seen.cause or Cause.INFRA, seen.reason)
        elif state.cancelling or self._killed:
            self._backend.kill(attempt.handle)
        elif self._stop_since:
            if time.monotonic() - self._stop_since > STOP_GRACE_S:
                self._backend.kill(attempt.handle)
            elif not self._asked:
                self._backend.stop(attempt.handle)
                self._asked = True

    def _finished_by(self, attempt: Attempt) -> bool:
        return self._run.read_json(finished_path(attempt.number)) is not None

    def _end(self, attempt: Attempt, cause: Cause, reason: str) -> None:
        step = last_step(self._run, self._run.ledger.refresh(), attempt) or 0
        self._append(AttemptEnded(attempt=attempt.number, cause=cause, reason=reason, step=step))

    def _append(self, event: AttemptStarted | AttemptEnded) -> None:
        self._run.ledger.append_while(self._check_driver, event)

    def _check_driver(self, state: RunState) -> None:
        if state.driver != self._me:
            other = state.driver
            raise NotTheDriver(
                f"{self._run.id}: taken over by process {other.pid} on {other.host}" if other else self._run.id
            )

    def _renew_lease(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            renew_lease(self._run.storage, self._me)
            self._renewed = time.monotonic()
