"""What cannot be made exact is named, and nothing else is."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from forked import Training, log_of
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from test_exact import spec
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset, WeightedRandomSampler
from toys import NoisyDataset

from launcher.node.deviations import deviations
from launcher.spec import JobSpec


class Plain(Dataset[Any]):
    def __init__(self, **parts: Any) -> None:
        self.parts, self.cache, self.drawn = parts, dict[int, int](), 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self.cache[index] = index
        return self.cache[index]


class Counting(Plain):
    def __getitem__(self, index: int) -> int:
        self.drawn += 1
        return self.drawn


class Odd(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


class Drawing(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.noise = random.Random(1)


def found(loader: Any = None, model: Any = None, **trainer: Any) -> list[str]:
    body = {"name": "test", "model": {"class_path": "toys.Full"}, "trainer": trainer}
    made = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    made.strategy.connect(model or BoringModel())
    return list(deviations(JobSpec.model_validate(body), made, [] if loader is None else [loader]))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Plain(), 4, shuffle=True, generator=torch.Generator()),
        DataLoader(NoisyDataset(16), 4),
        DataLoader(Subset(Plain(), [1, 2]), 2, num_workers=2),
        DataLoader(Plain(), sampler=WeightedRandomSampler([0.5] * 8, 4)),
        DataLoader(Plain(), batch_size=None),
    ],
)
def test_nothing_is_said_of_what_is_exact(loader: Any) -> None:
    assert found(loader) == []


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (DataLoader(Counting(), 4), "Counting.__getitem__ changes self.drawn"),
        (DataLoader(Plain(), sampler=Odd()), "the order comes from Odd"),
        (DataLoader(Plain(), batch_sampler=Odd()), "the order comes from Odd"),  # type: ignore[arg-type]
        (DataLoader(Plain(rng=np.random.default_rng())), "train_dataloader.dataset.parts['rng'] is a random generator"),
        (DataLoader(Plain(all=[1, [random.Random(1)]])), "train_dataloader.dataset.parts['all'][1][0] is a random"),
        (
            DataLoader(Subset(Plain(t=torch.Generator()), [1])),
            "dataset.dataset.parts['t'] is a random",
        ),
    ],
)
def test_what_cannot_be_repaired_is_named(loader: Any, said: str) -> None:
    (sentence,) = found(loader)

    assert said in sentence


def test_generators_in_the_model_and_clocks_in_the_trainer_are_named() -> None:
    assert "model.noise is a random generator" in found(model=Drawing())[0]
    assert "trainer.max_time goes by the clock" in found(max_time="00:01:00:00")[0]
    assert "trainer.val_check_interval goes by the clock" in found(val_check_interval="00:00:05:00")[0]


def test_a_sampler_of_the_standard_kind_with_a_subclass_is_named() -> None:
    class Own(RandomSampler):
        pass

    assert "the order comes from Own" in found(DataLoader(Plain(), sampler=Own(Plain())))[0]


def test_it_is_said_when_training_starts(launch: Training) -> None:
    run = launch.run(spec(max_epochs=1, max_time="00:01:00:00"))

    assert "not exact when resumed: trainer.max_time goes by the clock" in log_of(run)
    assert log_of(run).count("not exact") == 1
