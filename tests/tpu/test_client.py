"""The launcher's client of the Cloud TPU API, against the fake: what it asks, and what becomes of each error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.tpu import api as client
from launcher.backends.tpu.api import Api
from launcher.backends.tpu.credentials import Tokens
from launcher.backends.tpu.errors import TpuError, Trouble, error_of
from tpu.cloud import Cloud
from tpu.slices import ZONE, eventually

NODE = {"acceleratorType": "v4-8", "runtimeVersion": "tpu-ubuntu2204-base", "labels": {"mine": "1"}}
PARENT = f"projects/fake-project/locations/{ZONE}"
BODY = {"tpu": {"nodeSpec": [{"parent": PARENT, "nodeId": "one", "node": NODE}]}, "spot": {}}
CREATE = f"{PARENT}/queuedResources"


@pytest.fixture
def tpu(api: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(client, "PATIENCE_S", 2.0)

    def token(renew: bool = False) -> str:
        return api.new_token() if renew or not api._token else api._token

    return Api("fake-project", api.url, token=token)


def asked(cloud: Cloud) -> list[tuple[str, Any]]:
    """Method and status of each call."""
    return [(one["method"], one["status"]) for one in cloud.requests()]


def refused(call: Any, *arguments: Any) -> TpuError:
    with pytest.raises(TpuError) as error:
        call(*arguments)
    return error.value


def state(tpu: Api, name: str = "one") -> str | None:
    found = tpu.request(ZONE, name)
    return found["state"]["state"] if found else None


def test_a_request_comes_to_nodes_and_goes_with_them(tpu: Api, api: Cloud) -> None:
    assert tpu.request(ZONE, "one") is None

    tpu.create_request(ZONE, "one", BODY)
    eventually(lambda: state(tpu) == "ACTIVE", "it to be active")
    node = tpu.node(ZONE, "one")
    assert node is not None
    assert node["state"] == "READY"
    assert [one["name"] for one in tpu.requests()] == [f"{PARENT}/queuedResources/one"]
    assert [one["name"] for one in tpu.nodes()] == [f"{PARENT}/nodes/one"]

    tpu.change_node(ZONE, "one", labels={"mine": "2"})
    assert tpu.nodes(ZONE)[0]["labels"] == {"mine": "2"}

    tpu.delete_request(ZONE, "one")
    tpu.delete_request(ZONE, "one")
    eventually(lambda: state(tpu) is None, "it to be gone")
    assert tpu.node(ZONE, "one") is None
    tpu.delete_request(ZONE, "one")
    tpu.delete_node(ZONE, "one")


def test_what_is_sent_is_what_the_api_knows_and_no_more(tpu: Api, api: Cloud) -> None:
    tpu.create_request(ZONE, "one", BODY)
    tpu.delete_request(ZONE, "one")

    create, delete = api.requests()
    assert (create["verb"], create["path"], create["body"]) == ("POST", f"/v2/{CREATE}", BODY)
    assert set(create["query"]) == {"queuedResourceId", "requestId"}
    assert (delete["verb"], delete["path"], delete["body"]) == ("DELETE", f"/v2/{CREATE}/one", None)
    assert delete["query"]["force"] == "true"
    assert asked(api) == [("queuedResources.create", 200), ("queuedResources.delete", 200)]


def test_lists_are_read_to_their_end(tpu: Api, api: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [{"nodes": [{"name": "a"}], "nextPageToken": "t"}, {"nodes": [{"name": "b"}]}]
    urls = []

    def send(verb: str, url: str, *rest: Any) -> Any:
        urls.append(url)
        return pages[len(urls) - 1]

    monkeypatch.setattr(tpu, "_send", send)
    assert [one["name"] for one in tpu.nodes()] == ["a", "b"]
    assert urls[1].endswith("/locations/-/nodes?pageToken=t")


# Faults


@pytest.mark.parametrize("how", ["lose-answer", "lose-call"])
def test_a_call_whose_answer_is_lost_is_made_again_and_has_its_effect_once(tpu: Api, api: Cloud, how: str) -> None:
    api.order("inject", on="queuedResources.create", how=how)

    tpu.create_request(ZONE, "one", BODY)

    ids = {one["query"]["requestId"] for one in api.requests()}
    assert len(ids) == 1
    assert asked(api) == [("queuedResources.create", None), ("queuedResources.create", 200)]
    assert len(api.status()["queuedResources"]) == 1


def test_a_service_that_is_down_is_asked_again(tpu: Api, api: Cloud) -> None:
    api.order("inject", on="queuedResources.get", times=2)

    assert tpu.request(ZONE, "one") is None
    assert [status for _, status in asked(api)] == [503, 503, 404]


def test_one_that_stays_down_is_said_to_be(tpu: Api, api: Cloud) -> None:
    api.order("inject", on="queuedResources.get", times=99)

    error = refused(tpu.request, ZONE, "one")
    assert error.trouble == Trouble.UNAVAILABLE
    assert "cannot look at one: The service is currently unavailable." in str(error)


def test_nobody_at_the_address_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.1)
    error = refused(Api("p", "http://127.0.0.1:9", token=lambda renew=False: "t").requests)

    assert error.trouble == Trouble.UNAVAILABLE
    assert "http://127.0.0.1:9 does not answer" in str(error)


def test_a_token_that_has_expired_is_renewed(tpu: Api, api: Cloud) -> None:
    tpu.requests()
    api.order("expire_tokens")

    assert tpu.requests() == []
    assert [status for _, status in asked(api)] == [200, 401, 200]


def test_credentials_that_are_refused_twice_are_no_good(tpu: Api, api: Cloud) -> None:
    api.order("inject", on="*", code="UNAUTHENTICATED", message="Request had invalid credentials.", times=2)

    error = refused(tpu.requests)
    assert error.trouble == Trouble.UNAUTHENTICATED
    assert "gcloud auth application-default login" in str(error)
    assert len(api.requests()) == 2


def test_a_quota_of_calls_is_waited_for_and_one_of_machines_is_not(tpu: Api, api: Cloud) -> None:
    api.order("rate", per_minute=1)
    tpu.requests()
    assert refused(tpu.requests).trouble == Trouble.RATE
    assert len(api.requests()) > 2

    api.order("rate", per_minute=0)
    api.order("quota", chips=2)
    before = len(api.requests())
    error = refused(tpu.create_request, ZONE, "one", BODY)
    assert error.trouble == Trouble.QUOTA
    assert "Limit: 2 in zone us-central2-b" in str(error)
    assert "launcher gc" in str(error)
    assert len(api.requests()) == before + 1


def test_a_permission_that_is_lacking_is_named_with_the_role(tpu: Api, api: Cloud) -> None:
    api.order("deny", permission="tpu.queuedResources.create")

    error = refused(tpu.create_request, ZONE, "one", BODY)
    assert error.trouble == Trouble.DENIED
    assert "'tpu.queuedResources.create' denied" in str(error)
    assert "roles/tpu.admin" in str(error)
    assert len(api.requests()) == 1


def test_a_project_that_is_not_there_is_told_as_google_tells_it(api: Cloud) -> None:
    error = refused(Api("another", api.url, token=lambda renew=False: api.new_token()).requests)

    assert error.trouble == Trouble.DENIED
    assert "project another" in str(error)
    assert "tpu.project" in str(error)


def test_a_zone_that_is_not_there(tpu: Api) -> None:
    error = refused(tpu.check_zone, "mars-north1-a", "v4-8", "tpu-ubuntu2204-base")

    assert error.trouble == Trouble.ZONE
    assert "correct tpu.zone" in str(error)


def test_what_a_zone_does_not_have(tpu: Api) -> None:
    tpu.check_zone(ZONE, "v4-8", "tpu-ubuntu2204-base")

    for wanted, named in ((("v9-8", "tpu-vm-base"), "type v9-8"), (("v4-8", "tpu-vm-x"), "version tpu-vm-x")):
        error = refused(tpu.check_zone, ZONE, *wanted)
        assert error.trouble == Trouble.INVALID
        assert f"zone us-central2-b has no {'accelerator' if 'type' in named else 'runtime'} {named}" in str(error)


def test_a_name_that_is_taken(tpu: Api) -> None:
    tpu.create_request(ZONE, "one", BODY)

    assert refused(tpu.create_request, ZONE, "one", BODY).trouble == Trouble.EXISTS


def failure(tpu: Api) -> TpuError:
    eventually(lambda: state(tpu) == "FAILED", "it to fail")
    found = tpu.request(ZONE, "one")
    assert found is not None
    return error_of(found["state"]["failedData"]["error"], "one")


def test_why_a_request_has_failed_is_in_it(tpu: Api, api: Cloud) -> None:
    api.order("inject", on="queuedResources.create", how="fail", code="RESOURCE_EXHAUSTED", message=STOCK_OUT)
    tpu.create_request(ZONE, "one", BODY)

    assert failure(tpu).trouble == Trouble.STOCK_OUT


def test_a_reservation_that_is_used_up(tpu: Api) -> None:
    body = {**BODY, "reservationName": f"{PARENT}/reservations/-"}
    tpu.create_request(ZONE, "one", {key: value for key, value in body.items() if key != "spot"})

    error = failure(tpu)
    assert error.trouble == Trouble.RESERVATION
    assert "tpu.reserved" in str(error)


def test_a_request_that_was_good_for_a_time(tpu: Api, api: Cloud) -> None:
    api.order("sell_out", what=ZONE)
    tpu.create_request(ZONE, "one", {**BODY, "queueingPolicy": {"validUntilDuration": "1s"}})

    assert failure(tpu).trouble == Trouble.EXPIRED


STOCK_OUT = 'There is no more capacity in the zone "us-central2-b"; you can try in another zone [EID: 0x1f]'


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        ({"code": 8, "message": STOCK_OUT}, Trouble.STOCK_OUT),
        ({"code": 9, "message": "Insufficient reserved capacity."}, Trouble.RESERVATION),
        ({"code": 9, "message": "Something else."}, Trouble.OTHER),
        ({"code": 3, "message": "update is not supported while in state PREEMPTED [EID: 0x7]"}, Trouble.PREEMPTED),
        ({"code": 3, "message": "Runtime version x is not available"}, Trouble.INVALID),
        ({"code": 403, "status": "PERMISSION_DENIED", "message": "Location x is not found or ..."}, Trouble.ZONE),
        (
            {"code": 403, "status": "PERMISSION_DENIED", "message": "API has not been used or it is disabled."},
            Trouble.DISABLED,
        ),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded: CPUs"}, Trouble.QUOTA),
        ({"code": 409, "status": "ABORTED", "message": "being deleted"}, Trouble.BUSY),
        ({"code": 13, "message": "An internal error has occurred"}, Trouble.UNAVAILABLE),
        ({}, Trouble.UNAVAILABLE),
    ],
)
def test_errors_have_names(status: dict[str, Any], trouble: Trouble) -> None:
    assert error_of(status, "doing").trouble == trouble


# Credentials

ASK = "from launcher.backends.tpu.api import Api; print(Api('fake-project').requests())"


def in_a_process(cloud: Cloud, tmp_path: Path, code: str = ASK, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "CLOUDSDK", "GCE"))}
    home = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)}
    command = [sys.executable, "-c", code]
    env = {**kept, **home, "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": cloud.url, **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)


def test_application_default_credentials_are_found(api: Cloud, tmp_path: Path) -> None:
    done = in_a_process(api, tmp_path, **api.env)

    assert done.stdout == "[]\n", done.stderr


def gcloud(folder: Path, script: str) -> str:
    """A PATH on which a program of that name comes first."""
    folder.mkdir()
    (folder / "gcloud").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gcloud").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_without_them_gcloud_is_asked(api: Cloud, tmp_path: Path) -> None:
    path = gcloud(tmp_path / "bin", f"[ \"$*\" = 'auth print-access-token' ] && echo {api.new_token()}")

    done = in_a_process(api, tmp_path, PATH=path, NO_GCE_CHECK="true")

    assert done.stdout == "[]\n", done.stderr


def test_a_login_that_was_revoked_is_told_with_how_to_get_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import google.auth

    class Revoked:
        valid = False

        def refresh(self, request: object) -> None:
            raise google.auth.exceptions.RefreshError("invalid_grant: Token has been expired or revoked.")

    monkeypatch.setattr(google.auth, "default", lambda scopes: (Revoked(), "project"))

    error = refused(Tokens())
    assert error.trouble == Trouble.UNAUTHENTICATED
    assert "the credentials are good no longer (invalid_grant" in str(error)
    assert "log in: gcloud auth application-default login" in str(error)


def test_where_there_are_none_it_says_how_to_get_some(api: Cloud, tmp_path: Path) -> None:
    path = gcloud(tmp_path / "bin", "echo 'no active account selected' >&2; exit 1")
    code = ASK.replace("print", "import launcher.errors as e\ntry: print") + "\nexcept e.LauncherError as x: print(x)"

    done = in_a_process(api, tmp_path, code, PATH=path, NO_GCE_CHECK="true")

    assert "there are no credentials for Google Cloud here, nor has gcloud any (no active account" in done.stdout
    assert "log in: gcloud auth application-default login" in done.stdout
    assert api.requests() == []
