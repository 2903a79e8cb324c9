"""A fake network between a client and the emulator: a proxy that loses, delays and refuses what it is told to.

It speaks HTTP/1.1 and passes on everything else unchanged; what real servers say with a fault is in the tests, from
https://cloud.google.com/storage/docs/json_api/v1/status-codes.
"""

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    method: str
    url: str


class Fault(NamedTuple):
    """What happens to the next requests that fit; they do not fail for ever unless `times` is large."""

    what: Callable[["_Handler"], None]
    method: str = ""
    url: str = ""
    times: int = 1


class Proxy:
    """Answers at `url`; `fault` names what fails from then on."""

    def __init__(self, upstream: str, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self.seen: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def fault(self, what: Callable[["_Handler"], None], **where: Any) -> None:
        """Args: method, url (a pattern), times."""
        self._faults.append(Fault(what, **where))

    def next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.seen.append(request)
            for index, one in enumerate(self._faults):
                if one.method in ("", request.method) and re.search(one.url, request.url) and one.times > 0:
                    self._faults[index] = one._replace(times=one.times - 1)
                    return one
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def refuses(status: int, message: str, reason: str = "") -> Callable[["_Handler"], None]:
    """An answer instead of the server's, in the form that Google's JSON API has."""
    body = {"error": {"code": status, "message": message, "errors": [{"message": message, "reason": reason}]}}

    def answer(handler: "_Handler") -> None:
        handler.body()
        handler.reply(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    return answer


def resets(handler: "_Handler") -> None:
    """The request never arrives."""
    handler.body()
    handler.drop()


def loses_the_answer(handler: "_Handler") -> None:
    """The server does what it is asked to, and nobody hears of it."""
    handler.forward()
    handler.drop()


def breaks_off(handler: "_Handler") -> None:
    """Half of the answer."""
    status, headers, body = handler.forward()
    handler.reply(status, headers, body, sent=len(body) // 2)
    handler.drop()


def hangs(seconds: float) -> Callable[["_Handler"], None]:
    def wait(handler: "_Handler") -> None:
        handler.body()
        time.sleep(seconds)
        handler.drop()

    return wait


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "a-fake-network-for-tests"
    proxy: Proxy

    def _answer(self) -> None:
        if fault := self.proxy.next_fault(Request(self.command, self.path)):
            fault.what(self)
        else:
            self.reply(*self.forward())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815 - the base class's names

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def forward(self) -> tuple[int, dict[str, str], bytes]:
        place = urlsplit(self.proxy.upstream).netloc
        connection = http.client.HTTPConnection(place)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, self.body(), {**kept, "Host": place, "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        dropped = ("content-length", "transfer-encoding", "connection")
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        return answer.status, {name: self._here(value) for name, value in headers.items()}, content

    def _here(self, value: str) -> str:
        """Uploads go on at an address that the server names."""
        return value.replace(self.proxy.upstream, self.proxy.url)

    def reply(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def drop(self) -> None:
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        if not self.wfile.closed and self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, *args: object) -> None:
        """Nothing."""
