"""The fake Cloud TPU as far as it is a pure function of calls and time: tests/tpu holds the rest."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tpu.cloud import CloudError, Settings, accounts, catalogue, command_line, filters, metadata, schema
from tpu.cloud.hosts import News, NoHosts, Vm
from tpu.cloud.layout import Addresses, Layout
from tpu.cloud.status import CODES, ApiError
from tpu.cloud.world import ORDERS, ConnectionLost, World

ZONE = "projects/fake-project/locations/us-central2-b"
NODE = {"acceleratorType": "v4-16", "runtimeVersion": "tpu-ubuntu2204-base"}
SETTINGS = Settings(hosts="none", create_seconds=2, queue_seconds=10, delete_seconds=3, operation_seconds=1)

Json = dict[str, Any]


class Recorded(NoHosts):
    """Hosts that boot when the test says so."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.booting: list[News] = []
        self.at_once = True

    def boot(self, vm: Vm, metadata: Callable[[], Json], news: News) -> None:
        self.done.append(("boot", vm.number))
        self.booting.append(news)
        if self.at_once:
            super().boot(vm, metadata, news)

    def shut_down(self, number: int) -> None:
        self.done.append(("shut down", number))

    def power_off(self, number: int) -> None:
        self.done.append(("power off", number))

    def erase(self, number: int) -> None:
        self.done.append(("erase", number))


