"""A sweep in this process: some runs at a time, each on its share of the machine."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from launcher.backend import Plan
from launcher.backends.local import LocalBackend, Machine, this_host
from launcher.cli.place import who
from launcher.cli.terminal import Terminal, bar, metrics_text, values_text
from launcher.driver import RENEW_S, renew_lease, this_process
from launcher.errors import LauncherError, UsageError
from launcher.events import Driving, ResumeRequested
from launcher.layout import cell_id, progress_path
from launcher.overrides import vary
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec, runs_of
from launcher.state import RunState
from launcher.status import status
from launcher.supervise import Supervisor
from launcher.sweep import Cell, Sweep, create_cell, missing

_BAR_S = 0.5


def planned(spec: JobSpec, record: Record, address: str) -> tuple[JobSpec, Plan]:
    """The spec and the plan of the first run; the others are only held against this machine.

    Raises:
        UsageError: it does not have what some of them ask for; all of that.
    """
    assert spec.sweep
    machine, parallel = this_host(), spec.sweep.max_parallel
    if 0 < len(machine.gpus) < parallel and spec.resources.gpus_per_node != 0:
        raise UsageError(
            f"sweep.max_parallel: {parallel} runs at a time, but this machine has {len(machine.gpus)} GPU(s); "
            "lower it, or set resources.gpus_per_node to 0 for the CPU"
        )
    backend = LocalBackend(shares(machine, parallel)[0])
    specs = runs_of(spec)
    problems: dict[str, str] = {}
    plans = []
    for index, one in enumerate(specs):
        try:
            plans.append(backend.plan(address, record, one, 1))
        except UsageError as error:
            problems.setdefault(str(error), f"sweep: run {index}, {parallel} at a time: {error}")
    if problems:
        raise UsageError("\n".join(problems.values()))
    return specs[0], plans[0]


def begin(sweep: Sweep, cell: Cell, backend: LocalBackend) -> tuple[Run, JobSpec]:
    """The run of a cell, made if it is not there, such that it can be driven.

    Raises:
        UsageError: the machine does not have what it asks for.
        LedgerConflict: somebody else acts on it.
    """
    begun = sweep.cell(cell.index)
    if begun is None:
        spec = JobSpec.model_validate(vary(sweep.record.spec, cell.values))
        plan = backend.plan(sweep.storage.root, replace(sweep.record, ranks=None), spec, 1)
        begun = create_cell(sweep, cell, spec.model_dump(mode="json", exclude_unset=True), len(plan.ranks))
    state = begun.ledger.refresh()
    if state.attempts or state.ended:
        begun.ledger.append(ResumeRequested(by=who()), after=state.version)
    return begun, JobSpec.model_validate(begun.now.spec)


class _Active(NamedTuple):
    """A run that this process drives now."""

    run: Run
    cell: Cell
    supervisor: Supervisor
    backend: LocalBackend


class Runner:
    """Drives what is missing of a sweep in this process: some runs at a time, each on its share of the machine."""

    def __init__(
        self, sweep: Sweep, terminal: Terminal, backend_of: Callable[[Machine], LocalBackend] = LocalBackend
    ) -> None:
        self.killed = False
        self.errors = 0
        """Runs that could not be begun, or be driven to an end."""
        self._sweep, self._terminal, self._backend_of = sweep, terminal, backend_of
        self._shares = shares(this_host(), sweep.max_parallel)
        self._active: dict[int, _Active] = {}
        self._stopping = False
        self._renewed = self._drawn = 0.0
        self._done = 0

    def stop(self) -> None:
        """Save and leave, and begin no more. May be called from a signal handler."""
        self._stopping = True
        for one in [*self._active.values()]:
            one.supervisor.stop()

    def kill(self) -> None:
        """Leave at once, without saving. May be called from a signal handler."""
        self._stopping = self.killed = True
        for one in [*self._active.values()]:
            one.supervisor.kill()

    def drive(self) -> None:
        """Until all is done that can be, the user wants no more, or the sweep is cancelled."""
        self._sweep.ledger.append_while(lambda state: None, Driving(driver=this_process()))
        waiting = deque(missing(self._sweep))
        self._done = len(self._sweep.cells) - len(waiting)
        try:
            while True:
                self._renew_lease()
                if self._stopping or self._sweep.ledger.refresh().cancelling:
                    waiting.clear()
                for share in range(len(self._shares)):
                    while waiting and share not in self._active:
                        self._begin(waiting.popleft(), share)
                    if share in self._active:
                        self._look(share)
                if not self._active and not waiting:
                    return
                self._draw()
                time.sleep(self._sweep.storage.pause_s)
        finally:
            self._terminal.bottom("")
            for one in self._active.values():
                one.backend.close()

    def _begin(self, cell: Cell, share: int) -> None:
        backend = self._backend_of(self._shares[share])
        try:
            run, spec = begin(self._sweep, cell, backend)
            supervisor = Supervisor(run, spec, backend)
            supervisor.take_over()
        except (LauncherError, OSError) as error:
            self._failed(cell, error)
            return
        self._active[share] = _Active(run, cell, supervisor, backend)
        if self._stopping:  # asked for just now, when it was not among them
            supervisor.stop()

    def _look(self, share: int) -> None:
        one = self._active[share]
        try:
            state = one.supervisor.tick()
            if not state.ended:
                return
            self._say(one, state)
        except (LauncherError, OSError) as error:
            self._failed(one.cell, error)
        one.backend.close()
        del self._active[share]

    def _say(self, one: _Active, state: RunState) -> None:
        assert state.ended
        self._done += 1
        shown = status(one.run)
        because = f": {state.ended.reason}" if state.ended.reason else ""
        parts = (
            f"[{self._done}/{len(self._sweep.cells)}]",
            one.run.id,
            self._terminal.state(shown["state"]) + because,
            values_text(one.cell.values),
            metrics_text(shown["metrics"]),
        )
        self._terminal.line("  ".join(part for part in parts if part))

    def _failed(self, cell: Cell, error: Exception) -> None:
        self._done += 1
        self.errors += 1
        known = cell_id(self._sweep.id, cell.index)
        self._terminal.line(f"[{self._done}/{len(self._sweep.cells)}]  {known}  {error}")

    def _draw(self) -> None:
        if not self._terminal.interactive or time.monotonic() - self._drawn < _BAR_S:
            return
        self._drawn = time.monotonic()
        for one in self._active.values():
            attempts = one.run.ledger.refresh().attempts
            if attempts and (report := one.run.read_json(progress_path(attempts[-1].number))):
                others = f" and {len(self._active) - 1} more" if len(self._active) > 1 else ""
                self._terminal.bottom(f"{one.run.id}{others}  {bar(report)}")
                return

    def _renew_lease(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            renew_lease(self._sweep.storage, this_process())
            self._renewed = time.monotonic()


def shares(machine: Machine, parallel: int) -> list[Machine]:
    """The machine divided among so many runs at a time. Pure."""
    gpus = len(machine.gpus) // parallel
    return [
        Machine(cpus=max(1, machine.cpus // parallel), gpus=machine.gpus[share * gpus : (share + 1) * gpus])
        for share in range(parallel)
    ]
