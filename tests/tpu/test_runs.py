"""Runs on the fake Cloud TPU, from the request for machines until nothing is left of them. Ranks are stubs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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


def test_preempted_then_a_host_lost_then_sold_out_it_comes_back_each_time(launch: Callable[..., Launch]) -> None:
    one = launch()
    one.drive()
    one.until_step(5)

    one.cloud.order("preempt", node=one.node, grace=6)
    one.until_step(8, attempt=2)
    one.cloud.order("lose_host", node=one.node, worker=1)
    one.cloud.order("sell_out", what="us-central2-b")
    eventually(lambda: len(one.attempts) == 3, "the third attempt", 90)
    one.cloud.order("restock")
    one.ends_after(30)

    assert "state='finished'" in one.wait()
    assert one.causes == ["preempted", "infra", "finished"]
    first, second, third = one.attempts
    assert "saved and left at SIGTERM" in first.reason
    assert second.first_step == first.last_step >= 5
    assert "host 1 does not answer" in second.reason
    assert third.first_step % 4 == 0
    assert third.first_step >= 8
    assert len(set(one.asked_for)) == len(one.asked_for) == 3
    assert one.nothing_left()
    assert "left at" in one.log(1, 0)
