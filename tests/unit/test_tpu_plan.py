"""What would be executed on Cloud TPU: pure, and held by golden files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backend import Plan
from launcher.backends.tpu.attempt import orders_of
from launcher.backends.tpu.backend import TpuBackend, python_of
from launcher.backends.tpu.claims import first_request
from launcher.backends.tpu.machines import chips_a_host
from launcher.errors import UsageError
from launcher.record import Code, Record, Tree
from launcher.spec import JobSpec
from launcher.spec_tpu import Tpu

GOLDEN = Path(__file__).with_name("golden")
CODE = Code(
    digest="12ab", trees=(Tree(path="/project", folder="project"),), import_path=("project/src",), workdir="project"
)
LEAST = {"accelerator_type": "v4-16", "zone": "us-central2-b", "project": "mine"}


@pytest.fixture(autouse=True)
def on_google(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)


def spec_of(tpu: dict[str, Any], **sections: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "test", "model": {"class_path": "a.B"}, "tpu": tpu, **sections})


def plan(
    tpu: dict[str, Any], *, run_dir: str = "gs://bucket/runs/run", code: Code | None = CODE, **sections: Any
) -> Plan:
    spec = spec_of(tpu, **sections)
    record = Record(
        id="run",
        name="test",
        created=0.0,
        target="cloud",
        site={"kind": "tpu"},
        spec=spec.model_dump(mode="json", exclude_unset=True),
        spec_file="job.yaml",
        spec_text="",
        import_path=("/jobs", "/project"),
        workdir="/project/here",
        code=code,
    )
    return TpuBackend().plan(run_dir, record, spec, 3)


def held(name: str, body: Any, request: pytest.FixtureRequest) -> None:
    golden, shown = GOLDEN / f"{name}.json", json.dumps(body, indent=1) + "\n"
    if request.config.getoption("--update-golden"):
        golden.write_text(shown)
    assert shown == golden.read_text(), "if this is meant: pytest --update-golden"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("tpu-2-hosts", lambda: plan(LEAST, env={"vars": {"MODE": "a b; 'c' $D"}})),
        (
            "tpu-packages",
            lambda: plan(
                {**LEAST, "accelerator_type": "v5litepod-8", "python": "python3.11", "packages": ["torch~=2.9.0"]},
                resources={"tasks_per_node": 2, "cpus_per_task": 4, "nodes": 7},
            ),
        ),
        (
            "tpu-xla",
            lambda: plan(
                {**LEAST, "accelerator_type": "v5litepod-16"},
                trainer={"strategy": "xla"},
                resources={"tasks_per_node": 2},
            ),
        ),
    ],
)
def test_a_plan_is_what_it_was(name: str, make: Callable[[], Plan], request: pytest.FixtureRequest) -> None:
    held(name, make().as_json(), request)


@pytest.mark.parametrize(
    ("accelerator_type", "chips"),
    [("v4-8", 4), ("v4-32", 4), ("v5p-128", 4), ("v5litepod-1", 1), ("v5litepod-8", 8), ("v6e-256", 4)],
)
def test_xla_has_a_rank_for_each_chip(accelerator_type: str, chips: int) -> None:
    planned = plan({**LEAST, "accelerator_type": accelerator_type}, trainer={"strategy": "xla"})

    assert planned.tasks_per_node == chips == chips_a_host(accelerator_type)
    assert planned.env["PJRT_DEVICE"] == "TPU"


def test_on_the_hosts_cpus_it_has_as_many_ranks_as_are_asked_for() -> None:
    on_cpu: dict[str, Any] = {"trainer": {"strategy": "xla"}, "env": {"vars": {"PJRT_DEVICE": "CPU"}}}

    assert plan(LEAST, **on_cpu).tasks_per_node == 1
    assert plan(LEAST, **on_cpu, resources={"tasks_per_node": 3}).tasks_per_node == 3
    assert plan(LEAST, **on_cpu).env["PJRT_DEVICE"] == "CPU"


def test_hosts_are_told_where_an_object_store_is_that_is_not_google_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "STORAGE_EMULATOR_HOST" not in plan(LEAST).env
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://10.0.0.1:1")

    assert plan(LEAST).env["STORAGE_EMULATOR_HOST"] == "http://10.0.0.1:1"


def test_what_is_asked_for_is_what_it_was(request: pytest.FixtureRequest) -> None:
    tpu = Tpu(**{**LEAST, "zone": ["us-central2-b", "us-east1-d"], "service_account": "me@here"})

    held("tpu-request", first_request("run", "gs://bucket/runs/run", tpu), request)


def test_hosts_are_told_of_their_own_ranks_and_where_the_first_is() -> None:
    planned = json.loads(json.dumps(plan(LEAST, resources={"tasks_per_node": 2}).as_json()))

    first, second = orders_of(planned, Tpu(**{**LEAST, "zone": ["a-b"]}), "10.0.0.2")

    assert [[rank["rank"] for rank in one["ranks"]] for one in (first, second)] == [[0, 1], [2, 3]]
    assert first["env"]["MASTER_ADDR"] == second["env"]["MASTER_ADDR"] == "10.0.0.2"
    assert first["archive"] == "gs://bucket/runs/run/code/12ab.tar"


def test_other_packages_are_another_environment() -> None:
    one, two = (python_of(Tpu(packages=[name])) for name in ("a", "b"))

    assert one != two
    assert one == python_of(Tpu(packages=["a"]))
    assert python_of(Tpu(python="python3.12")) == "python3.12"


def test_what_would_be_checked_imports_from_the_live_tree() -> None:
    planned = plan(LEAST, code=None)

    assert planned.env["PYTHONPATH"].startswith("/jobs:/project:")
    assert planned.workdir == "/project/here"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"run_dir": "/runs/run"}, "on an object store.*--runs-root gs://BUCKET/FOLDER"),
        ({"tpu": {}}, "tpu.accelerator_type, tpu.zone, tpu.project: required on Cloud TPU"),
        ({"tpu": {**LEAST, "accelerator_type": "v9-8"}}, "v9-8 is none that is known here"),
        ({"code_": {"snapshot": False}}, "code.snapshot: false"),
        (
            {"tpu": {**LEAST, "accelerator_type": "v3-8"}, "trainer": {"strategy": "xla"}},
            "v3-8: a chip of v3 has two devices, .* use a later generation",
        ),
        ({"resources": {"gpus_per_node": 1}}, "resources.gpus_per_node: hosts of Cloud TPU have none"),
    ],
)
def test_what_cannot_work_there_is_refused(given: dict[str, Any], said: str) -> None:
    sections = {
        "code" if key == "code_" else key: value for key, value in given.items() if key not in ("tpu", "run_dir")
    }
    spec = spec_of(given.get("tpu", LEAST), **sections)
    record = Record(id="run", name="test", created=0.0, target="cloud", spec={}, spec_file="", spec_text="")

    with pytest.raises(UsageError, match=said):
        TpuBackend().plan(given.get("run_dir", "gs://bucket/runs/run"), record, spec, 1)
