"""What a spec may ask of XLA, and what it hears if it asks for more."""

from typing import Any

import pytest

from launcher.accelerator import check_xla, xla_refuses
from launcher.backends.local import LocalBackend, Machine
from launcher.errors import UsageError
from launcher.record import Record
from launcher.spec import JobSpec

GPUS = Machine(cpus=8, gpus=("0", "1"))


def spec(*, trainer: dict[str, Any] | None = None, **sections: Any) -> JobSpec:
    body = {"name": "test", "model": {"class_path": "a.B"}, **sections}
    return JobSpec.model_validate({**body, "trainer": {"strategy": "xla", **(trainer or {})}})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (
            spec(trainer={"precision": "16-mixed"}),
            r"trainer\.precision: 16-mixed .*gradient scaler.*: use 'bf16-mixed'",
        ),
        (spec(trainer={"precision": 16}), r"trainer\.precision: 16 .*: use 'bf16-mixed'"),
        (spec(trainer={"precision": "16-true"}), r"trainer\.precision: 16-true .*silently.*: use 'bf16-true'"),
        (spec(trainer={"precision": "transformer-engine"}), r"transformer-engine .*use one of 32-true, "),
        (spec(trainer={"sync_batchnorm": True}), r"trainer\.sync_batchnorm: .*leave it out"),
        (spec(resources={"gpus_per_node": 1}), r"resources\.gpus_per_node: 1, .*does not use GPUs; leave it out"),
        (spec(exact="world-size", resources={"cpus_per_task": 1}), r"exact: world-size: .*leave `exact` out"),
    ],
)
def test_what_xla_cannot_do_is_refused_with_what_to_write_instead(asked: JobSpec, answer: str) -> None:
    with pytest.raises(UsageError, match=answer):
        check_xla(asked)


@pytest.mark.parametrize("precision", [None, 32, "32-true", "64-true", "bf16-true", "bf16-mixed", "bf16"])
def test_what_xla_computes_in_is_not_refused(precision: str | int | None) -> None:
    assert xla_refuses(precision) is None


def record(asked: JobSpec) -> Record:
    return Record(
        id="run",
        name="test",
        created=0.0,
        target="local",
        spec=asked.model_dump(mode="json", exclude_unset=True),
        spec_file="job.yaml",
        spec_text="",
        import_path=(),
        workdir="/project",
    )


def test_its_ranks_are_planned_without_the_gpus_that_are_there() -> None:
    asked = spec(resources={"nodes": 2, "tasks_per_node": 2})

    planned = LocalBackend(GPUS).plan("/runs/run", record(asked), asked, 1)

    assert planned.accelerator == "xla"
    told = [(planned.env["LAUNCHER_ACCELERATOR"], rank.env["CUDA_VISIBLE_DEVICES"]) for rank in planned.ranks]
    assert told == [("xla", "")] * 4


def test_planning_refuses_before_it_looks_for_gpus() -> None:
    asked = spec(resources={"gpus_per_node": 4})

    with pytest.raises(UsageError, match="does not use GPUs"):
        LocalBackend(GPUS).plan("/runs/run", record(asked), asked, 1)
