"""A run goes on with more or fewer ranks as if it had them from the beginning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from forked import Training, last_checkpoint, log_of, same
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from test_exact import curves
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from launcher.elastic import GlobalBatch
from launcher.errors import UsageError
from launcher.events import ResumeRequested
from launcher.node.elastic import CannotShare, VirtualRanks
from launcher.node.shares import Share
from launcher.node.sums import NotExact, Tree, TreeSums
from launcher.run import Run
from launcher.spec import JobSpec

# A worker ignores the first; the second depends on the machine, and on a Trainer that is made without the launcher.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:The `srun` command is available")


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
    saved = (step - 1) // 2 * 2 or -1
    kill = {"class_path": "toys.Signal", "init_args": {"at": [step], "ranks": [ranks - 1], "saved": saved}}
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


def epochs(run: Run) -> list[dict[str, float]]:
    """What was logged of each epoch's training."""
    rows = [{name: float(value) for name, value in row.items()} for row in curves(run) if "loss_epoch" in row]
    return [{name: row[name] for name in ("step", "epoch", "loss_epoch", "accuracy")} for row in rows]


def validated_after(run: Run) -> list[str]:
    return [row["step"] for row in curves(run) if "val_loss" in row]


def test_each_step_sees_the_samples_of_the_undisturbed_run(launch: Training, tmp_path: Path) -> None:
    whole = launch.run(spec(tmp_path / "whole", 4), "whole")
    bodies = [spec(tmp_path / "torn", ranks, data={"num_workers": 2}) for ranks in (4, 2, 3, 4)]
    run = chain(launch, bodies, [3, 7, 13])

    assert begun_at(run) == [0, 2, 6, 12]
    assert [len(step) for step in steps(tmp_path / "whole")] == [12, 12, 12, 4] * 4
    assert steps(tmp_path / "torn") == steps(tmp_path / "whole")
    assert epochs(run) == [pytest.approx(epoch, abs=1e-3) for epoch in epochs(whole)]
    assert validated_after(run) == validated_after(whole)
    a, b = last_checkpoint(whole), last_checkpoint(run)
    assert a["global_step"] == b["global_step"] == 16
    for name, weights in a["state_dict"].items():
        assert weights.allclose(b["state_dict"][name], atol=1e-5), name


GROWING: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "a validation within the epoch, a schedule": (
        {"lr_every": 8},
        {"limit_train_batches": 16, "val_check_interval": 8},
        [4] * 16,
    ),
    "short last steps": ({}, {"limit_train_batches": 0.38}, [4, 4, 4, 2] * 4),
}


@pytest.mark.parametrize("case", GROWING)
def test_one_rank_becomes_more(launch: Training, tmp_path: Path, case: str) -> None:
    model, trainer, sizes = GROWING[case]
    trainer = {"accumulate_grad_batches": 4, **trainer}
    whole = launch.run(spec(tmp_path / "whole", 1, model=model, trainer=trainer), "whole")
    run = chain(launch, [spec(tmp_path / "torn", ranks, model=model, trainer=trainer) for ranks in (1, 2, 4)], [3, 7])

    assert begun_at(run) == [0, 2, 6]
    assert [len(step) for step in steps(tmp_path / "whole")] == sizes
    assert steps(tmp_path / "torn") == steps(tmp_path / "whole")
    assert epochs(run) == [pytest.approx(epoch, abs=1e-3) for epoch in epochs(whole)]
    assert validated_after(run) == validated_after(whole)
    assert same(last_checkpoint(run)["lr_schedulers"], last_checkpoint(whole)["lr_schedulers"])


def test_a_number_of_ranks_that_does_not_divide_the_global_batch_starts_nothing(
    launch: Training, tmp_path: Path
) -> None:
    run = launch.create(killed(spec(tmp_path / "trace", 2), 3))
    assert launch.drive(run).state == "failed"
    resume(run, spec(tmp_path / "trace", 4))

    with pytest.raises(
        UsageError, match=r"4 ranks cannot share the 6 micro-batches .*possible numbers of ranks: 1, 2, 3, 6"
    ):
        launch.drive(run)
    assert begun_at(run) == [0]


