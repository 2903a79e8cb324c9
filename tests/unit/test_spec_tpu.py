"""The section `tpu`: what it takes, what it refuses, and what a target adds to it."""

from typing import Any

import pytest

from launcher.errors import SpecError
from launcher.spec import JobSpec, parse_spec
from launcher.spec_tpu import Tpu
from launcher.target import Target, placed

WHOLE = """
name: test
model: {class_path: a.B}
tpu:
  accelerator_type: v5litepod-16
  zone: [us-west4-a, europe-west4-b]
  project: example.com:mine
  runtime_version: v2-alpha-tpuv5-lite
  spot: false
  reserved: true
  network: projects/p/global/networks/n
  subnetwork: sub
  internal_ips: true
  service_account: trainer@mine.iam.gserviceaccount.com
  valid_until_duration: 2h
  labels: {team: vision}
  tags: [ssh]
  metadata: {enable-oslogin: "FALSE"}
  setup: ["sudo apt-get install -y python3.11-venv"]
  python: python3.11
  packages: [torch~=2.9.0, "lightning>=2.6,<2.7"]
"""


def problem(section: str) -> str:
    with pytest.raises(SpecError) as error:
        parse_spec(f"name: test\nmodel: {{class_path: a.B}}\ntpu: {section}\n", source="job")
    (only,) = error.value.problems
    return f"{only.key}: {only.message}"


def spec(**tpu: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "test", "model": {"class_path": "a.B"}, **({"tpu": tpu} if tpu else {})})


def test_it_has_the_words_of_gcloud() -> None:
    given = parse_spec(WHOLE, source="job").tpu

    assert given is not None
    assert given.zone == ["us-west4-a", "europe-west4-b"]
    assert (given.spot, given.reserved, given.internal_ips) == (False, True, True)


def test_a_single_zone_needs_no_list() -> None:
    given = spec(zone="us-west4-a").tpu
    assert given is not None
    assert given.zone == ["us-west4-a"]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{accelerator_type: 8}", "tpu.accelerator_type: expected an accelerator type such as 'v5litepod-16', got the"),
        ("{zone: us central}", "tpu.zone: expected a zone such as 'us-central2-b'"),
        ("{labels: {Team: a}}", "tpu.labels.Team: expected 1 to 63 small letters"),
        ("{labels: {team: A b}}", "tpu.labels.team: expected at most 63 small letters"),
        ("{labels: {launcher-run: a}}", "'launcher-run': what begins with 'launcher-' is set by the launcher"),
        ("{metadata: {launcher-x: a}}", "'launcher-x': what begins with 'launcher-' is set by the launcher"),
        ('{setup: ["a\\nb"]}', "tpu.setup.0: expected one line without control characters"),
        ("{python: python3 -I}", "tpu.python: expected a name without spaces"),
        ("{reserved: true}", "tpu: reserved capacity is not spot capacity: with reserved: true, write spot: false"),
        ("{preemptible: true}", "tpu.preemptible: unknown key 'preemptible'"),
    ],
)
def test_what_cannot_be_is_refused(section: str, said: str) -> None:
    assert said in problem(section)


def test_a_target_says_the_rest() -> None:
    target = Target(kind="tpu", tpu=Tpu(project="mine", zone=["a-b"], labels={"team": "vision"}))

    assert placed(spec(), target).tpu == target.tpu
    assert placed(spec(accelerator_type="v4-8", zone="c-d", labels={"who": "me"}), target).tpu == Tpu(
        accelerator_type="v4-8", project="mine", zone=["c-d"], labels={"team": "vision", "who": "me"}
    )


def test_the_two_must_fit_together() -> None:
    with pytest.raises(SpecError, match="reserved capacity is not spot capacity"):
        placed(spec(spot=True), Target(kind="tpu", tpu=Tpu(spot=False, reserved=True)))
