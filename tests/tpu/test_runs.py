"""Runs on the fake Cloud TPU, from the request for machines until nothing is left of them. Ranks are stubs."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gcs import faulty

from launcher.events import CancelRequested
from tpu.cloud import Cloud
from tpu.launches import Launch
from tpu.slices import eventually

CALLS = {
    *("queuedResources.create", "queuedResources.get", "queuedResources.delete"),
    *("nodes.get", "nodes.getGuestAttributes"),
}
"""All that a run asks of the API, as long as nobody takes it over."""


@pytest.fixture
def launch(cloud: Cloud, runs: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Launch]]:
    made: list[Launch] = []

    def one(**sections: Any) -> Launch:
        name = request.node.name.replace("_", "-")[5:35].strip("-")
        made.append(Launch(cloud, runs, f"{name}-{len(made)}", tmp_path, **sections))
        return made[-1]

    yield one
    cloud.order("restock")
    for each in made:
        each.close()
        for node in cloud.status()["queuedResources"]:
            if each.run.id in node["name"]:
                cloud.call("DELETE", node["name"], force="true")


def test_a_run_has_machines_of_its_own_and_leaves_none(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.ends_after(8)
    one.drive()

    assert "state='finished'" in one.wait()

    assert one.causes == ["finished"]
    assert one.nothing_left()
    assert {request["method"] for request in one.requests} == CALLS
    assert {request["status"] for request in one.requests} == {200, 404}
    assert len(one.asked_for) == 1
    assert one.log(1, 0).splitlines()[1:] == [f"step {step}" for step in range(1, 9)]
    assert [one.log(1, rank).splitlines()[0].rpartition("-w-")[2] for rank in (0, 1)] == ["0", "1"]
    environment = one.run.read_json("attempts/001/environment-1.json")
    assert environment["MASTER_ADDR"] != "127.0.0.1"
    assert environment["LAUNCHER_SCRATCH"] == "/home/launcher/.launcher/scratch"


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="NOT TESTED: the gcloud CLI, which is not installed")
def test_hosts_may_be_reached_by_gcloud(launch: Callable[..., Launch]) -> None:
    one = launch(tpu={"ssh": "gcloud"})
    one.ends_after(8)
    one.drive("SILENT_S=60")

    assert "state='finished'" in one.wait(240)
    assert one.causes == ["finished"]
    assert one.nothing_left()
    assert one.log(1, 1).startswith("rank 1 of 2")
    assert not [request for request in one.requests if request["method"] == "nodes.patch"]


def test_preempted_then_a_host_lost_then_sold_out_it_comes_back_each_time(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.drive()
    one.until_step(5)

    one.cloud.order("preempt", node=one.node, grace=25)
    one.until(lambda: len(one.attempts) == 2 and one.attempts[1].first_step, "the second attempt")
    one.until_step(one.attempts[1].first_step + 5, attempt=2)
    one.cloud.order("lose_host", node=one.node, worker=1)
    one.cloud.order("sell_out", what="us-central2-b")
    eventually(lambda: len(one.attempts) == 3, "the third attempt", 90)
    one.cloud.order("restock")
    one.until(lambda: one.attempts[2].first_step, "the third attempt to begin")
    one.ends_after(one.attempts[2].first_step + 5)

    assert "state='finished'" in one.wait()
    assert one.causes == ["preempted", "infra", "finished"]
    first, second, third = one.attempts
    assert "saved and left at SIGTERM" in first.reason
    assert second.first_step == first.last_step >= 5
    assert "host 1 does not answer" in second.reason
    # Rank 0 may hear of the deletion, and save once more after what was seen last.
    assert second.first_step < third.first_step <= second.last_step + 8
    assert len(set(one.asked_for)) == len(one.asked_for) == 3
    assert one.nothing_left()
    assert "left at" in one.log(1, 0)


def test_whoever_drives_is_killed_at_every_turn_and_somebody_else_carries_on(launch: Callable[..., Launch]) -> None:
    """From another machine: it has neither the key nor a connection."""
    one = launch()
    one.cloud.order("sell_out", what="us-central2-b")
    for number, reached in enumerate(
        (
            lambda: one.attempts and one.claim,
            lambda: one.asked_for,
            lambda: one.cloud.order("restock") or one.hosts_up,
            lambda: one.log_begins,
            lambda: one.steps >= 6,
        )
    ):
        one.drive(machine=f"machine-{number}")
        one.until(reached, f"turn {number}")
        one.kill()
    one.ends_after(30)
    one.drive("LOOK_S=4", machine="last")
    one.until(lambda: one.verdict, "the verdict, after which the machines are deleted")
    one.kill()
    one.drive(machine="very-last")

    assert "state='finished'" in one.wait()
    assert one.causes == ["finished"]
    assert len(one.asked_for) == 1, "no second TPU for an attempt"
    assert one.nothing_left()
    assert one.log(1, 0).splitlines()[1:] == [f"step {step}" for step in range(1, 31)], "its ranks have not noticed"
    assert {request["method"] for request in one.requests} == CALLS | {"nodes.patch"}


def test_a_rank_that_fails_ends_the_attempt_on_all_hosts(launch: Callable[..., Launch]) -> None:
    one = launch(retry={"error": 0})
    one.run.storage.replace("fail-1-1", b"9")
    one.drive()

    assert "state='failed'" in one.wait()
    (attempt,) = one.attempts
    assert attempt.cause == "error"
    assert "rank 1 exited with code 9" in attempt.reason
    assert "this is how I end" in one.log(1, 1)
    assert one.nothing_left()


def test_hosts_that_cannot_be_set_up_are_told_of(launch: Callable[..., Launch]) -> None:
    one = launch(tpu={"setup": ["echo there is no such thing >&2", "false"]})
    one.drive()

    assert "state='failed'" in one.wait()
    assert "tpu.setup: exit code 1: there is no such thing" in one.attempts[0].reason
    assert one.nothing_left()


def test_a_bucket_that_the_hosts_may_not_write_to_ends_the_run_with_what_they_lack(
    launch: Callable[..., Launch], cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = launch()
    store = faulty.Proxy(os.environ["STORAGE_EMULATOR_HOST"], cloud.address)

    def refuses_hosts(handler: Any) -> None:
        if handler.client_address[0] == cloud.address:
            handler.reply(*handler.forward())
        else:
            faulty.refuses(403, "no storage.objects.create access", "forbidden")(handler)

    store.fault(refuses_hosts, method="POST", times=1_000_000)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
    one.drive()

    assert "state='failed'" in one.wait()
    (attempt,) = one.attempts
    assert attempt.cause == "error"
    assert "no storage.objects.create access" in attempt.reason
    assert "--member=serviceAccount:123456789012-compute@fake --role=roles/storage.objectUser" in attempt.reason
    assert one.nothing_left()
    store.close()


def test_a_stop_is_one_step_away_and_costs_nothing_after_it(launch: Callable[..., Launch]) -> None:
    one = launch()
    driver = one.drive()
    one.until_step(3)

    driver.send_signal(signal.SIGTERM)

    assert "state='stopped'" in one.wait()
    assert one.causes == ["stopped"]
    assert one.run.ledger.refresh().best_step == one.attempts[0].last_step >= 3
    assert one.nothing_left()


def test_before_there_are_machines_a_stop_is_immediate(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.cloud.order("sell_out", what="us-central2-b")
    driver = one.drive()
    one.until(lambda: one.asked_for, "the request")

    driver.send_signal(signal.SIGTERM)

    assert "state='stopped'" in one.wait()
    assert one.nothing_left()


def test_a_run_that_is_cancelled_leaves_nothing(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.drive()
    one.until_step(3)

    one.run.ledger.append(CancelRequested(by="test"), after=one.run.ledger.refresh().version)

    assert "state='cancelled'" in one.wait()
    assert one.nothing_left()


def test_an_api_that_is_down_does_not_end_a_training(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.drive()
    one.until_step(3)
    one.cloud.order("inject", on="*", times=20)
    one.until_step(12)
    assert one.log(1, 0).splitlines()[-1] != "step 3", "hosts are looked at all the same"
    one.ends_after(24)

    assert "state='finished'" in one.wait()
    assert one.causes == ["finished"]
    assert one.nothing_left()


def test_machines_that_somebody_deletes_are_not_asked_for_again(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.drive()
    one.until_step(3)

    one.cloud.call("DELETE", f"us-central2-b/nodes/{one.node}")

    assert "state='stopped'" in one.wait()
    assert "somebody has deleted its node" in one.attempts[0].reason
    assert one.nothing_left()
