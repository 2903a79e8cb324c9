"""All hosts of a slice at once: a runner is started on each, then looked at; what its ranks print is stored."""

import base64
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.backends.tpu import runner
from launcher.backends.tpu.library import packed
from launcher.backends.tpu.ssh import HOME, Way
from launcher.errors import LauncherError
from launcher.output import store, stored
from launcher.storage import Storage

LIBRARY = f"{HOME}/launcher.zip"
"""Where the launcher itself is brought to."""
SCRATCH = Path(HOME, "scratch")
_AT_ONCE = 64
_BEGIN = (
    *("-I", "-S", "-c"),  # Python starts sooner without what is installed beside it
    'import json, sys; message = json.load(sys.stdin); exec(compile(message["runner"], "runner.py", "exec"), '
    '{"__name__": "begin", "message": message})',
)
_OVER = ("ended", "failed")
_PHASES = {"setup": "being set up", "code": "fetching the code", "ranks": "with ranks"}

log = logging.getLogger(__name__)


@dataclass
class Host:
    """What is known of one."""

    ranks: dict[int, str]
    """Those that it has, and where their logs are stored."""
    answered: float
    """When it said something last (time.monotonic)."""
    begun: bool = False
    alive: bool = True
    """Its runner, as it was seen last."""
    state: dict[str, Any] = field(default_factory=dict)
    """As its runner has written it down."""
    error: str = ""
    """Why it did not answer the last time; "" if it did."""
    offsets: dict[int, int] | None = None
    task: "Future[Any] | None" = None
    due: float = 0.0
    told: bool = False
    """All that comes from it has come."""

    @property
    def phase(self) -> str:
        return str(self.state.get("phase", ""))

    @property
    def over(self) -> bool:
        """Nothing more comes from it."""
        return self.phase in _OVER or (self.begun and not self.alive)

    @property
    def codes(self) -> dict[int, int]:
        """Of its ranks that have ended, the exit codes."""
        return {int(rank): code for rank, code in self.state.get("codes", {}).items() if code is not None}


class Hosts:
    """The hosts of a slice. Nothing here waits for one."""

    def __init__(self, way: Way, storage: Storage, folder: str, orders: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            folder: of the attempt, on each host.
            orders: for each host's runner.
        """
        self._way, self._storage, self._folder, self._orders = way, storage, folder, orders
        self._pool = ThreadPoolExecutor(min(_AT_ONCE, len(orders)), "hosts")
        now = time.monotonic()
        self.all = [Host({one["rank"]: one["log"] for one in order["ranks"]}, now) for order in orders]
        # Here, not in each thread: a cache holds nobody back who asks while the first is at work.
        self._bring = {"folder": folder, "runner": Path(runner.__file__).read_text(), "library": packed()}
        self._period_s = way.look_s * max(1.0, len(orders) / 16)

    def tick(self, *, stop: bool) -> None:
        """Take what has come, and ask for more. To be called often.

        Args:
            stop: have all ranks save and leave.
        """
        now = time.monotonic()
        for worker, host in enumerate(self.all):
            if host.task and host.task.done():
                self._take(worker, host, host.task)
                host.task = None
            if host.task is None and now >= host.due and not host.told:
                host.due = now + self._period_s
                host.task = self._pool.submit(self._look if host.begun else self._begin, worker, host, stop)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._way.close()

    @property
    def codes(self) -> dict[int, int]:
        return {rank: code for host in self.all for rank, code in host.codes.items()}

    def summary(self) -> str:
        """How many are how far."""
        phases = Counter(one.phase or ("begun" if one.begun else "to begin") for one in self.all)
        return ", ".join(f"{count} {_PHASES.get(phase, phase)}" for phase, count in phases.items())

    def silent(self, seconds: float) -> list[int]:
        """Hosts that have not answered for so long, and from which more is to come."""
        now = time.monotonic()
        return [n for n, one in enumerate(self.all) if not one.over and now - one.answered > seconds]

    def _begin(self, worker: int, host: Host, stop: bool) -> Any:
        message = {**self._bring, "order": self._orders[worker]}
        return self._way.python(worker, _BEGIN, json.dumps(message))

    def _look(self, worker: int, host: Host, stop: bool) -> Any:
        if host.offsets is None:
            host.offsets = {rank: stored(self._storage, path) for rank, path in host.ranks.items()}
        word = json.dumps({"offsets": host.offsets, "stop": stop})
        answer = self._way.python(worker, ("-I", "-S", f"{self._folder}/runner.py", "look", self._folder, word))
        more = False
        for rank, path in host.ranks.items():
            if data := base64.b64decode(answer["logs"].get(str(rank), "")):
                host.offsets[rank] = store(self._storage, path, host.offsets[rank], data)
                more = more or len(data) == runner.MOST
        return {**answer, "more": more}

    def _take(self, worker: int, host: Host, task: "Future[Any]") -> None:
        try:
            answer = task.result()
        except (LauncherError, OSError) as error:  # of the host, or of the storage
            if not host.error:
                log.warning("%s", error)
            host.error = str(error)
            return
        host.answered, host.error = time.monotonic(), ""
        if not host.begun:
            host.begun = bool(answer["begun"])
            return
        host.alive, host.state = answer["alive"], answer["state"] or {}
        host.told = host.over and not answer["more"]
        if answer["more"]:
            host.due = 0.0
