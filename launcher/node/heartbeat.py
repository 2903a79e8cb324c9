"""Rank 0's sign of life: a small file, rewritten about once a second by a thread of its own."""

import threading
import time
from typing import Any

from launcher.run import Run, progress_path

PERIOD_S = 1.0


class Heartbeat:
    """Writes the newest report; training never waits for storage."""

    def __init__(self, run: Run, attempt: int) -> None:
        self._run, self._path = run, progress_path(attempt)
        # An object store takes about one write a second to one name (https://cloud.google.com/storage/quotas).
        self._period_s = max(PERIOD_S, 2 * run.storage.pause_s)
        self._report: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        self._next = 0.0
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

    def close(self) -> None:
        """Write what was reported last."""
        self._closing.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._closing.wait(self._period_s):
            self._write()

    def _write(self) -> None:
        report = self._report
        if report != self._written:
            self._run.write_json(self._path, report)
            self._written = report
