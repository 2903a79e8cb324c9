"""What is to happen later. It happens when somebody calls `run`, at times that a test may make up."""

import heapq
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count


class Timers:
    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        """Seconds since 1970."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now() + seconds, next(self._order), act))

    def run(self) -> None:
        """All that is due, in its order."""
        while self._due and self._due[0][0] <= self.now():
            heapq.heappop(self._due)[2]()

    @property
    def next(self) -> float | None:
        """When something is due; None when nothing will be."""
        return self._due[0][0] if self._due else None

    def stamp(self) -> str:
        """The time, as the API writes it."""
        return datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
