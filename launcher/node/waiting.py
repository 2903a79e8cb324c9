"""How a rank waits for the others before training: it names them, has patience, and may have reason to leave."""

import logging
import signal
import socket
import time
from collections.abc import Iterable
from typing import NoReturn

from launcher.checkpoints import newest_attempt
from launcher.errors import LauncherError
from launcher.layout import progress_path
from launcher.node.environment import Place
from launcher.node.hosts import named
from launcher.node.stop import Stopped
from launcher.run import Run

PATIENCE_S = 300.0
"""For ranks that have not come. One whose process has died is seen long before by whoever started it."""
SAY_S = 10.0
"""So often the log says who is waited for."""
POLL_S = 0.05
LOOK_S = 5.0
"""How often the ledger is looked at for a newer attempt."""
LOGS = "their logs, and whether these hosts are up"

log = logging.getLogger(__name__)


class Unfit(LauncherError):
    """Hosts that cannot train together; the message names each, and what to do."""

    def __init__(self, message: str, nodes: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.nodes = sorted(nodes)
        """At fault, by their ranks among the nodes; none where that is not known."""


class Waiting:
    """Of one rank."""

    def __init__(self, run: Run, place: Place) -> None:
        # A ledger of its own, where it needs one: another thread chooses a checkpoint meanwhile.
        self.run = Run(run.storage) if place.nodes > 1 else run
        self.host = socket.gethostname()
        self.where = f"rank {place.rank} on {self.host}"
        self._place = place
        self._looked_at = self.began = self._say_at = time.monotonic()

    def begin(self) -> None:
        """From now on others are waited for."""
        self.began = time.monotonic()
        self._say_at = self.began + SAY_S

    @property
    def size(self) -> tuple[int, int]:
        """Ranks and hosts."""
        return self._place.world_size, self._place.nodes

    def absent(self, present: Iterable[int]) -> set[int]:
        return set(range(self._place.world_size)).difference(present)

    def is_patient(self, absent: Iterable[int]) -> bool:
        """Whether these are waited for; now and then the log says so."""
        now = time.monotonic()
        if now > self._say_at:
            self._say_at = now + SAY_S
            log.info("preflight: waiting for %s", self.named(absent))
        return now - self.began < PATIENCE_S

    def nodes_of(self, ranks: Iterable[int]) -> set[int]:
        return {rank // self._place.local_world_size for rank in ranks}

    def named(self, ranks: Iterable[int]) -> str:
        """With their hosts, where the ledger knows them."""
        started = {one.number: one.hosts for one in self.run.ledger.refresh().attempts}
        hosts = started.get(self._place.attempt, ())
        if len(hosts) != self._place.nodes:
            return named(ranks)
        on = dict.fromkeys(hosts[rank // self._place.local_world_size] for rank in sorted(ranks))
        return f"{named(ranks)} on {', '.join(on)}"

    def look_for_newer(self, *, at_once: bool = False) -> None:
        """Now and then, or at once. Raises Fenced."""
        if at_once or time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            newest_attempt(self._place.attempt)(self.run.ledger.refresh())

    def leave(self, number: int) -> NoReturn:
        """As Session does between two steps, but for the checkpoint: there is nothing new to save. Raises Stopped."""
        if self._place.rank == 0:
            left = {"stage": "preflight", "left": signal.Signals(number).name, "time": time.time()}
            self.run.write_json(progress_path(self._place.attempt), left)
        raise Stopped
