"""The events of a run as they are stored: append-only, one file each, numbered without gaps.

An event is created exclusively under the next number, so the ledger is the one compare-and-swap that a
run has: whoever appends with `after=version` knows that nothing happened in between.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from launcher.errors import LedgerConflict
from launcher.events import FORMAT, Event, Record, decode
from launcher.state import RunState, fold
from launcher.storage import Storage

_FOLDER = "events"


class Ledger:
    """Reads and appends the events of one run; keeps what it has read."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: list[Record] = []
        self._state = RunState()

    def refresh(self) -> RunState:
        """Read what is new and return the state.

        Raises:
            FormatTooNew: a newer launcher wrote an event of a kind or format that this one does not know.
        """
        new: list[Record] = []
        for name in self._storage.list(_FOLDER)[len(self._records) :]:
            if name != _name(len(self._records) + len(new) + 1):
                break  # listed while others wrote: a name was passed over; it is there the next time
            new.append(decode(self._storage.read(f"{_FOLDER}/{name}"), where=name))
        self._records += new
        self._state = fold(new, self._state)
        return self._state

    def newest(self) -> Record | None:
        """The last event alone; None if there is none. Raises FormatTooNew."""
        names = self._storage.list(_FOLDER)
        return decode(self._storage.read(f"{_FOLDER}/{names[-1]}"), where=names[-1]) if names else None

    def records(self) -> tuple[Record, ...]:
        self.refresh()
        return tuple(self._records)

    def append(self, event: Event, *, after: int) -> RunState:
        """Write event number `after` + 1.

        Raises:
            LedgerConflict: somebody else wrote that number first; read and decide again.
        """
        number = after + 1
        body = {
            "format": FORMAT,
            "number": number,
            "time": time.time(),
            "kind": type(event).__name__,
            **asdict(event),
        }
        data = (json.dumps(body, indent=1) + "\n").encode()
        try:
            self._storage.create(f"{_FOLDER}/{_name(number)}", data)
        except FileExistsError:
            raise LedgerConflict(f"{self._storage.root}: event {number} was written by somebody else") from None
        return self.refresh()

    def append_while(self, allowed: Callable[[RunState], object], event: Event) -> RunState:
        """Append an event that stays true whatever else happens, unless `allowed` raises on the newest state."""
        while True:
            state = self.refresh()
            allowed(state)
            try:
                return self.append(event, after=state.version)
            except LedgerConflict:
                continue


def _name(number: int) -> str:
    return f"{number:08d}.json"
