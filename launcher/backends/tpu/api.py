"""Cloud TPU's REST API, version 2: the few calls that a launcher needs. A thin edge.

Source: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources, .../nodes. It answers in
milliseconds, where the gcloud CLI takes seconds, and its errors are codes and not texts.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.backends.tpu.credentials import Tokens
from launcher.backends.tpu.errors import Json, TpuError, Trouble, error_of, explained

ENDPOINT = "https://tpu.googleapis.com"
PATIENCE_S = 12.0
"""What fails for a passing reason is tried again for so long."""
_TIMEOUT_S = 15.0
_PAUSES_S = (0.3, 0.6, 1.2, 2.4, 4.8)


class Api:
    """The API as one project sees it. Whatever fails is a TpuError, in words that its user can act on."""

    def __init__(
        self,
        project: str,
        endpoint: str | None = None,
        *,
        token: Callable[..., str] | None = None,
        patience_s: float | None = None,
    ) -> None:
        """
        Args:
            project: its id.
            endpoint: where the API is, if it is not Google's: else what the gcloud CLI would take.
            token: as Tokens gives them.
            patience_s: in the place of PATIENCE_S; 0 for those who look again anyway.
        """
        self.project = project
        given = endpoint or os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU") or ENDPOINT
        self._url = given.rstrip("/")
        self._token = token or Tokens()
        self._patience_s = patience_s

    # Queued resources: a request for machines, which waits for them and then owns them

    def create_request(self, zone: str, name: str, body: Json) -> None:
        """It may be there already: whoever asks twice with one name has one."""
        # Within a call that is tried again, the same request id has the same effect once.
        query = {"queuedResourceId": name, "requestId": str(uuid.uuid4())}
        self._call("POST", f"{self._parent(zone)}/queuedResources", f"cannot ask for {name} in {zone}", body, query)

    def request(self, zone: str, name: str) -> Json | None:
        """None if there is none."""
        return self._unless_gone("GET", f"{self._parent(zone)}/queuedResources/{name}", f"cannot look at {name}")

    def requests(self, zone: str = "-") -> list[Json]:
        """All in a zone; by default, in all zones."""
        return list(self._pages(f"{self._parent(zone)}/queuedResources", "queuedResources"))

    def delete_request(self, zone: str, name: str) -> None:
        """With its nodes. Returns when that has begun; it may be gone already, or be on its way."""
        path, query = f"{self._parent(zone)}/queuedResources/{name}", {"force": "true", "requestId": str(uuid.uuid4())}
        self._delete(path, f"cannot delete {name}", query)

    # Nodes: the machines

    def node(self, zone: str, name: str) -> Json | None:
        return self._unless_gone("GET", f"{self._parent(zone)}/nodes/{name}", f"cannot look at node {name}")

    def nodes(self, zone: str = "-") -> list[Json]:
        return list(self._pages(f"{self._parent(zone)}/nodes", "nodes"))

    def change_node(self, zone: str, name: str, **fields: Any) -> None:
        """Give fields other values. Returns when that has begun."""
        path = f"{self._parent(zone)}/nodes/{name}"
        self._call("PATCH", path, f"cannot change node {name}", fields, {"updateMask": ",".join(sorted(fields))})

    def delete_node(self, zone: str, name: str) -> None:
        self._delete(f"{self._parent(zone)}/nodes/{name}", f"cannot delete node {name}")

    def host_keys(self, zone: str, name: str) -> list[list[tuple[str, str]]]:
        """Type and key of each host's ssh server, as its guest agent has published them; none of one that has not."""
        path = f"{self._parent(zone)}/nodes/{name}:getGuestAttributes"
        answer = self._call("POST", path, f"cannot read the host keys of node {name}", {"queryPath": "hostkeys/"})
        found = (one.get("queryValue", {}).get("items", []) for one in answer.get("guestAttributes", []))
        return [[(one["key"], one["value"]) for one in items if one["namespace"] == "hostkeys"] for items in found]

    # What there is

    def check_zone(self, zone: str, accelerator_type: str, runtime_version: str) -> None:
        """Raises TpuError: nothing of this kind can be had there, or not by this account."""
        parent = self._parent(zone)
        asked = (
            (f"accelerator type {accelerator_type}", f"{parent}/acceleratorTypes/{accelerator_type}"),
            (f"runtime version {runtime_version}", f"{parent}/runtimeVersions/{runtime_version}"),
        )
        for what, path in asked:
            if self._unless_gone("GET", path, f"cannot look at zone {zone} of project {self.project}") is None:
                raise explained(Trouble.INVALID, f"zone {zone} has no {what}")

    # Calls

    def _parent(self, zone: str) -> str:
        return f"projects/{self.project}/locations/{zone}"

    def _pages(self, path: str, key: str) -> Iterator[Json]:
        token = ""
        while True:
            query = {"pageToken": token} if token else {}
            page = self._call("GET", path, f"cannot list {key} of project {self.project}", query=query)
            yield from page.get(key, [])
            if not (token := page.get("nextPageToken", "")):
                return

    def _unless_gone(self, verb: str, path: str, doing: str) -> Json | None:
        try:
            return self._call(verb, path, doing)
        except TpuError as error:
            if error.trouble == Trouble.GONE:
                return None
            raise

    def _delete(self, path: str, doing: str, query: Mapping[str, str] | None = None) -> None:
        try:
            self._call("DELETE", path, doing, query=query)
        except TpuError as error:
            if error.trouble not in (Trouble.GONE, Trouble.BUSY):
                raise

    def _call(
        self, verb: str, path: str, doing: str, body: Json | None = None, query: Mapping[str, str] | None = None
    ) -> Json:
        """What is lost on the way, or refused for a passing reason, is asked again: all calls can be made twice."""
        parameters = f"?{urllib.parse.urlencode(query)}" if query else ""
        url, renew = f"{self._url}/v2/{path}{parameters}", False
        patience_s = PATIENCE_S if self._patience_s is None else self._patience_s
        deadline, pauses = time.monotonic() + patience_s, iter(_PAUSES_S)
        while True:
            try:
                return self._send(verb, url, self._token(renew=renew), body, doing)
            except TpuError as error:
                if error.trouble == Trouble.UNAUTHENTICATED and not renew:
                    renew = True  # it has expired before its time, or was revoked
                    continue
                pause = next(pauses, _PAUSES_S[-1])
                again = error.trouble in (Trouble.RATE, Trouble.UNAVAILABLE)
                if not again or time.monotonic() + pause > deadline:
                    raise
            renew = False
            time.sleep(pause)

    def _send(self, verb: str, url: str, token: str, body: Json | None, doing: str) -> Json:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                read: Json = json.load(answer)
                return read
        except urllib.error.HTTPError as error:
            with error:
                raise error_of(_status_in(error), doing) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = f"{doing}: {self._url} does not answer ({error or type(error).__name__})"
            raise TpuError(Trouble.UNAVAILABLE, said) from None


def _status_in(answer: urllib.error.HTTPError) -> Json:
    """What a proxy or a load balancer says is no google.rpc.Status: then the number of the answer is all there is."""
    try:
        status = json.load(answer)["error"]
        if isinstance(status, dict):
            return status
    except (OSError, ValueError, KeyError, TypeError):
        pass
    names = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    name = names.get(answer.code, "UNAVAILABLE" if answer.code >= 500 else "OTHER")
    limit = " (requests per minute)" if answer.code == 429 else ""
    return {"status": name, "message": f"HTTP {answer.code} {answer.reason}{limit}"}
