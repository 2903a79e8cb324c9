"""What a user of a cloud does, for tests: calls of the API, and waiting for what they began. Standard library only."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from machines.errors import MachineError

Json = dict[str, Any]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error.get('code')} {error.get('status')}: {error.get('message')}")
        self.code: int = error.get("code", 0)
        self.status: str = error.get("status", "")
        self.message: str = error.get("message", "")
        self.details: list[Json] = error.get("details", [])


class Client:
    def __init__(self, url: Callable[[], str], project: Callable[[], str]) -> None:
        self._url = url
        self._project = project
        self._token = ""

    def call(self, verb: str, path: str, body: Json | None = None, **query: Any) -> Json:
        """Below /v2/projects/P/locations/, as "us-central2-b/nodes"; or a whole name. Raises Refused, and OSError."""
        whole = path if path.startswith("projects/") else f"projects/{self._project()}/locations/{path}"
        parameters = f"?{urllib.parse.urlencode(query)}" if query else ""
        self._token = self._token or self.new_token()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        return self.send(verb, f"/v2/{whole}{parameters}", body, headers)

    def new_token(self) -> str:
        self._token = str(self.send("POST", "/token")["access_token"])
        return self._token

    def send(self, verb: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        """Any request. Raises Refused, and OSError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url() + path, data, headers or {}, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                read: Json = json.load(answer)
                return read
        except urllib.error.HTTPError as error:
            with error:
                said = json.load(error)["error"]
            raise Refused(said if isinstance(said, dict) else {"message": said}) from None

    def finish(self, operation: Json, seconds: float = 60) -> Json:
        """Wait for an operation's end and return its response. Raises Refused with its error, and MachineError."""
        deadline = time.monotonic() + seconds
        while not operation["done"]:
            if time.monotonic() > deadline:
                raise MachineError(f"waited {seconds:.0f} s for {operation['name']}")
            time.sleep(0.05)
            operation = self.call("GET", operation["name"])
        if "error" in operation:
            raise Refused(operation["error"])
        response: Json = operation["response"]
        return response