class Fake:
    """A world, its clock, and a caller who has a token."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.now = 1_800_000_000.0
        self.hosts = Recorded()
        self.world = World(settings, self.hosts, lambda: self.now)
        self.token = self.world.gate.token()

    def call(self, verb: str, path: str, body: object = None, **query: str) -> Json:
        whole = path if path.startswith("projects/") else f"{ZONE}/{path}"
        return self.world.call(verb, f"/v2/{whole}", query, body, f"Bearer {self.token}")

    def refused(self, verb: str, path: str, body: object = None, **query: str) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.call(verb, path, body, **query)
        return caught.value

    def wait(self, seconds: float) -> None:
        """Everything that is due until then, each at its time."""
        end = self.now + seconds
        while (due := self.world.timers.next) is not None and due <= end:
            self.now = max(self.now, due)
            self.world.timers.run()
        self.now = end

    def create(self, name: str = "mine", **more: Any) -> Json:
        return self.call("POST", "nodes", {**NODE, **more}, nodeId=name)

    def queue(self, name: str = "request", nodes: Json | None = None, **more: Any) -> Json:
        spec = {"parent": ZONE, "node": NODE, **(nodes or {"nodeId": "mine"})}
        return self.call(
            "POST", "queuedResources", {"spot": {}, "tpu": {"nodeSpec": [spec]}, **more}, queuedResourceId=name
        )

    def node(self, name: str = "mine") -> str:
        """Its state; "gone" where there is none."""
        try:
            return str(self.call("GET", f"nodes/{name}")["state"])
        except ApiError as error:
            if error.code != "NOT_FOUND":
                raise
            return "gone"

    def queued(self, name: str = "request") -> str:
        try:
            return str(self.call("GET", f"queuedResources/{name}")["state"]["state"])
        except ApiError as error:
            if error.code != "NOT_FOUND":
                raise
            return "gone"

    def outcome(self, operation: Json) -> Json:
        """Of an operation that is done."""
        now = self.call("GET", operation["name"])
        assert now["done"]
        found: Json = now.get("error") or now["response"]
        return found


@pytest.fixture
def fake() -> Fake:
    return Fake()


# Nodes


def test_a_node_comes_to_be(fake: Fake) -> None:
    operation = fake.create(labels={"run": "a"}, networkConfig={"enableExternalIps": True})
    assert (operation["done"], operation["metadata"]["target"]) == (False, f"{ZONE}/nodes/mine")
    assert fake.node() == "CREATING"

    fake.wait(2)
    shown = fake.call("GET", "nodes/mine")
    assert fake.outcome(operation).items() >= shown.items()
    assert (shown["state"], shown["health"], shown["labels"]) == ("READY", "HEALTHY", {"run": "a"})
    assert [one["accessConfig"] for one in shown["networkEndpoints"]] == [
        {"externalIp": "198.19.0.1"},
        {"externalIp": "198.19.0.2"},
    ]


def test_it_is_ready_when_the_last_host_is_up(fake: Fake) -> None:
    fake.hosts.at_once = False
    fake.create()
    fake.wait(5)

    first, second = fake.hosts.booting
    first.up({})
    assert fake.node() == "CREATING"
    second.up({})
    assert fake.node() == "READY"


def test_a_host_that_this_machine_cannot_boot_fails_the_creation(fake: Fake) -> None:
    fake.hosts.at_once = False
    operation = fake.create()
    fake.wait(5)

    fake.hosts.booting[1].broken("no bash")
    assert (fake.outcome(operation)["code"], fake.outcome(operation)["message"][-7:]) == (13, "no bash")
    assert fake.node() == "gone"


def test_a_node_is_deleted_with_its_hosts_and_its_name_is_free_again(fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    operation = fake.call("DELETE", "nodes/mine")
    assert fake.node() == "DELETING"
    assert fake.refused("DELETE", "nodes/mine").code == "ABORTED"
    assert fake.refused("POST", "nodes", NODE, nodeId="mine").code == "ALREADY_EXISTS"
    fake.wait(3)
    assert fake.node() == "gone"
    assert fake.outcome(operation)["@type"] == "type.googleapis.com/google.protobuf.Empty"
    assert fake.hosts.done[2:] == [("shut down", 1), ("shut down", 2), ("erase", 1), ("erase", 2)]
    fake.create()


def test_addresses_do_not_come_back_at_once(fake: Fake) -> None:
    for name in ("a", "b"):
        fake.create(name)
        fake.wait(2)
        fake.call("DELETE", f"nodes/{name}")
        fake.wait(3)

    assert [number for done, number in fake.hosts.done if done == "boot"] == [1, 2, 3, 4]


def test_a_creation_that_is_deleted_meanwhile_fails(fake: Fake) -> None:
    operation = fake.create()
    fake.call("DELETE", "nodes/mine")
    fake.wait(9)

    assert fake.outcome(operation)["code"] == 3
    assert "create is not supported while in state DELETING" in fake.outcome(operation)["message"]
    assert fake.hosts.booting == []


def test_a_single_host_stops_and_starts(fake: Fake) -> None:
    fake.create(acceleratorType="v4-8")
    fake.wait(2)
    assert fake.refused("POST", "nodes/mine:start", {}).code == "INVALID_ARGUMENT"

    operation = fake.call("POST", "nodes/mine:stop", {})
    assert fake.node() == "STOPPING"
    fake.wait(30)
    assert fake.outcome(operation)["state"] == "STOPPED"
    operation = fake.call("POST", "nodes/mine:start", {})
    assert fake.outcome(operation)["state"] == "READY"
    assert fake.hosts.done == [("boot", 1), ("shut down", 1), ("power off", 1), ("boot", 1)]


def test_a_slice_of_several_hosts_does_not_stop(fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    assert fake.refused("POST", "nodes/mine:stop", {}).code == "FAILED_PRECONDITION"


def test_metadata_is_changed_by_name(fake: Fake) -> None:
    fake.create(metadata={"a": "1"})
    fake.wait(2)

    body = {"metadata": {"ssh-keys": "me:ssh-ed25519 AAAA"}, "labels": {"not": "named"}}
    operation = fake.call("PATCH", "nodes/mine", body, updateMask="metadata")
    fake.wait(1)
    shown = fake.outcome(operation)
    assert (shown["metadata"], "labels" in shown) == ({"ssh-keys": "me:ssh-ed25519 AAAA"}, False)
    assert "update mask" in fake.refused("PATCH", "nodes/mine", body, updateMask="runtimeVersion").message


def test_guest_attributes_of_all_workers_or_some(fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    def ask(body: Json) -> list[Json]:
        found: list[Json] = fake.call("POST", "nodes/mine:getGuestAttributes", body)["guestAttributes"]
        return found

    everybody = ask({"queryPath": "hostkeys/"})
    assert [one["queryValue"]["items"][0]["key"] for one in everybody] == ["ssh-ed25519"] * 2
    assert ask({"queryPath": "hostkeys/", "workerIds": ["1"]}) == everybody[1:]
    assert ask({"queryPath": "", "workerIds": [""]})[0]["queryValue"] == everybody[0]["queryValue"]  # as gcloud asks
    assert ask({"queryPath": "other/"})[0]["queryValue"] == {}
    assert fake.refused("POST", "nodes/mine:getGuestAttributes", {"workerIds": ["2"]}).message == "Invalid worker id 2"


# What befalls them


def test_a_preempted_node_has_its_grace_and_stays_until_it_is_deleted(fake: Fake) -> None:
    fake.create(schedulingConfig={"spot": True})
    fake.wait(2)
    node = fake.world.nodes.get(f"{ZONE}/nodes/mine")

    fake.world.preempt("mine")
    assert fake.node() == "PREEMPTED"
    assert node.metadata(0, {})["instance"]["preempted"] == "TRUE"
    assert fake.hosts.done[2:] == [("shut down", 1), ("shut down", 2)]
    fake.wait(29)
    assert len(fake.hosts.done) == 4
    fake.wait(1)
    assert fake.hosts.done[4:] == [("power off", 1), ("power off", 2)]
    assert fake.node() == "PREEMPTED"
    assert "update is not supported while in state PREEMPTED" in (
        fake.refused("PATCH", "nodes/mine", {"metadata": {}}, updateMask="metadata").message
    )
    fake.call("DELETE", "nodes/mine")
    fake.wait(3)
    assert fake.node() == "gone"


def test_a_preemption_without_notice_has_no_sigterm(fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    fake.world.preempt("mine", grace=0)
    fake.wait(0)
    assert fake.world.nodes.get(f"{ZONE}/nodes/mine").metadata(0, {})["instance"]["preempted"] == "FALSE"
    assert fake.hosts.done[2:] == [("power off", 1), ("power off", 2)]


def test_the_state_may_come_after_the_power_has_gone() -> None:
    fake = Fake(Settings(hosts="none", create_seconds=0, preempted_at_notice=False))
    fake.create()
    fake.wait(0)

    fake.world.preempt("mine")
    fake.wait(29)
    assert fake.node() == "READY"
    fake.wait(1)
    assert fake.node() == "PREEMPTED"


def test_a_node_that_is_deleted_in_its_grace_does_not_come_back(fake: Fake) -> None:
    fake.create()
    fake.wait(2)
    fake.world.preempt("mine")
    fake.call("DELETE", "nodes/mine")
    fake.wait(40)
    assert fake.node() == "gone"

    fake.create()
    fake.wait(2)
    assert fake.node() == "READY"


def test_preemption_while_it_is_created_fails_the_creation(fake: Fake) -> None:
    operation = fake.create()
    fake.world.preempt("mine")
    fake.wait(60)

    assert "not supported while in state PREEMPTED" in fake.outcome(operation)["message"]
    assert fake.node() == "PREEMPTED"


def test_a_node_that_is_preempted_in_maintenance_does_not_come_back(fake: Fake) -> None:
    fake.create()
    fake.wait(2)
    fake.world.maintain("mine")
    fake.wait(10)
    fake.world.preempt("mine")
    fake.wait(100)

    assert fake.node() == "PREEMPTED"
    assert not any(host["up"] for host in fake.world.status()["hosts"])


def test_what_was_to_befall_a_node_does_not_befall_its_successor(fake: Fake) -> None:
    fake.hosts.at_once = False
    fake.create()
    fake.wait(2)
    late = fake.hosts.booting[0]
    fake.world.maintain("mine", warning=60)
    fake.call("DELETE", "nodes/mine")
    fake.wait(3)
    fake.hosts.at_once = True
    fake.create()
    fake.wait(2)
    done = len(fake.hosts.done)

    late.broken("too late")
    fake.wait(100)
    assert fake.node() == "READY"
    assert len(fake.hosts.done) == done


def test_maintenance_is_announced_and_hosts_reboot(fake: Fake) -> None:
    fake.create()
    fake.wait(2)
    node = fake.world.nodes.get(f"{ZONE}/nodes/mine")

    fake.world.maintain("mine", warning=60)
    assert node.metadata(1, {})["instance"]["maintenance-event"] == "TERMINATE_ON_HOST_MAINTENANCE"
    assert (fake.node(), "upcomingMaintenance" in fake.call("GET", "nodes/mine")) == ("READY", True)
    fake.wait(60)
    assert fake.call("GET", "nodes/mine")["health"] == "UNHEALTHY_MAINTENANCE"
    assert fake.node() == "REPAIRING"
    fake.wait(30)
    assert (fake.node(), "upcomingMaintenance" in fake.call("GET", "nodes/mine")) == ("READY", False)
    assert [done for done, number in fake.hosts.done if number == 1] == ["boot", "shut down", "power off", "boot"]


def test_nobody_says_that_a_host_is_lost(fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    fake.world.lose_host("mine", 1)
    fake.wait(600)
    assert fake.hosts.done[2:] == [("power off", 2)]
    assert fake.node() == "READY"
    assert [host["up"] for host in fake.world.status()["hosts"]] == [True, False]
    fake.world.boot_host("mine", 1)
    assert all(host["up"] for host in fake.world.status()["hosts"])


@pytest.mark.parametrize("state", schema.states("Node"))
def test_a_node_can_be_in_any_state(state: str, fake: Fake) -> None:
    fake.create()
    fake.wait(2)

    fake.world.force("mine", state)
    assert fake.node() == state


# What a zone and a project have


def test_a_zone_that_is_sold_out_says_so_in_the_operation(fake: Fake) -> None:
    fake.world.sell_out("us-central2-b")
    operation = fake.create()
    fake.wait(2)

    assert fake.outcome(operation)["code"] == 8
    assert 'no more capacity in the zone "us-central2-b"' in fake.outcome(operation)["message"]
    assert fake.node() == "gone"
    fake.world.restock()
    fake.create()
    fake.wait(2)
    assert fake.node() == "READY"


def test_one_type_may_be_sold_out(fake: Fake) -> None:
    fake.world.sell_out("us-central2-b/v4-16")
    operation, other = fake.create(), fake.create("other", acceleratorType="v4-8")
    fake.wait(2)

    assert (fake.outcome(operation)["code"], fake.outcome(other)["state"]) == (8, "READY")


def test_a_quota_is_not_a_rate_limit() -> None:
    fake = Fake(Settings(hosts="none", quota_chips=8, rate_per_minute=4))
    fake.create("a")
    quota = fake.refused("POST", "nodes", {**NODE, "acceleratorType": "v4-32"}, nodeId="b")
    assert (quota.http, quota.code, quota.details[0]["@type"].rpartition(".")[2]) == (
        429,
        "RESOURCE_EXHAUSTED",
        "QuotaFailure",
    )

    assert [fake.node("a") for _ in range(2)] == ["CREATING"] * 2
    rate = fake.refused("GET", "nodes/a")
    assert (rate.http, rate.code, rate.details[0]["reason"]) == (429, "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED")
    fake.wait(60)
    assert fake.node("a") == "READY"


def test_what_has_failed_or_is_suspended_keeps_its_quota(fake: Fake) -> None:
    fake.world.quota(8)
    fake.queue()
    fake.wait(20)
    fake.world.preempt("mine", vanish=True)
    fake.wait(60)
    assert (fake.queued(), fake.node()) == ("SUSPENDED", "gone")

    assert (
        fake.refused("POST", "nodes", NODE | {"acceleratorType": "v4-8"}, nodeId="other").code == "RESOURCE_EXHAUSTED"
    )
    fake.call("DELETE", "queuedResources/request")
    fake.wait(3)
    fake.create("other")


def test_a_reservation_that_is_too_small() -> None:
    fake = Fake(Settings(hosts="none", reserved_chips=8))
    fits, does_not = (fake.create(name, schedulingConfig={"reserved": True}) for name in ("a", "b"))
    fake.wait(2)

    assert (fake.outcome(fits)["state"], fake.outcome(does_not)["code"]) == ("READY", 9)
    assert fake.outcome(does_not)["message"].startswith("Insufficient reserved capacity")


# Queued resources


def test_a_queued_resource_goes_through_its_states(fake: Fake) -> None:
    operation = fake.queue()
    seen = [fake.queued()]
    for _ in range(20):
        fake.wait(1)
        seen.append(fake.queued())

    order = list(dict.fromkeys(seen))
    assert order == ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert fake.outcome(operation)["name"] == f"{ZONE}/queuedResources/request"
    shown = fake.call("GET", "nodes/mine")
    assert shown["queuedResource"] == f"{ZONE}/queuedResources/request"
    assert shown["schedulingConfig"] == {"spot": True, "preemptible": True}


def test_it_waits_while_its_zone_is_sold_out(fake: Fake) -> None:
    fake.world.sell_out("us-central2-b")
    fake.queue()
    fake.wait(1_000)
    assert fake.queued() == "WAITING_FOR_RESOURCES"

    fake.world.restock("us-central2-b")
    fake.wait(2)
    assert fake.queued() == "ACTIVE"


def test_it_waits_no_longer_than_it_said(fake: Fake) -> None:
    fake.world.sell_out("us-central2-b")
    fake.queue(queueingPolicy={"validUntilDuration": "60s"})
    fake.wait(60)

    shown = fake.call("GET", "queuedResources/request")["state"]
    assert (shown["state"], shown["stateInitiator"]) == ("FAILED", "SERVICE")
    assert shown["failedData"]["error"]["code"] == 4


def test_it_is_not_served_before_it_said(fake: Fake) -> None:
    fake.queue(queueingPolicy={"validAfterDuration": "100s"})
    fake.wait(99)
    assert fake.queued() == "WAITING_FOR_RESOURCES"

    fake.wait(3)
    assert fake.queued() == "ACTIVE"


def test_preemption_suspends_it_for_good(fake: Fake) -> None:
    fake.queue()
    fake.wait(20)

    fake.world.preempt("mine")
    assert fake.call("GET", "queuedResources/request")["state"] == {
        "state": "SUSPENDING",
        "stateInitiator": "SERVICE",
        "suspendingData": {},
    }
    fake.wait(30)
    assert (fake.queued(), fake.node()) == ("SUSPENDED", "PREEMPTED")
    fake.wait(1_000)
    assert fake.queued() == "SUSPENDED"


def test_the_end_of_its_node_by_a_user_is_said_to_be_that(fake: Fake) -> None:
    fake.queue()
    fake.wait(20)
    fake.call("DELETE", "nodes/mine")
    fake.wait(3)

    state = fake.call("GET", "queuedResources/request")["state"]
    assert (state["state"], state["stateInitiator"]) == ("SUSPENDED", "USER")


def test_it_is_deleted_with_its_nodes_by_force_only(fake: Fake) -> None:
    fake.queue()
    fake.wait(20)
    refused = fake.refused("DELETE", "queuedResources/request")
    assert (refused.http, refused.code) == (400, "FAILED_PRECONDITION")

    operation = fake.call("DELETE", "queuedResources/request", force="True")
    assert (fake.queued(), fake.node()) == ("DELETING", "DELETING")
    fake.wait(4)
    assert (fake.queued(), fake.node()) == ("gone", "gone")
    fake.outcome(operation)


def test_several_slices_come_and_go_together(fake: Fake) -> None:
    fake.queue(nodes={"multisliceParams": {"nodeCount": 2, "nodeIdPrefix": "s"}})
    fake.wait(20)
    assert (fake.queued(), fake.node("s-0"), fake.node("s-1")) == ("ACTIVE", "READY", "READY")

    fake.world.preempt("s-1")
    assert (fake.node("s-0"), fake.node("s-1")) == ("PREEMPTED", "PREEMPTED")


def test_a_node_that_cannot_be_fails_its_queued_resource(fake: Fake) -> None:
    fake.world.inject("queuedResources.create", "fail", "INTERNAL", "An internal error has occurred")
    fake.queue()
    fake.wait(20)

    assert fake.call("GET", "queuedResources/request")["state"]["failedData"]["error"]["code"] == 13
    assert fake.node() == "gone"
    fake.call("DELETE", "queuedResources/request")


def test_the_same_request_id_is_the_same_request(fake: Fake) -> None:
    body = {"tpu": {"nodeSpec": [{"parent": ZONE, "nodeId": "mine", "node": NODE}]}}
    first, second = (
        fake.call("POST", "queuedResources", body, queuedResourceId="r", requestId="11-22") for _ in range(2)
    )

    assert first["name"] == second["name"]
    assert fake.refused("POST", "queuedResources", body, queuedResourceId="r").code == "ALREADY_EXISTS"


@pytest.mark.parametrize("state", schema.states("QueuedResourceState"))
def test_a_queued_resource_can_be_in_any_state(state: str, fake: Fake) -> None:
    fake.queue()
    fake.wait(20)

    fake.world.force("request", state)
    assert fake.queued() == state


# What is refused


@pytest.mark.parametrize(
    ("verb", "path", "query", "body", "said"),
    [
        ("POST", "nodes", {"nodeId": "n", "requestId": "1"}, NODE, 'Unknown name "requestId": Cannot bind query'),
        ("GET", "nodes", {"filter": "state=READY"}, None, 'Unknown name "filter": Cannot bind query parameter'),
        (
            "POST",
            "nodes",
            {"nodeId": "n"},
            {**NODE, "sport": True},
            "Unknown name \"sport\" at 'node': Cannot find field",
        ),
        (
            "POST",
            "nodes",
            {"nodeId": "n"},
            {**NODE, "schedulingConfig": {"spott": True}},
            "Unknown name \"spott\" at 'node.scheduling_config'",
        ),
        ("POST", "nodes", {"nodeId": "n"}, {**NODE, "labels": {"a": 1}}, "Invalid value at 'node.labels[a]'"),
        ("POST", "nodes", {"nodeId": "n"}, {**NODE, "tags": "a"}, "Invalid value at 'node.tags'"),
        ("POST", "nodes", {"nodeId": "n"}, {**NODE, "health": "FINE"}, "Invalid value at 'node.health'"),
        ("POST", "nodes", {"nodeId": "n"}, [], "Invalid value at 'node'"),
        ("POST", "nodes", {"nodeId": "Upper"}, NODE, "Invalid value 'Upper'"),
        ("POST", "nodes", {}, NODE, "Invalid value ''"),
        (
            "POST",
            "nodes",
            {"nodeId": "n"},
            {**NODE, "acceleratorType": "v5p-8"},
            'not available in zone "us-central2-b"',
        ),
        (
            "POST",
            "nodes",
            {"nodeId": "n"},
            {**NODE, "runtimeVersion": "none"},
            'Runtime version "none" is not available',
        ),
        ("POST", "nodes", {"nodeId": "n"}, {**NODE, "labels": {"Run": "a"}}, "Invalid label Run=a"),
        (
            "POST",
            "nodes/n:getGuestAttributes",
            {},
            {"worker_ids": ["0"]},
            'Unknown name "worker_ids": Cannot find field',
        ),
        ("DELETE", "nodes/n", {"force": "true"}, None, 'Unknown name "force"'),
        ("DELETE", "queuedResources/q", {"force": "yes"}, None, "Invalid value at 'force' (TYPE_BOOL)"),
        ("GET", "nodes", {"pageSize": "many"}, None, "Invalid value at 'page_size' (TYPE_INT32)"),
        ("POST", "queuedResources", {"queuedResourceId": "q"}, {"tpu": {}}, "node_spec must be set"),
    ],
)
def test_requests_that_the_api_does_not_have(
    verb: str, path: str, query: Mapping[str, str], body: object, said: str, fake: Fake
) -> None:
    error = fake.refused(verb, path, body, **query)

    assert (error.http, error.code) == (400, "INVALID_ARGUMENT")
    assert said in error.message


def test_what_is_null_is_not_set(fake: Fake) -> None:
    fake.create(description=None)

    assert "description" not in fake.call("GET", "nodes/mine")


def test_what_only_the_service_sets_is_ignored(fake: Fake) -> None:
    fake.create(state="READY", queuedResource="mine")

    assert fake.node() == "CREATING"
    assert "queuedResource" not in fake.call("GET", "nodes/mine")


@pytest.mark.parametrize("path", ["nodes/none", "queuedResources/none", "operations/none", "acceleratorTypes/v9-8"])
def test_what_is_not_there_is_not_found(path: str, fake: Fake) -> None:
    assert fake.refused("GET", path).http == 404


def test_credentials_that_are_none_unknown_or_expired(fake: Fake) -> None:
    def reason(authorization: str | None) -> str:
        with pytest.raises(ApiError) as caught:
            fake.world.call("GET", f"/v2/{ZONE}/nodes", {}, None, authorization)
        assert (caught.value.http, caught.value.code) == (401, "UNAUTHENTICATED")
        return str(caught.value.details[0]["reason"])

    assert reason(None) == "CREDENTIALS_MISSING"
    assert reason("Bearer of news") == "ACCESS_TOKEN_TYPE_UNSUPPORTED"
    fake.wait(3600)
    assert reason(f"Bearer {fake.token}") == "ACCESS_TOKEN_EXPIRED"
    fake.token = fake.world.gate.token()
    fake.call("GET", "nodes")
    fake.world.expire_tokens()
    assert reason(f"Bearer {fake.token}") == "ACCESS_TOKEN_EXPIRED"


def test_projects_zones_and_permissions_that_one_does_not_have(fake: Fake) -> None:
    other_project = fake.refused("GET", "projects/other/locations/us-central2-b/nodes")
    other_zone = fake.refused("GET", "projects/fake-project/locations/mars-a/nodes")
    fake.world.deny("tpu.nodes.update")
    denied = fake.refused("PATCH", "nodes/mine", {}, updateMask="labels")

    assert {error.http for error in (other_project, other_zone, denied)} == {403}
    assert other_zone.message == "Location mars-a is not found or access is unauthorized."
    assert denied.message.startswith("Permission 'tpu.nodes.update' denied on")
    assert other_project.details[0]["reason"] == "IAM_PERMISSION_DENIED"
    fake.world.allow()
    assert fake.refused("PATCH", "nodes/mine", {}, updateMask="labels").http == 404


# Faults that a test orders


def test_a_fault_comes_as_often_as_it_was_ordered(fake: Fake) -> None:
    fake.world.inject("nodes.list", times=2)

    assert [fake.refused("GET", "nodes").http for _ in range(2)] == [503, 503]
    assert fake.call("GET", "nodes") == {}


def test_an_answer_that_is_lost_was_a_call_that_was_heard(fake: Fake) -> None:
    fake.world.inject("nodes.create", "lose-answer")
    with pytest.raises(ConnectionLost):
        fake.create()
    assert fake.node() == "CREATING"

    fake.world.inject("nodes.create", "lose-call")
    with pytest.raises(ConnectionLost):
        fake.create("other")
    assert fake.node("other") == "gone"


def test_an_operation_fails_as_ordered(fake: Fake) -> None:
    fake.world.inject("nodes.create", "fail", "RESOURCE_EXHAUSTED", "none left")
    operation = fake.create()
    fake.wait(2)

    assert fake.outcome(operation) == {"code": 8, "message": "none left"}
    assert fake.node() == "gone"


def test_orders_that_cannot_be_are_explained(fake: Fake) -> None:
    with pytest.raises(LookupError, match=r"no node 'mine'; there are none"):
        fake.world.preempt("mine")
    with pytest.raises(LookupError, match=r"no method 'nodes\.make'"):
        fake.world.inject("nodes.make")
    with pytest.raises(LookupError, match=r"no zone, nor type in one, is named 'mars-a'"):
        fake.world.sell_out("mars-a")
    fake.create()
    with pytest.raises(LookupError, match=r"no worker 2; mine has 0 to 1"):
        fake.world.lose_host("mine", 2)
    with pytest.raises(LookupError, match=r"no state 'TIRED'"):
        fake.world.force("mine", "TIRED")


# Lists


def test_lists_have_pages(fake: Fake) -> None:
    for name in "cab":
        fake.create(name)

    first = fake.call("GET", "nodes", pageSize="2")
    second = fake.call("GET", "nodes", pageSize="2", pageToken=first["nextPageToken"])
    assert [node["name"][-1] for node in first["nodes"] + second["nodes"]] == ["a", "b", "c"]
    assert "nextPageToken" not in second
    assert fake.refused("GET", "nodes", pageToken="?").message == "Invalid page token."


def test_a_list_of_all_zones(fake: Fake) -> None:
    fake.create()

    assert len(fake.call("GET", "projects/fake-project/locations/-/nodes")["nodes"]) == 1
    assert fake.call("GET", "projects/fake-project/locations/us-east5-a/nodes") == {}


def test_lists_that_have_filters(fake: Fake) -> None:
    types = fake.call("GET", "acceleratorTypes", filter='type="v4-8"')["acceleratorTypes"]
    assert [one["type"] for one in types] == ["v4-8"]

    fake.create()
    assert fake.call("GET", "operations", filter="done=true") == {}
    assert len(fake.call("GET", "operations", filter="metadata.verb=create AND done=false")["operations"]) == 1
    assert fake.refused("GET", "operations", filter="done ~ x").code == "INVALID_ARGUMENT"


def test_filters_compare_contain_and_differ() -> None:
    entry = {"a": {"b": "value"}, "on": True}

    assert filters.matches(entry, 'a.b="value" AND on=true AND a.b:alu AND a.c!=x')
    assert not filters.matches(entry, "a.b!=value")
    assert not filters.matches(entry, "a.c=value")


# Types, users, metadata


@pytest.mark.parametrize(
    ("accelerator", "zone", "hosts", "chips"),
    [
        ("v2-8", "us-central1-f", 1, 4),
        ("v4-8", "us-central2-b", 1, 4),
        ("v4-32", "us-central2-b", 4, 16),
        ("v4-512", "us-central2-b", 64, 256),
        ("v5litepod-1", "us-west4-a", 1, 1),
        ("v5litepod-8", "us-west4-a", 1, 8),
        ("v5litepod-16", "us-west4-a", 4, 16),
        ("v6e-8", "us-east5-a", 1, 8),
    ],
)
def test_hosts_and_chips_of_a_type(accelerator: str, zone: str, hosts: int, chips: int) -> None:
    found = catalogue.slice_of(accelerator, zone)

    assert (found.hosts, found.chips) == (hosts, chips)


def test_a_topology_is_a_type() -> None:
    assert catalogue.accelerator_of("V4", "2x2x4") == "v4-32"
    assert catalogue.accelerator_of("V5LITE_POD", "4x4") == "v5litepod-16"


def test_users_come_from_metadata() -> None:
    own = {"ssh-keys": "root:ssh-ed25519 A\nme:ssh-rsa B x\nme:ssh-rsa C\nnonsense"}
    of_project = {"ssh-keys": "you:ssh-ed25519 D"}

    assert [(user.name, user.id, len(user.keys)) for user in accounts.users(own, of_project)] == [
        ("root", 0, 1),
        ("me", 1000, 2),
        ("you", 1001, 1),
    ]
    assert len(accounts.users({**own, "block-project-ssh-keys": "TRUE"}, of_project)) == 2
    assert accounts.users({**own, "enable-oslogin": "TRUE"}, of_project) == []


def test_people_of_this_machine_are_not_users_of_a_host() -> None:
    base = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    added = accounts.users({"ssh-keys": "you:ssh-ed25519 A"}, {})

    assert [line.split(":")[0] for line in accounts.passwd(base, added).splitlines()] == ["root", "nobody", "you"]


def test_metadata_is_a_tree_of_text() -> None:
    tree = {"instance": {"attributes": {"a": "1"}, "name": "n"}}

    assert metadata.answer(tree, "/instance/name", {}) == ("n", "application/text")
    assert metadata.answer(tree, "/instance/", {}) == ("attributes/\nname\n", "application/text")
    assert metadata.answer(tree, "/instance/attributes/", {"recursive": "true"}) == ('{"a": "1"}', "application/json")
    assert metadata.answer(tree, "/instance/attributes/b", {}) is None
    assert metadata.answer(tree, "/instance/name/deeper", {}) is None


def test_a_host_knows_its_place_as_torch_xla_reads_it(fake: Fake) -> None:
    fake.create(metadata={"mine": "too"})
    attributes = fake.world.nodes.get(f"{ZONE}/nodes/mine").metadata(1, {})["instance"]["attributes"]

    assert attributes["agent-worker-number"] == "1"
    assert "WORKER_ID: '1'\n" in attributes["tpu-env"]
    assert [one.split(":")[2] for one in attributes["worker-network-endpoints"].split(",")] == [
        "198.18.0.1",
        "198.18.0.2",
    ]
    assert attributes["mine"] == "too"


# Names, settings, words


def test_addresses_of_the_longest_name_fit_the_kernel() -> None:
    assert len(Layout("seven77", Path("/state")).interface("v250")) <= 15
    addresses = Addresses(IPv4Network("198.18.7.0/24"))
    assert addresses.of(9) == ("198.18.7.9", "198.19.7.9")
    assert addresses.own == ("198.18.7.254", "198.19.7.254")


@pytest.mark.parametrize(
    ("wrong", "said"), [({"grace_seconds": -1}, "grace_seconds is -1"), ({"shared": ("here",)}, "shared holds here")]
)
def test_settings_that_cannot_be(wrong: Json, said: str) -> None:
    with pytest.raises(CloudError, match=said):
        Settings(**wrong)


def test_settings_are_the_same_after_they_were_written_down() -> None:
    settings = Settings(hosts="none", grace_seconds=3, shared=("/a",))

    assert Settings.from_json(settings.to_json()) == settings


def test_words_become_settings_and_orders() -> None:
    parse = command_line.parser().parse_args

    chosen = command_line.settings_of(parse(["up", "--hosts=none", "--grace-seconds=3", "--share", "/a"]))
    assert chosen == Settings(hosts="none", grace_seconds=3, shared=("/a",))
    assert command_line.settings_of(parse(["up"])) is None
    given = vars(parse(["inject", "nodes.create", "--how=lose-answer", "--times=3"]))
    assert (given["on"], given["how"], given["times"]) == ("nodes.create", "lose-answer", 3)


def test_every_order_and_every_setting_has_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("--help", "up"):
        with pytest.raises(SystemExit):
            command_line.parser().parse_args([verb, "--help"])
    shown = capsys.readouterr().out

    for order in ORDERS:
        assert order.replace("_", "-") in shown
    for field in fields(Settings):
        assert "--" + field.name.replace("_", "-").removesuffix("d") in shown


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_its_status(code: str) -> None:
    error = ApiError(code, "said")

    assert error.body["error"] == {"code": error.http, "message": "said", "status": code}
    assert error.status["message"] == "said"
