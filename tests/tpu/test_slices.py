"""An attempt's machines on the fake Cloud TPU: asked for once, in each zone in turn, seen as they are, deleted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.tpu import slices
from launcher.backends.tpu.api import Api
from launcher.backends.tpu.claims import Claim, owner_of, resource_name
from launcher.backends.tpu.errors import TpuError, Trouble
from launcher.backends.tpu.machines import hosts_of, runtime_of
from launcher.backends.tpu.slices import Slice, check_zones
from launcher.backends.tpu.states import Stand, View, view
from launcher.errors import UsageError
from launcher.policy import Cause
from launcher.spec_tpu import Tpu
from launcher.storage import PosixStorage
from tpu.cloud import Cloud
from tpu.slices import ZONE, eventually

KEY = "launcher:ssh-ed25519 AAAA launcher"
FAR = "europe-west4-a"
STOCK_OUT = 'There is no more capacity in the zone "europe-west4-a"; you can try in another zone'


class Driven:
    """A slice as its driver sees it."""

    def __init__(self, one: Slice) -> None:
        self.slice = one
        self.claim: Claim = one.begin()

    def look(self) -> View:
        self.claim, seen = self.slice.look(self.claim, KEY)
        return seen

    def until(self, stand: Stand) -> View:
        seen = [self.look()]

        def there() -> bool:
            seen.append(self.look())
            return seen[-1].stand == stand

        eventually(there, f"it to be {stand}")
        return seen[-1]

    def delete(self) -> None:
        eventually(lambda: self.slice.gone(self.claim), "it to be gone")


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path / "runs/my-run")


@pytest.fixture
def client(api: Cloud) -> Api:
    return Api("fake-project", api.url, token=lambda renew=False: api.new_token())


@pytest.fixture
def make(client: Api, storage: PosixStorage) -> Callable[..., Driven]:
    def one(attempt: int = 1, **tpu: Any) -> Driven:
        wanted = Tpu(**{"accelerator_type": "v4-8", "zone": [ZONE], **tpu})
        return Driven(Slice(client, storage, "my-run", attempt, wanted))

    return one


def methods(cloud: Cloud) -> list[str]:
    return [one["method"] for one in cloud.requests()]


def created(cloud: Cloud) -> list[tuple[str, str]]:
    """Zone and name of all that was ever asked for."""
    return [
        (one["path"].split("/")[5], one["query"]["queuedResourceId"])
        for one in cloud.requests()
        if one["method"] == "queuedResources.create" and one["status"] == 200
    ]


def nothing_left(cloud: Cloud) -> bool:
    status = cloud.status()
    return not status["nodes"] and not status["queuedResources"]


def test_it_is_asked_for_and_comes_up_and_goes(make: Callable[..., Driven], api: Cloud, storage: PosixStorage) -> None:
    one = make()
    assert not api.requests(), "the intent is written before anything is asked"
    assert json.loads(storage.read("attempts/001/slice.json"))["name"] == one.claim.name

    assert one.look().stand == Stand.WAITING
    ready = one.until(Stand.READY)
    assert ready.node is not None
    assert ready.node["name"].endswith(one.claim.name)
    assert one.claim.ready
    one.delete()
    assert nothing_left(api)


def test_what_is_asked_for_is_what_the_spec_says(
    make: Callable[..., Driven], api: Cloud, storage: PosixStorage
) -> None:
    one = make(
        network="net",
        subnetwork="sub",
        internal_ips=True,
        service_account="me@here",
        labels={"team": "vision"},
        tags=["ssh"],
        metadata={"ssh-keys": "other:key", "mine": "1"},
        valid_until_duration="1h",
    )
    one.look()

    (body,) = [request["body"] for request in api.requests() if request["verb"] == "POST"]
    node = body["tpu"]["nodeSpec"][0].pop("node")
    parent = f"projects/fake-project/locations/{ZONE}"
    assert body == {
        "tpu": {"nodeSpec": [{"parent": parent, "nodeId": one.claim.name}]},
        "spot": {},
        "queueingPolicy": {"validUntilDuration": "3600s"},
    }
    assert float(node["labels"].pop("launcher-lease")) > 1e9
    assert node == {
        "acceleratorType": "v4-8",
        "runtimeVersion": "tpu-ubuntu2204-base",
        "networkConfig": {"enableExternalIps": False, "network": "net", "subnetwork": "sub"},
        "labels": {"team": "vision", "launcher-run": "my-run", "launcher-attempt": "1"},
        "metadata": {"ssh-keys": f"other:key\n{KEY}", "mine": "1", "launcher-run": storage.root},
        "tags": ["ssh"],
        "serviceAccount": {"email": "me@here", "scope": ["https://www.googleapis.com/auth/cloud-platform"]},
    }


def test_on_demand_and_reserved_are_asked_for_by_name(make: Callable[..., Driven], api: Cloud) -> None:
    make(1, spot=False).look()
    make(2, spot=False, reserved=True).look()

    first, second = [one["body"] for one in api.requests() if one["verb"] == "POST"]
    assert set(first) == {"tpu"}
    assert second["reservationName"] == f"projects/fake-project/locations/{ZONE}/reservations/-"


@pytest.mark.parametrize("how", ["lose-answer", "lose-call"])
def test_a_driver_that_dies_while_it_asks_is_followed_by_one_that_has_the_same(
    make: Callable[..., Driven], api: Cloud, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    monkeypatch.setattr("launcher.backends.tpu.api.PATIENCE_S", 0.0)
    api.order("inject", on="queuedResources.create", how=how)
    with pytest.raises(TpuError):
        first.look()

    second = make()
    second.until(Stand.READY)

    assert second.claim.name == first.claim.name
    assert len(api.status()["nodes"]) == 1
    assert len(api.status()["queuedResources"]) == 1


def test_another_attempt_has_another_name(make: Callable[..., Driven]) -> None:
    assert make(1).claim.name != make(2).claim.name == make(2).claim.name


def test_a_name_that_somebody_else_has_is_left_to_him(make: Callable[..., Driven], api: Cloud) -> None:
    one = make()
    node = {"acceleratorType": "v4-8", "runtimeVersion": "tpu-ubuntu2204-base"}
    spec = {"parent": f"projects/fake-project/locations/{ZONE}", "nodeId": "his", "node": node}
    name = one.claim.name
    api.call("POST", f"{ZONE}/queuedResources", {"tpu": {"nodeSpec": [spec]}}, queuedResourceId=name)

    one.until(Stand.READY)

    assert one.claim.name != name
    assert {resource["name"].rpartition("/")[2] for resource in api.status()["queuedResources"]} == {
        name,
        one.claim.name,
    }


def test_a_zone_that_is_sold_out_is_followed_by_the_next(make: Callable[..., Driven], api: Cloud) -> None:
    api.order("sell_out", what=FAR)
    one = make(accelerator_type="v3-8", zone=[FAR, "us-central1-f"], valid_until_duration="1s")

    one.until(Stand.READY)

    assert [zone for zone, _ in created(api)] == [FAR, "us-central1-f"]
    assert one.claim.refused == {FAR: "expired"}
    assert len(api.status()["queuedResources"]) == 1


def test_after_the_last_zone_comes_the_first_with_a_pause(
    make: Callable[..., Driven], api: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "AGAIN_S", 1.0)
    for _ in range(2):
        api.order("inject", on="queuedResources.create", how="fail", code="RESOURCE_EXHAUSTED", message=STOCK_OUT)
    one = make(accelerator_type="v3-8", zone=[FAR, "us-central1-f"])

    one.until(Stand.READY)

    assert [zone for zone, _ in created(api)] == [FAR, "us-central1-f", FAR]
    assert len(set(created(api))) == 3
    one.delete()
    assert nothing_left(api)


def test_a_quota_that_is_used_up_in_all_zones_is_the_end(make: Callable[..., Driven], api: Cloud) -> None:
    api.order("quota", chips=1)
    one = make(accelerator_type="v3-8", zone=[FAR, "us-central1-f"])

    failed = one.until(Stand.FAILED)

    assert "Quota limit" in failed.reason
    assert set(one.claim.refused.values()) == {Trouble.QUOTA}
    assert {request["path"].split("/")[5] for request in api.requests()} == {FAR, "us-central1-f"}
    assert nothing_left(api)


def test_what_the_account_may_not_is_the_end(make: Callable[..., Driven], api: Cloud) -> None:
    api.order("deny", permission="tpu.queuedResources.create")

    failed = make().look()

    assert failed.stand == Stand.FAILED
    assert "roles/tpu.admin" in failed.reason


def test_preemption_is_seen_at_its_notice_and_at_its_end(make: Callable[..., Driven], api: Cloud) -> None:
    one = make()
    one.until(Stand.READY)

    api.order("preempt", node=one.claim.name, grace=5)
    notice = one.look()
    assert (notice.stand, notice.over) == (Stand.PREEMPTED, False)
    eventually(lambda: one.look().over, "the end of the power")
    one.delete()
    assert nothing_left(api)


def test_a_node_that_just_vanishes_was_preempted(make: Callable[..., Driven], api: Cloud) -> None:
    one = make()
    one.until(Stand.READY)

    api.order("preempt", node=one.claim.name, grace=0, vanish=True)

    assert one.until(Stand.PREEMPTED).over


def test_machines_that_are_preempted_before_they_come_up_are_asked_for_again(
    make: Callable[..., Driven], api: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "AGAIN_S", 0.5)
    one = make()
    one.look()
    eventually(lambda: api.status()["nodes"], "the node to be made")
    api.order("preempt", node=one.claim.name, grace=0)

    one.until(Stand.READY)

    assert one.claim.count == 2
    assert len(api.status()["queuedResources"]) == 1


@pytest.mark.parametrize("api", [{"delete_seconds": 10.0}], indirect=True, ids=["slow to delete"])
def test_a_request_that_somebody_deletes_is_not_made_again(make: Callable[..., Driven], api: Cloud) -> None:
    one = make()
    one.until(Stand.READY)

    api.call("DELETE", f"{ZONE}/queuedResources/{one.claim.name}", force="true")

    assert "somebody" in one.until(Stand.TAKEN).reason


def test_a_node_that_somebody_deletes_is_not_brought_back(make: Callable[..., Driven], api: Cloud) -> None:
    one = make()
    one.until(Stand.READY)

    api.call("DELETE", f"{ZONE}/nodes/{one.claim.name}")

    assert "somebody has deleted its node" in one.until(Stand.TAKEN).reason


def test_an_api_that_does_not_answer_says_nothing(
    make: Callable[..., Driven], api: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    one.until(Stand.READY)
    monkeypatch.setattr("launcher.backends.tpu.api.PATIENCE_S", 0.0)
    api.order("inject", on="*", times=3)
    before = len(api.requests())

    for _ in range(3):
        with pytest.raises(TpuError):
            one.look()

    assert one.look().stand == Stand.READY
    assert {request["verb"] for request in api.requests()[before:]} == {"GET"}


def test_the_lease_is_renewed_in_time(make: Callable[..., Driven], api: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    node = one.until(Stand.READY).node
    assert node is not None
    one.slice.renew(one.claim, node)
    assert "nodes.patch" not in methods(api)

    monkeypatch.setattr(slices, "LEASE_S", 36000.0)
    one.slice.renew(one.claim, node)
    one.slice.renew(one.claim, node)

    assert methods(api).count("nodes.patch") == 1
    before, after = owner_of(node), owner_of(api.status()["nodes"][0])
    assert after[:2] == before[:2]
    assert after[2] > before[2] + 30000
    assert api.status()["nodes"][0]["labels"]["launcher-run"] == "my-run"


def test_how_it_ended_is_said_once(make: Callable[..., Driven]) -> None:
    one = make()
    claim = one.slice.end(one.claim, Cause.PREEMPTED, "first")

    assert one.slice.end(claim, Cause.INFRA, "second").verdict == claim.verdict == one.slice.claim().verdict
    assert one.slice.begin() == claim


def test_zones_and_types_are_looked_at_before_a_run_begins(client: Api, api: Cloud) -> None:
    check_zones(client, Tpu(accelerator_type="v4-8", zone=[ZONE]))

    with pytest.raises(UsageError, match="tpu: zone us-west4-a has no accelerator type v4-8"):
        check_zones(client, Tpu(accelerator_type="v4-8", zone=[ZONE, "us-west4-a"]))
    with pytest.raises(UsageError, match=r"tpu: .*Location nowhere-a is not found.*; correct tpu.zone"):
        check_zones(client, Tpu(accelerator_type="v4-8", zone=["nowhere-a"]))
    assert {one["verb"] for one in api.requests()} == {"GET"}


# Pure


def test_every_state_of_a_request_has_a_meaning() -> None:
    def of(state: str, ran: bool = True, **more: str) -> View:
        return view({"state": {"state": state, **more}}, None, ran)

    assert of("SUSPENDED", stateInitiator="SERVICE").over
    assert not of("SUSPENDING", stateInitiator="SERVICE").over
    assert of("SUSPENDING", stateInitiator="USER").stand == Stand.TAKEN
    assert of("ACCEPTED").stand == Stand.LOST
    assert of("ACCEPTED", ran=False).stand == Stand.WAITING
    assert of("ACTIVE", ran=False).stand == Stand.WAITING
    assert of("ACTIVE").stand == Stand.LOST
    assert of("DELETING").stand == Stand.TAKEN
    assert of("SOMETHING_NEW").stand == Stand.UNCLEAR
    assert view(None, None, ran=True).stand == Stand.ABSENT


@pytest.mark.parametrize(
    ("state", "ran", "stand"),
    [
        *(("CREATING", False, Stand.WAITING), ("CREATING", True, Stand.LOST), ("READY", True, Stand.READY)),
        *(("RESTARTING", True, Stand.LOST), ("REIMAGING", True, Stand.LOST), ("STARTING", False, Stand.WAITING)),
        *(("REPAIRING", True, Stand.LOST), ("TERMINATED", True, Stand.LOST), ("UNKNOWN", True, Stand.LOST)),
        *(("PREEMPTED", True, Stand.PREEMPTED), ("STOPPED", True, Stand.TAKEN), ("STOPPING", True, Stand.TAKEN)),
        *(("HIDING", True, Stand.TAKEN), ("HIDDEN", True, Stand.TAKEN), ("UNHIDING", True, Stand.LOST)),
        *(("DELETING", True, Stand.LEAVING), ("SOMETHING_NEW", True, Stand.UNCLEAR)),
    ],
)
def test_every_state_of_a_node_has_a_meaning(state: str, ran: bool, stand: Stand) -> None:
    assert view({"state": {"state": "ACTIVE"}}, {"state": state}, ran).stand == stand


def test_names_are_names_of_resources() -> None:
    names = {
        resource_name(run, run_dir, attempt, count)
        for run in ("a", "A.b_C-" * 15, "7", "_", "x" * 95)
        for run_dir in ("gs://a/b", "gs://a/c")
        for attempt in (1, 999)
        for count in (1, 12)
    }

    assert len(names) == 5 * 2 * 2 * 2
    assert all(re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)


@pytest.mark.parametrize(
    ("accelerator_type", "hosts"),
    [
        *(("v2-8", 1), ("v3-32", 4), ("v4-8", 1), ("v4-16", 2), ("v5p-64", 8)),
        *(("v5litepod-1", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-256", 64)),
    ],
)
def test_types_say_how_many_hosts_there_are(accelerator_type: str, hosts: int) -> None:
    assert hosts_of(accelerator_type) == hosts
    assert runtime_of(accelerator_type)


@pytest.mark.parametrize("accelerator_type", ["v9-8", "v4", "v4-x", "v4-0"])
def test_a_type_that_is_none_is_refused(accelerator_type: str) -> None:
    with pytest.raises(UsageError, match=f"tpu.accelerator_type: {accelerator_type} is none"):
        hosts_of(accelerator_type)
