"""Rank 0's sign of life: a small file, rewritten about once a second by a thread; and its ear for a newer attempt."""

import logging
import threading
import time
from typing import Any

from launcher.checkpoints import newest_attempt
from launcher.errors import Fenced, LauncherError
from launcher.layout import progress_path
from launcher.run import Run

PERIOD_S = 1.0
LOOK_S = 5.0
"""How often the ledger is looked at for a newer attempt."""
GAP_S = 2.0
"""After a step that took longer it is looked at before the next one: this process may have been stopped meanwhile."""

log = logging.getLogger(__name__)


class Heartbeat:
    """Writes the newest report, and hears when a newer attempt has begun; training never waits for storage."""

    def __init__(self, run: Run, attempt: int) -> None:
        self._run, self._path = Run(run.storage), progress_path(attempt)  # a ledger of this thread's own
        self._is_newest = newest_attempt(attempt)
        # An object store takes about one write a second to one name (https://cloud.google.com/storage/quotas).
        self._period_s = max(PERIOD_S, 2 * run.storage.pause_s)
        self._report: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        self._next = 0.0
        self._fenced: Fenced | None = None
        self._looking = threading.Lock()
        self._looked_at = self._checked_at = time.monotonic()
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def due(self) -> bool:
        """Whether a new report would be written; ask before collecting one, metrics may have to be synchronised."""
        return time.monotonic() >= self._next

    def report(self, **values: Any) -> None:
        self._report = {**self._report, **values, "time": time.time()}
        self._next = time.monotonic() + self._period_s

    def check(self) -> None:
        """At each step.

        Raises:
            Fenced: a newer attempt has begun.
        """
        now = time.monotonic()
        if now - self._checked_at > GAP_S:
            self._look()
        self._checked_at = now
        if self._fenced:
            raise self._fenced

    def close(self) -> None:
        """Write what was reported last."""
        self._closing.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._closing.wait(self._period_s):
            self._write()
            if time.monotonic() - self._looked_at > LOOK_S:
                self._look()

    def _look(self) -> None:
        if not self._looking.acquire(timeout=PERIOD_S):
            return  # the other thread is at it; storage may hang
        try:
            self._is_newest(self._run.ledger.refresh())
        except Fenced as fenced:
            self._fenced = fenced
        except (OSError, LauncherError) as error:
            log.debug("the ledger cannot be read: %s", error)  # whoever writes to it will see, and say so
        finally:
            self._looked_at = time.monotonic()
            self._looking.release()

    def _write(self) -> None:
        report = self._report
        if report == self._written:
            return
        try:
            self._run.write_json(self._path, report)
        except OSError as error:
            if not self._failing:
                log.warning("progress cannot be written, training goes on: %s", error)
            self._failing = True
        else:
            self._written, self._failing = report, False
