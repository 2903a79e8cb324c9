"""The API over HTTP, as any client finds it. No root, no hosts."""

import http.client
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from machines import processes

from tpu.cloud import Cloud, CloudError, Refused
from tpu.conftest import ALONE
from tpu.slices import ZONE, eventually

NODE = {"acceleratorType": "v4-8", "runtimeVersion": "tpu-ubuntu2204-base"}
GOOGLE_AUTH = """
import google.auth, google.auth.transport.requests as transport, json, sys
credentials, project = google.auth.default()
answer = transport.AuthorizedSession(credentials).get(f"{sys.argv[1]}/v2/projects/{project}/locations/-/nodes")
print(answer.status_code, json.dumps(answer.json()))
"""


def test_a_node_comes_and_goes(api: Cloud) -> None:
    created = api.finish(api.call("POST", f"{ZONE}/nodes", NODE, nodeId="mine"))

    assert created["state"] == "READY"
    assert [node["name"] for node in api.call("GET", "-/nodes")["nodes"]] == [created["name"]]
    assert api.finish(api.call("DELETE", created["name"])) == {"@type": "type.googleapis.com/google.protobuf.Empty"}
    with pytest.raises(Refused, match=r"404 NOT_FOUND: Resource .* was not found"):
        api.call("GET", created["name"])


def test_a_queued_resource_comes_to_be_by_itself(api: Cloud) -> None:
    spec = {"parent": f"projects/fake-project/locations/{ZONE}", "nodeId": "mine", "node": NODE}
    body = {"spot": {}, "tpu": {"nodeSpec": [spec]}}
    api.finish(api.call("POST", f"{ZONE}/queuedResources", body, queuedResourceId="request"))

    eventually(
        lambda: api.call("GET", f"{ZONE}/queuedResources/request")["state"]["state"] == "ACTIVE", "it to be active"
    )
    assert api.call("GET", f"{ZONE}/nodes/mine")["state"] == "READY"


def test_an_error_says_what_google_would(api: Cloud) -> None:
    with pytest.raises(Refused) as caught:
        api.call("POST", f"{ZONE}/nodes", {**NODE, "sport": True}, nodeId="mine")

    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.details[0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"


def test_what_is_no_call_is_not_found(api: Cloud) -> None:
    with pytest.raises(Refused, match="404 NOT_FOUND"):
        api.call("PUT", f"{ZONE}/nodes/mine", NODE)
    with pytest.raises(Refused, match="400 INVALID_ARGUMENT"):
        api.call("POST", f"{ZONE}/nodes", ["not", "a", "node"], nodeId="mine")  # type: ignore[arg-type]


def test_every_request_is_written_down(api: Cloud) -> None:
    api.call("POST", f"{ZONE}/nodes", NODE, nodeId="mine")
    with pytest.raises(Refused):
        api.call("GET", f"{ZONE}/nodes", surprise=1)

    first, second = api.requests()
    assert (first["method"], first["query"], first["body"], first["status"]) == (
        "nodes.create",
        {"nodeId": "mine"},
        NODE,
        200,
    )
    assert (second["method"], second["status"]) == ("nodes.list", 400)
    assert second["path"] == f"/v2/projects/fake-project/locations/{ZONE}/nodes"
    assert "ya29" not in json.dumps(api.requests())


def test_an_answer_can_be_lost_on_its_way(api: Cloud) -> None:
    api.order("inject", on="nodes.create", how="lose-answer")

    with pytest.raises(http.client.RemoteDisconnected):
        api.call("POST", f"{ZONE}/nodes", NODE, nodeId="mine")
    assert api.call("GET", f"{ZONE}/nodes/mine")["state"] in ("CREATING", "READY")


def test_a_token_is_needed_and_expires(api: Cloud) -> None:
    with pytest.raises(Refused, match="401 UNAUTHENTICATED: Request is missing"):
        api.send("GET", "/v2/projects/fake-project/locations/-/nodes")
    api.call("GET", "-/nodes")
    api.order("expire_tokens")
    with pytest.raises(Refused, match="401 UNAUTHENTICATED: Request had invalid"):
        api.call("GET", "-/nodes")
    api.new_token()
    api.call("GET", "-/nodes")


def test_google_auth_finds_its_way_by_the_environment(api: Cloud) -> None:
    if "CI" not in os.environ:
        pytest.importorskip("google.auth", reason="NOT TESTED: google-auth, which is not installed; in CI this fails")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GOOGLE")}
    done = subprocess.run(
        [sys.executable, "-c", GOOGLE_AUTH, api.url],
        env={**environment, **api.env},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )

    assert done.stdout == "200 {}\n", done.stderr


def test_orders_that_cannot_be_are_explained(api: Cloud) -> None:
    with pytest.raises(CloudError, match="no node 'none'; there are none"):
        api.order("preempt", node="none")
    with pytest.raises(CloudError, match="no order 'dance'; there are preempt"):
        api.order("dance")
    with pytest.raises(CloudError, match="unexpected keyword argument 'speed'"):
        api.order("preempt", node="none", speed=1)


def test_up_twice_is_up_once_and_down_forgets(api: Cloud) -> None:
    api.call("POST", f"{ZONE}/nodes", NODE, nodeId="mine")
    before = api.url
    api.up(ALONE)
    assert api.url == before

    with pytest.raises(CloudError, match=r"grace_seconds: 30.0 -> 1.*take it down first"):
        api.up(replace(ALONE, grace_seconds=1))
    api.down()
    with pytest.raises(CloudError, match="is down; `scripts/tpu-cloud up` brings it up"):
        api.call("GET", "-/nodes")
    assert len(api.requests()) == 1
    api.up()
    assert api.call("GET", "-/nodes") == {}


def test_a_server_that_is_killed_comes_up_again(api: Cloud) -> None:
    processes.kill(processes.marked(api.layout.mark()))
    api.up()

    assert api.call("GET", "-/nodes") == {}
