"""Ranks report to rank 0, over MASTER_ADDR and MASTER_PORT, before anybody imports torch: the sockets of preflight.py.

The port is torch's afterwards: rank 0 stops listening before it answers, and nobody needs it before the answer.
JSON values go over each connection, one a line.
"""

import json
import select
import selectors
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from launcher.errors import LauncherError

IO_S = 5.0
"""For a connection to be made, and for a line to go out: both take milliseconds where they work."""
_LONGEST = 1 << 20
"""A report has the versions of all packages; what is longer was not sent by a rank."""

Message = Mapping[str, Any]


class Line:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(IO_S)
        self._connection = connection
        self._received = b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def send(self, message: Message) -> None:
        """Raises OSError: the other end is gone."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """What has come.

        Raises:
            OSError: the other end is gone.
            ValueError: it is no rank.
        """
        received = self._connection.recv(1 << 16)
        if not received:
            raise ConnectionResetError
        *lines, self._received = (self._received + received).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if len(self._received) > _LONGEST or not all(isinstance(one, dict) for one in messages):
            raise ValueError("not a report")
        return messages


def connect(address: str, port: int) -> Line:
    """Raises OSError; ConnectionRefusedError if nobody listens there (yet)."""
    connection = socket.create_connection((address, port), IO_S)
    if connection.getsockname() == connection.getpeername():  # on one host, the kernel may join a socket to itself
        connection.close()
        raise ConnectionRefusedError
    return Line(connection)


class RollCall:
    """Rank 0's side. Connections stay open until they are closed or this process ends: by that the others see it."""

    def __init__(self, port: int, ours: Message) -> None:
        """Begin to listen.

        Args:
            ours: what a message must hold to be of a rank of this attempt.

        Raises:
            OSError: the port is taken.
        """
        self._ours = ours
        self._listener = listen(port)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ranks: dict[Line, int] = {}
        self.reports: dict[int, Message] = {}
        """By rank."""
        self.gone: set[int] = set()
        """Ranks that have reported and ended since."""
        self.stop = 0
        """A signal that some rank has received; 0 for none."""

    def hear(self, seconds: float) -> None:
        """Take in what comes within some time."""
        for key, _ in self._selector.select(seconds):
            if isinstance(key.fileobj, Line):
                self._hear(key.fileobj)
            else:
                self._selector.register(Line(self._listener.accept()[0]), selectors.EVENT_READ)

    def _hear(self, line: Line) -> None:
        try:
            for message in line.receive():
                if line in self._ranks:
                    self.stop = self.stop or int(message["stop"])
                elif self._ours.items() <= message.items():
                    self._ranks[line] = message["rank"]
                    self.reports[message["rank"]] = message
        except (OSError, ValueError):  # its end; or somebody who looks which ports are open
            self._selector.unregister(line)
            if line in self._ranks:
                self.gone.add(self._ranks.pop(line))
            line.close()

    def answer(self, message: Message) -> None:
        """To all that have reported, once nobody listens at the port any more."""
        self._selector.unregister(self._listener)
        self._listener.close()
        for line, rank in self._ranks.items():
            try:
                line.send(message)
            except OSError:
                self.gone.add(rank)

    def close(self) -> None:
        for line in self._ranks:
            line.close()
        self._selector.close()


class Answers:
    """The side of all other ranks."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def close(self) -> None:
        self._line.close()

    def say(self, message: Message) -> None:
        """The report; and, as often as one likes, that this rank was told to leave."""
        with suppress(OSError):  # rank 0 is gone: `within` says so
            self._line.send(message)

    def within(self, seconds: float) -> Message | None:
        """What rank 0 says within some time: one message, whether to begin or to leave.

        Raises:
            LauncherError: rank 0 is gone.
        """
        try:
            if select.select([self._line], [], [], seconds)[0] and (messages := self._line.receive()):
                return messages[0]
        except (OSError, ValueError):
            raise LauncherError("rank 0 ended before it had all ranks begin: Connection closed") from None
        return None


def listen(port: int) -> socket.socket:
    """At all addresses of this host; port 0: one that is free. Raises OSError."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=4096)
