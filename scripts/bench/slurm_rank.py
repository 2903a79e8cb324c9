"""Stands for a rank in `slurm nodes`: no torch, no training, but the heartbeat and the agreement, every half second.

All ranks have a connection to rank 0, which answers with the largest of their votes. The last argument is the file that
each one writes to when it has started, and when it has had the first answer.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from launcher.address import storage_at
from launcher.checkpoints import checkpoint_path, newest_attempt
from launcher.events import AttemptResumes, CheckpointSaved
from launcher.node.environment import Place, adopt_slurm_numbers, place_from
from launcher.node.heartbeat import Heartbeat
from launcher.node.stop import CHECK_S, StopFlag
from launcher.run import Run


def note(what: str, rank: int) -> None:
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{what} {rank} {time.time()}\n".encode())
    os.close(descriptor)


def connections(place: Place) -> list[socket.socket]:
    """Of rank 0 to all others; of another one to rank 0."""
    if place.rank == 0:
        with socket.create_server(("", place.main_port), backlog=place.world_size) as server:
            return [server.accept()[0] for _ in range(1, place.world_size)]
    while True:
        with suppress(OSError):  # rank 0 has not come so far
            return [socket.create_connection((place.main_address, place.main_port))]
        time.sleep(0.05)


def agreed(vote: int, others: list[socket.socket], leads: bool) -> int:
    """The largest vote of all; each is a byte."""
    if not leads:
        others[0].sendall(bytes([vote]))
        return others[0].recv(1)[0]
    largest = max([vote, *(other.recv(1)[0] for other in others)])
    for other in others:
        other.sendall(bytes([largest]))
    return largest


def main() -> None:
    flag = StopFlag()
    flag.install()
    adopt_slurm_numbers()
    place = place_from(os.environ)
    note("started", place.rank)
    heartbeat = None
    if place.rank == 0:
        run = Run(storage_at(place.run_dir))
        is_newest = newest_attempt(place.attempt)
        run.ledger.append_while(is_newest, AttemptResumes(attempt=place.attempt, step=0, path=None))
        heartbeat = Heartbeat(run, place.attempt)
    others = connections(place)
    step = 0
    while not (stop := agreed(flag.signal, others, place.rank == 0)):
        if step == 0:
            note("met", place.rank)
        step += 1
        if heartbeat:
            heartbeat.report(stage="train", step=step, epoch=0, metrics={})
        time.sleep(CHECK_S)
    if heartbeat:
        path = checkpoint_path(step, place.attempt)
        saved = CheckpointSaved(attempt=place.attempt, step=step, epoch=0, path=path, bytes=0, complete=False)
        run.ledger.append_while(is_newest, saved)
        heartbeat.report(left=signal.Signals(stop).name)
        heartbeat.close()
    agreed(0, others, place.rank == 0)  # the others wait for the save


main()
