"""All ranks meet at a store and try an all-reduce before they train: the second part of preflight.py, with torch."""

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from launcher.node import waiting
from launcher.node.environment import Place
from launcher.node.stop import StopFlag
from launcher.node.waiting import LOGS, Unfit, Waiting

GLOO_S = 10.0
NCCL_S = 60.0
"""It takes seconds; a GPU's context and the discovery of the network grow with the number of hosts."""
LEAVE_S = 10.0
"""Ranks that were told to leave wait so long for one another."""

log = logging.getLogger(__name__)


class Meeting:
    """Of one rank. To be kept until the process ends: the store ends with rank 0's."""

    def __init__(self, wait: Waiting, place: Place, flag: StopFlag) -> None:
        self._wait, self._place, self._flag = wait, place, flag
        self._store: Any = None

    def all_reduce(self, port: int, listener: socket.socket | None) -> None:
        """Collective.

        Args:
            port: of the store, on rank 0's host.
            listener: rank 0's, at that port; None elsewhere.

        Raises:
            Unfit: a rank did not come, or the all-reduce did not succeed.
            Stopped: some rank was told to leave.
            Fenced: a newer attempt has begun.
            RuntimeError: an echo of another rank's end.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        told = self._flag.signal
        try:
            self._store = TCPStore(
                self._place.main_address,
                port,
                is_master=self._place.rank == 0,
                timeout=timedelta(seconds=LEAVE_S if told else waiting.PATIENCE_S),
                wait_for_workers=False,
                master_listen_fd=listener.detach() if listener else None,
            )
        except RuntimeError:
            if told:  # rank 0 was told too, and has left
                self._wait.leave(told)
            raise
        self._wait.begin()
        self._meet()
        began = time.monotonic()
        self._add_up()
        if self._place.rank == 0:
            log.info(
                "preflight: all-reduce of %d ranks on %d hosts, %.1f s", *self._wait.size, time.monotonic() - began
            )

    def _meet(self) -> None:
        """Wait until all ranks have imported torch, or one is told to leave: the first to say so decides for all."""
        store, rank, size = self._store, self._place.rank, self._place.world_size
        store.set(f"here-{rank}", "")
        if store.add("here", 1) == size:
            store.compare_set("agreed", "", "go")
        while not store.check(["agreed"]):
            if self._flag.signal:
                store.compare_set("agreed", "", str(self._flag.signal))
            self._wait.look_for_newer()
            if rank == 0 and time.monotonic() - self._wait.began > waiting.SAY_S:
                absent = {one for one in range(size) if not store.check([f"here-{one}"])}
                if not self._wait.is_patient(absent):
                    late = (
                        f"{self._wait.named(absent)} had not imported torch after {waiting.PATIENCE_S:g} s; see {LOGS}"
                    )
                    raise Unfit(late, self._wait.nodes_of(absent))
            time.sleep(waiting.POLL_S)
        if (agreed := store.get("agreed").decode()) != "go":
            store.add("leaving", 1)
            until = time.monotonic() + LEAVE_S
            while rank == 0 and store.add("leaving", 0) < size and time.monotonic() < until:  # the store ends with it
                time.sleep(waiting.POLL_S)
            self._wait.leave(int(agreed))

    def _add_up(self) -> None:
        on_gpu = self._place.accelerator == "gpu"
        network, seconds = ("gloo and NCCL", NCCL_S) if on_gpu else ("gloo", GLOO_S)
        try:
            _within(seconds, lambda: self._sum(on_gpu, timedelta(seconds=seconds)))
        except TimeoutError:
            problem = f"has not come to its end after {seconds:g} s"
            raise Unfit(self._not_summed(network, problem)) from None
        except RuntimeError as error:
            raise Unfit(self._not_summed(network, f"failed: {error}")) from error

    def _sum(self, on_gpu: bool, timeout: timedelta) -> None:
        import torch
        import torch.distributed as dist

        place = self._place
        devices = ["cpu", f"cuda:{place.local_rank}"] if on_gpu else ["cpu"]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("sum", self._store),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
        for device in devices:
            total = torch.ones(1, device=device)
            dist.all_reduce(total)
            if total.item() != place.world_size:
                raise RuntimeError(f"{place.world_size} ones add up to {total.item():g} on {device}")
        dist.destroy_process_group()  # Lightning makes its own, as trainer.strategy says

    def _not_summed(self, network: str, problem: str) -> str:
        ranks, hosts = self._wait.size
        return (
            f"{self._wait.where}: an all-reduce over {network} of {ranks} ranks on {hosts} "
            f"hosts {problem}; hosts must reach one another at all ports; if they have several networks, name the "
            "interface: env.vars.GLOO_SOCKET_IFNAME, env.vars.NCCL_SOCKET_IFNAME"
        )


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Raises TimeoutError; the action may then go on until the process ends."""
    beside = ThreadPoolExecutor(1)
    beside.submit(action).result(seconds)
    beside.shutdown()
