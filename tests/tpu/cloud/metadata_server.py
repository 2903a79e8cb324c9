"""Metadata over HTTP, as each host finds it at 169.254.169.254, and google-auth at the API's own address."""

import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from tpu.cloud.metadata import ADDRESS, PREFIX, answer, etag
from tpu.cloud.status import Json

_CLONE_NEWNET = 0x40000000
_IP_FREEBIND = 15
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Source:
    """What a server of metadata has to say, and to whom it tells what it is told."""

    look: Callable[[], Json]
    changed: threading.Condition
    """Held to look; notified of changes."""
    token: Callable[[], str]
    token_seconds: float
    report: Callable[[Mapping[str, str]], None]
    """Hears of guest attributes that the host writes."""


def respond(handler: BaseHTTPRequestHandler, source: Source) -> None:
    """Answer this request for metadata."""
    url = urlsplit(handler.path)
    path, query = url.path.removeprefix(PREFIX), dict(parse_qsl(url.query))
    if url.path != "/" and handler.headers.get("Metadata-Flavor") != "Google":
        _send(handler, 403, "Missing Metadata-Flavor:Google header.\n")
    elif url.path == "/":  # how google-auth sees that it is on Google's machines
        _send(handler, 200, "computeMetadata/\n")
    elif path.endswith("/token") and "/service-accounts/" in path:
        token = {"access_token": source.token(), "expires_in": int(source.token_seconds), "token_type": "Bearer"}
        _send(handler, 200, json.dumps(token), "application/json")
    elif handler.command == "PUT":
        _write(handler, path, source)
    elif (found := _look(source, path, query)) is None:
        _send(handler, 404, "not found\n")
    else:
        _send(handler, 200, *found)


def _look(source: Source, path: str, query: Mapping[str, str]) -> tuple[str, str] | None:
    """With wait_for_change: not before it is another than it was."""
    with source.changed:
        found = answer(source.look(), path, query)
        if query.get("wait_for_change", "").lower() != "true" or found is None:
            return found
        known = query.get("last_etag", etag(found[0]))
        deadline = time.monotonic() + float(query.get("timeout_sec", _LONGEST_WAIT_S))
        while found is not None and etag(found[0]) == known and (left := deadline - time.monotonic()) > 0:
            source.changed.wait(left)
            found = answer(source.look(), path, query)
        return found


def _write(handler: BaseHTTPRequestHandler, path: str, source: Source) -> None:
    attribute = path.removeprefix("/instance/guest-attributes/")
    if attribute == path or attribute.count("/") != 1:
        _send(handler, 404, "only instance/guest-attributes/NAMESPACE/KEY can be written\n")
        return
    value = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
    with source.changed:
        source.report({attribute: value})
    _send(handler, 200, "")


def _send(handler: BaseHTTPRequestHandler, status: int, text: str, kind: str = "application/text") -> None:
    body = text.encode()
    handler.send_response(status)
    for header, value in {"Metadata-Flavor": "Google", "Content-Type": kind, "ETag": etag(text)}.items():
        handler.send_header(header, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        respond(self, cast(MetadataServer, self.server).source)

    do_PUT = do_GET  # noqa: N815 - the name is the base class's

    def log_message(self, format: str, *args: Any) -> None: ...


class MetadataServer:
    """That of a host. It listens inside of the host's network and runs here, as the real one runs outside of the VM."""

    def __init__(self, init: int, source: Source) -> None:
        self.source = source
        self._listening = _socket_in_network_of(init)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # which ends accept()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, address = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        with suppress(OSError), connection:
            _Handler(connection, address, cast(Any, self))


def _socket_in_network_of(init: int) -> socket.socket:
    """A thread enters the network to make it, and ends there: a socket stays where it was made."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/proc/{init}/ns/net").open() as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # the host gives itself the address a moment later
            listening.bind((ADDRESS, 80))
            listening.listen(64)
            made.append(listening)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]
