"""The process that is the cloud: the API over HTTP, orders of tests, a clock. `python -m tpu.cloud.server FOLDER`."""

import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import parse_qsl, urlsplit

from machines import network

from tpu.cloud import metadata, metadata_server, schema, world
from tpu.cloud.hosts import Hosts, NoHosts
from tpu.cloud.layout import FAKE, ORDER, PORT, Addresses, Layout
from tpu.cloud.namespaces import Namespaces
from tpu.cloud.settings import Settings
from tpu.cloud.status import ApiError, Json
from tpu.cloud.world import ConnectionLost, World


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], settings: Settings, requests: TextIO, hosts: Callable[["Server"], Hosts]
    ) -> None:
        super().__init__(address, _Handler)
        self.settings = settings
        self.changed = threading.Condition()
        """Held by whoever looks at the world or changes it."""
        self._requests = requests
        self.world = World(settings, hosts(self), time.time)

    def keep_time(self) -> None:
        """What is due happens, for ever."""
        with self.changed:
            while True:
                due = self.world.timers.next
                if due is not None and due <= time.time():
                    try:
                        self.world.timers.run()
                    except Exception:
                        traceback.print_exc()
                    self.changed.notify_all()
                else:
                    self.changed.wait(None if due is None else max(due - time.time(), 0.001))

    def token(self) -> str:
        with self.changed:
            return self.world.gate.token()

    def write_down(self, request: Json) -> None:
        """`changed` is held: in the order in which they took effect."""
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()

    @property
    def own_metadata(self) -> metadata_server.Source:
        """That of the machine where launchers run, as if it were one of Google's: google-auth finds a token there."""
        account = {"aliases": ["default"], "email": "tester@fake", "scopes": ["cloud-platform"]}
        project = {"project-id": self.settings.project, "numeric-project-id": metadata.PROJECT_NUMBER}
        tree = {"instance": {"service-accounts": {"default": account, "tester@fake": account}}, "project": project}
        return metadata_server.Source(
            lambda: tree, self.changed, self.token, self.settings.token_seconds, lambda attributes: None
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "FakeCloudTPU"

    def answer(self) -> None:
        server = cast(Server, self.server)
        url = urlsplit(self.path)
        if url.path == "/" or url.path.startswith(metadata.PREFIX):
            metadata_server.respond(self, server.own_metadata)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path.startswith(ORDER):
            self._send(*_order(server, url.path.removeprefix(ORDER), json.loads(body or b"{}")))
        elif url.path == "/token":
            token = {"access_token": server.token(), "expires_in": int(server.settings.token_seconds)}
            self._send(200, {**token, "token_type": "Bearer"})
        else:
            self._call(server, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815 - the names are the base class's

    def _call(self, server: Server, path: str, query: dict[str, str], body: bytes) -> None:
        said: Json = {"time": time.time(), "verb": self.command, "path": path, "query": query}
        said["method"] = schema.method_id(self.command, path)
        said |= {"user_agent": self.headers.get("User-Agent", ""), "authorized": "Authorization" in self.headers}
        try:
            said["body"] = json.loads(body) if body else None
        except ValueError:
            said["body"] = body.decode(errors="replace")
        with server.changed:
            status, answer = self._outcome(server, said)
            server.write_down({**said, "status": status, "answer": answer})
            server.changed.notify_all()
        if status is not None:
            self._send(status, answer)
        else:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _outcome(self, server: Server, said: Json) -> tuple[int | None, Json]:
        """The status of the answer and its body; no status where there is to be no answer."""
        try:
            return 200, _answer(server, said, self.headers.get("Authorization"))
        except ApiError as error:
            return error.http, error.body
        except ConnectionLost:
            return None, {}
        except Exception as error:
            traceback.print_exc()
            return 500, ApiError("INTERNAL", f"the fake is broken, see its log: {error!r}").body

    def _send(self, status: int, answer: Json) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("X-Fake", FAKE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def _answer(server: Server, said: Json, authorization: str | None) -> Json:
    """Raises what World.call raises."""
    # What gcloud asks of Compute Engine before it uses ssh.
    if (said["verb"], said["path"]) == ("GET", f"/compute/v1/projects/{server.settings.project}"):
        server.world.gate.check_token(authorization)
        items = [{"key": key, "value": value} for key, value in server.world.nodes.project_attributes.items()]
        common = {"kind": "compute#metadata", "fingerprint": "ZmFrZQ==", "items": items}
        return {"kind": "compute#project", "name": server.settings.project, "commonInstanceMetadata": common}
    return server.world.call(said["verb"], said["path"], said["query"], said["body"], authorization)


def _order(server: Server, name: str, given: dict[str, Any]) -> tuple[int, Json]:
    """A test's: anything wrong with it is the test's mistake."""
    if name not in world.ORDERS:
        return 404, {"error": f"no order {name!r}; there are {', '.join(world.ORDERS)}"}
    try:
        with server.changed:
            answer = world.ORDERS[name](server.world, **given)
            server.changed.notify_all()
    except (LookupError, TypeError) as error:
        return 400, {"error": str(error.args[0])}
    return 200, answer or {}


def main(folder: Path) -> None:
    layout = Layout(folder.name, folder)
    settings = Settings.from_json(layout.settings.read_text())
    with layout.requests.open("a") as requests:
        if settings.hosts == "none":
            server = Server(("127.0.0.1", 0), settings, requests, lambda server: NoHosts())
        else:
            found = network.network_of(layout)
            assert found, "the network is made before"
            addresses = Addresses(found)
            server = Server(
                (addresses.own[0], PORT),
                settings,
                requests,
                lambda server: Namespaces(
                    layout, addresses, settings.shared, server.changed, server.token, settings.token_seconds
                ),
            )
        threading.Thread(target=server.keep_time, daemon=True).start()
        url = f"http://{server.server_address[0]!s}:{server.server_port}"
        print(f"{url} is {FAKE}", file=sys.stderr, flush=True)
        written = layout.url.with_suffix(".new")
        written.write_text(url)
        written.replace(layout.url)
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
