"""A run goes on with more or fewer ranks as if it had them from the beginning."""

import json
from pathlib import Path
from typing import Any

import pytest
from forked import Training, last_checkpoint, log_of, same

from launcher.ledger import ResumeRequested
from launcher.run import Run
from launcher.spec import JobSpec


def spec(trace: Path, ranks: int, *, model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Four epochs of 10 batches on each of four ranks, the last smaller; by three in a step, the last one short."""
    trainer = {
        "max_epochs": 4,
        "accumulate_grad_batches": 3,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger"},
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        **more.pop("trainer", {}),
    }
    data = {"size": 75, "batch_size": 2, **more.pop("data", {})}
    return {
        "model": {"class_path": "toys.Recorded", "init_args": {"trace": str(trace), **(model or {})}},
        "data": {"class_path": "toys.NoisyData", "init_args": data},
        "trainer": trainer,
        "resources": {"tasks_per_node": ranks, "cpus_per_task": 1},
        "checkpoint": {"every_n_steps": 2},
        "retry": {"infra": 0},
        **more,
    }


def killed(body: dict[str, Any], step: int) -> dict[str, Any]:
    ranks = body["resources"]["tasks_per_node"]
    kill = {"class_path": "toys.Signal", "init_args": {"at": [step], "ranks": [ranks - 1]}}
    return {**body, "trainer": {**body["trainer"], "callbacks": [*body["trainer"].get("callbacks", []), kill]}}


def resume(run: Run, body: dict[str, Any]) -> None:
    """What `launcher resume --set ...` writes down."""
    resolved = JobSpec.model_validate({"name": "test", **body}).model_dump(mode="json", exclude_unset=True)
    run.ledger.append(ResumeRequested(by="test", overrides=("...",), spec=resolved), after=run.ledger.refresh().version)


def chain(launch: Training, bodies: list[dict[str, Any]], kills: list[int]) -> Run:
    """A run that is killed after each of these steps, and goes on with the next spec."""
    run = launch.create(killed(bodies[0], kills[0]), "chain")
    for body, step in zip(bodies[1:], [*kills[1:], None], strict=True):
        assert launch.drive(run).state == "failed", log_of(run)
        resume(run, body if step is None else killed(body, step))
    assert launch.drive(run).state == "finished", log_of(run)
    return run


def steps(trace: Path) -> list[list[Any]]:
    """What counted in each optimizer step, micro-batch by micro-batch, in the order of ranks; the last attempt's."""
    seen = [json.loads(line) for line in trace.read_text().splitlines()]
    found = []
    for step in range(max(one["step"] for one in seen) + 1):
        of_step = [one for one in seen if one["step"] == step]
        last = max(one["attempt"] for one in of_step)
        ranked = sorted((one for one in of_step if one["attempt"] == last), key=lambda one: one["rank"])
        found.append([one["what"] for one in ranked if one["counts"]])
    return found


def begun_at(run: Run) -> list[int | None]:
    return [one.first_step for one in run.ledger.refresh().attempts]


def test_each_step_sees_the_samples_of_the_undisturbed_run(launch: Training, tmp_path: Path) -> None:
    model = {"lr_every": 0}
    whole = launch.run(spec(tmp_path / "whole", 4, model=model), "whole")
    bodies = [spec(tmp_path / "torn", ranks, model=model, data={"num_workers": 2}) for ranks in (4, 2, 3, 4)]
    run = chain(launch, bodies, [3, 7, 13])

    assert begun_at(run) == [0, 2, 6, 12]
    assert [len(step) for step in steps(tmp_path / "whole")] == [12, 12, 12, 4] * 4
    assert steps(tmp_path / "torn") == steps(tmp_path / "whole")
    a, b = last_checkpoint(whole), last_checkpoint(run)
    assert a["global_step"] == b["global_step"] == 16
    for name, weights in a["state_dict"].items():
        assert weights.allclose(b["state_dict"][name], atol=1e-5), name


def exact(trace: Path, ranks: int, **more: Any) -> dict[str, Any]:
    """Four epochs of 11 batches on each of four ranks, by four in a step, the last one short."""
    trainer = {"accumulate_grad_batches": 4, **more.pop("trainer", {})}
    return spec(trace, ranks, exact="world-size", trainer=trainer, data={"size": 85}, **more)


def differences(one: Run, other: Run) -> list[str]:
    """Parts of two checkpoints that are not the same to the last bit."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    parts = ["global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision"]
    return [part for part in parts if not same(a.get(part), b.get(part))]


EXACT = {
    "dropout and batch norm": ({"norm": True}, {}),
    "a schedule, clipping": ({"lr_every": 1}, {"gradient_clip_val": 0.1}),
    "fp16 with a scaler": ({}, {"precision": "16-mixed"}),
    "parameters that are not always used": ({"spare": True}, {"strategy": "ddp_find_unused_parameters_true"}),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_same_bits_on_four_two_one_and_four_ranks(launch: Training, tmp_path: Path, case: str) -> None:
    model, trainer = EXACT[case]
    whole = launch.run(exact(tmp_path / "whole", 4, model=model, trainer=trainer), "whole")
    bodies = [exact(tmp_path / "torn", ranks, model=model, trainer=trainer) for ranks in (4, 2, 1, 4)]
    run = chain(launch, bodies, [3, 5, 9])

    assert begun_at(run) == [0, 2, 4, 8]
    assert differences(whole, run) == []
    assert steps(tmp_path / "torn") == steps(tmp_path / "whole")