def on_one_rank(model: LightningModule, *, exact: bool = False, ranks: int = 2, **trainer: Any) -> Trainer:
    """A trainer of one rank that goes on with what two have begun, its places taken."""
    virtual = VirtualRanks(Share(GlobalBatch(ranks, 2), 1, 0))
    sums = TreeSums(virtual)
    made = Trainer(
        accelerator="cpu",
        callbacks=[virtual, *([sums] if exact else []), *trainer.pop("callbacks", [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        max_epochs=1,
        **trainer,
    )
    virtual.attach(made, model)
    if exact:
        sums.attach(made, model)
    return made


def test_what_decides_by_itself_how_much_a_step_has_forbids_another_number_of_ranks() -> None:
    with pytest.raises(CannotShare, match=r"1 ranks cannot .* 2 have begun: with manual .* resume with 2 ranks"):
        on_one_rank(toys.Full(manual=True))
    with pytest.raises(CannotShare, match="Schedule changes"):
        on_one_rank(toys.Full(), callbacks=[toys.Schedule({"0": 2})])


def test_data_that_cannot_be_dealt_to_others_is_named() -> None:
    model = toys.Classifier()
    with pytest.raises(CannotShare, match=r"stream of train_dataloader \(Stream\)"):
        on_one_rank(model).fit(model, toys.StreamData())
    with pytest.raises(CannotShare, match="use_distributed_sampler is false"):
        on_one_rank(model, use_distributed_sampler=False).fit(model, toys.NoisyData())


def test_a_sampler_of_the_user_deals_to_as_many_ranks_as_before() -> None:
    model, data = toys.Classifier(), toys.NoisyDataset(9)
    trainer = on_one_rank(model)
    (virtual,) = (one for one in trainer.callbacks if isinstance(one, VirtualRanks))
    theirs = DistributedSampler(data, 1, 0, shuffle=False, seed=3, drop_last=True)

    loader = virtual._prepared(trainer, DataLoader(data, 2, sampler=theirs), shuffle=True)

    assert isinstance(loader, DataLoader)
    assert isinstance(loader.sampler, DistributedSampler)
    assert (loader.sampler.num_replicas, loader.sampler.seed, loader.sampler.drop_last) == (2, 3, True)
    assert list(loader.batch_sampler) == [[0, 2], [4, 6]]


def test_a_validation_within_a_step_is_named() -> None:
    trainer = on_one_rank(toys.Classifier(), val_check_interval=3)
    (virtual,) = (one for one in trainer.callbacks if isinstance(one, VirtualRanks))

    with pytest.raises(CannotShare, match="validation after 3 batches, within a step of 2"):
        virtual.begin(trainer, 12, 0)


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
    "batch norm, a schedule, clipping": ({"norm": True, "lr_every": 1}, {"gradient_clip_val": 0.1}),
    "fp16, parameters that are not always used": (
        {"spare": True},
        {"precision": "16-mixed", "strategy": "ddp_find_unused_parameters_true"},
    ),
}
"""All of them with dropout and augmentation."""


@pytest.mark.parametrize("case", EXACT)
def test_the_same_bits_on_four_two_one_and_four_ranks(launch: Training, tmp_path: Path, case: str) -> None:
    model, trainer = EXACT[case]
    whole = launch.run(exact(tmp_path / "whole", 4, model=model, trainer=trainer), "whole")
    bodies = [exact(tmp_path / "torn", ranks, model=model, trainer=trainer) for ranks in (4, 2, 2, 1, 4)]
    run = chain(launch, bodies, [3, 5, 7, 9])

    assert begun_at(run) == [0, 2, 4, 6, 8]
    assert differences(whole, run) == []
    assert steps(tmp_path / "torn") == steps(tmp_path / "whole")


class OwnStrategy(DDPStrategy):
    pass


@pytest.mark.parametrize(
    ("layer", "trainer", "said"),
    [
        (torch.nn.SyncBatchNorm(4), {}, "SyncBatchNorm takes its statistics"),
        (torch.nn.Embedding(4, 4, sparse=True), {}, "sparse gradients"),
        (None, {"callbacks": [toys.Schedule({"0": 2})]}, "Schedule changes"),
        (None, {"strategy": DDPStrategy(ddp_comm_hook=print)}, "ddp_comm_hook"),
        (None, {"strategy": DDPStrategy(gradient_as_bucket_view=True)}, "gradient_as_bucket_view"),
        (None, {"strategy": OwnStrategy()}, "OwnStrategy adds up gradients in its own way"),
    ],
    ids=["batch norm", "sparse", "schedule", "hook", "views", "strategy"],
)
def test_what_cannot_have_the_same_bits_is_named(layer: Any, trainer: dict[str, Any], said: str) -> None:
    model = toys.Classifier()
    model.layer = layer

    with pytest.raises(NotExact, match=f"exact: world-size: .*{said}.*; leave `exact` out, or change that"):
        on_one_rank(model, exact=True, ranks=1, **trainer)


@pytest.mark.parametrize("present", [range(8), [0, 1, 4, 5], [0, 1, 2, 4, 5, 6], [3], [0, 4, 5, 6, 7]])
def test_partial_sums_make_one_tree_whatever_is_left_out(present: list[int]) -> None:
    leaves = dict(zip(present, torch.randn(len(present), 99, generator=torch.Generator().manual_seed(3)), strict=True))
    parameter = torch.zeros(99)

    def summed(slots: range) -> torch.Tensor | None:
        if len(slots) == 1:
            return leaves.get(slots[0])
        parts = [summed(slots[: len(slots) // 2]), summed(slots[len(slots) // 2 :])]
        there = [part for part in parts if part is not None]
        return there[0] + there[1] if len(there) == 2 else there[0] if there else None

    tree, (*first, last) = Tree(), leaves
    for slot in first:
        tree.add(slot, {parameter: leaves[slot].clone()})
        assert len(tree) <= 4
    tree.make_room(last)

    assert same(tree.with_last(parameter, leaves[last].clone()), summed(range(8)))
