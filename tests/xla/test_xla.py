"""trainer.strategy: xla, where PJRT_DEVICE is CPU: XLA computes, gloo averages gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from driven import Driven
from forked import last_checkpoint, log_of, same
from test_elastic import resume
from test_exact import differences, spec

from launcher.run import failures
from launcher.status import status

REPOSITORY = Path(__file__).parents[2]
TYPES = {
    "32-true": ("float32", "float32"),
    "bf16-mixed": ("bfloat16", "float32"),
    "bf16-true": ("bfloat16", "bfloat16"),
}
"""What layers compute in, and what parameters are."""


def callback(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": arguments}


def toy(**trainer: Any) -> dict[str, Any]:
    return {
        "model": {"class_path": "toys.Classifier"},
        "data": {"class_path": "toys.NoisyData"},
        "trainer": {"strategy": "xla", "max_steps": 2, "logger": False, **trainer},
        "retry": {"infra": 0},
    }


def test_an_interrupted_run_ends_with_the_same_bits(there: Driven) -> None:
    """Dropout on the device, batch norm, augmentation in a worker, a scheduler, metrics of the epoch."""
    body = spec({"scheduler": "plateau"}, ranks=2, workers=1, strategy="xla", max_epochs=2)
    once = callback("toys.Interrupt", place="first step", number="SIGTERM", ranks=[0])
    again = callback("toys.Interrupt", place="mid-epoch", number="SIGKILL", ranks=[1])
    whole = there.run(body, "whole")
    torn = there.run({**body, "trainer": {**body["trainer"], "callbacks": [once, again]}}, "torn")

    assert len(torn.ledger.refresh().attempts) == 3, log_of(torn)
    assert differences(whole, torn) == []


def test_precision_is_what_layers_see_within_a_forward_pass(there: Driven, tmp_path: Path) -> None:
    def body(precision: str) -> dict[str, Any]:
        return toy(precision=precision, callbacks=[callback("toys.Types", path=str(tmp_path / precision))])

    runs = {precision: there.create(body(precision), precision) for precision in TYPES}
    there.drive(*runs.values())

    for precision, (computes, keeps) in TYPES.items():
        shown = status(runs[precision])
        assert (shown["precision"], shown["compute"]) == (precision, computes), log_of(runs[precision])
        kept = [f"torch.{keeps} on xla"]
        assert json.loads((tmp_path / precision).read_text()) == {
            "computed": [f"torch.{computes} on xla"],
            "in forward": kept,
            "parameters": kept,
            "gradients": kept,
            "optimizer": kept,
        }


def test_what_the_users_own_code_saves_can_be_loaded_anywhere(there: Driven, tmp_path: Path) -> None:
    own = callback("lightning.pytorch.callbacks.ModelCheckpoint", dirpath=str(tmp_path), filename="own")
    run = there.run({**toy(max_steps=-1, max_epochs=1, callbacks=[own]), "model": {"class_path": "toys.Tied"}})

    saved = torch.load(tmp_path / "own.ckpt", weights_only=True)  # where there is no torch_xla

    assert torch.equal(saved["state_dict"]["net.0.weight"], saved["state_dict"]["net.2.weight"])  # as before training
    assert {one.device.type for one in saved["state_dict"].values()} == {"cpu"}
    assert same(saved["state_dict"], last_checkpoint(run)["state_dict"])
    assert same(saved["optimizer_states"], last_checkpoint(run)["optimizer_states"])


def digits(ranks: int, strategy: str, kill: int | None = None) -> dict[str, Any]:
    """Three epochs of 20 steps on two ranks; killed after a step, each save but the last of which counts."""
    trainer: dict[str, Any] = {"max_epochs": 3, "strategy": strategy, "logger": False}
    if kill:
        trainer["callbacks"] = [callback("toys.Signal", at=[kill], ranks=[ranks - 1], saved=kill // 8 * 8)]
    return {
        "seed_everything": 1,
        "model": {"class_path": "model.mnist.MNISTClassifier"},
        "data": callback("model.digits.DigitsDataModule", batch_size=32),
        "trainer": trainer,
        "resources": {"tasks_per_node": ranks, "cpus_per_task": 1},
        "checkpoint": {"every_n_steps": 8},
        "retry": {"infra": 0},
    }


def furthest(one: Any, other: Any) -> float:
    """The largest difference of any two values in two states."""
    if isinstance(one, torch.Tensor):
        return float((one - other).abs().max())
    parts = one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
    return max((furthest(one[part], other[part]) for part in parts), default=0.0)


def test_a_run_moves_from_ddp_to_xla_and_back(here: Driven, there: Driven) -> None:
    whole = here.run(digits(2, "auto"), "whole")
    run = here.create(digits(2, "auto", kill=13), "moved")
    assert here.drive(run).state == "failed"
    resume(run, digits(2, "xla", kill=29))
    assert there.drive(run).state == "failed"
    resume(run, digits(1, "xla", kill=45))
    assert there.drive(run).state == "failed"
    resume(run, digits(2, "auto"))
    assert here.drive(run).state == "finished", log_of(run)

    assert [one.first_step for one in run.ledger.refresh().attempts] == [0, 8, 24, 40]
    a, b = last_checkpoint(whole), last_checkpoint(run)
    assert a["global_step"] == b["global_step"] == 60
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert 0 < furthest(a["state_dict"], b["state_dict"]) < 1e-5  # both have computed
    assert furthest(a["optimizer_states"], b["optimizer_states"]) < 1e-5


def test_ranks_that_would_not_be_what_was_planned_do_not_train(there: Driven) -> None:
    run = there.create({**toy(), "env": {"vars": {"CPU_NUM_DEVICES": "2"}}})

    assert there.drive(run).state == "failed"
    (failure,) = failures(run, 1)
    assert (failure["kind"], failure["type"]) == ("spec", "WrongWorld")
    assert "here PJRT has 2; unset CPU_NUM_DEVICES" in failure["message"]


def test_ddp_and_xla_learn_mnist_alike(xla_python: Path, tmp_path: Path) -> None:
    """The job as a user has it, bf16-mixed on two ranks; by the command line, so in processes of their own."""
    data = Path(os.environ.get("LAUNCHER_DATA", REPOSITORY / "data")) / "MNIST/raw"
    if not data.exists() and "CI" not in os.environ:
        pytest.skip(f"no MNIST in {data}; set LAUNCHER_DATA to the folder above MNIST/raw")

    def accuracy(python: Path, strategy: str) -> float:
        said = [f"trainer.{one}" for one in (f"strategy={strategy}", "max_epochs=2", "enable_model_summary=false")]
        settings = [word for setting in said for word in ("--set", setting)]
        command = [python.with_name("launcher"), "run", "jobs/mnist.yaml", "--name", strategy, "--json", *settings]
        env = {**os.environ, "LAUNCHER_RUNS": str(tmp_path)}
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        log = (tmp_path / strategy / "attempts/001/logs/rank-00000.log").read_text()
        assert ("XLA on PJRT_DEVICE=CPU" in log) == (strategy == "xla")
        shown = json.loads(done.stdout.splitlines()[-1])
        assert (shown["precision"], shown["compute"]) == ("bf16-mixed", "bfloat16")
        return float(shown["metrics"]["test_acc"])

    xla, ddp = accuracy(xla_python, "xla"), accuracy(Path(sys.executable), "ddp")
    assert ddp > 0.95
    assert abs(xla - ddp) <= 0.005


def test_checking_refuses_float16_with_the_word_to_use(xla_python: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps({"name": "test", "model": {"class_path": "model.mnist.MNISTClassifier"}}))
    settings = ["--set", "trainer.strategy=xla", "--set", "trainer.precision=16-mixed"]
    done = subprocess.run(
        [xla_python.with_name("launcher"), "check", job, *settings], capture_output=True, text=True, check=False
    )

    assert done.returncode == 64
    assert "use 'bf16-mixed'" in done.stderr
