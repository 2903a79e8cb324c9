"""The loader that enters an epoch at any batch, without a trainer."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from launcher.node.data import ExactLoader, Position, protected
from launcher.node.seeding import mix, seed_all


class Drawing(Dataset[Any]):
    """Each sample is its index and numbers from all three generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return index, torch.rand(()).item(), random.random(), np.random.rand()


def exact(loader: Any, epoch: int = 0, done: int = 0, seed: int = 1) -> ExactLoader:
    return ExactLoader(loader, seed=seed, position=lambda: Position(epoch, done), between_steps=lambda: None)


def drawn(loader: ExactLoader) -> list[Any]:
    seed_all(random.randrange(1 << 30))  # what ran before must not matter
    return [[column.tolist() for column in batch] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "sampler",
    [
        lambda data: RandomSampler(data),
        lambda data: RandomSampler(data, generator=torch.Generator()),
        lambda data: RandomSampler(data, replacement=True, num_samples=60),
        lambda data: WeightedRandomSampler(torch.arange(40.0).tolist(), 30),
        lambda data: DistributedSampler(data, num_replicas=2, rank=1),
    ],
    ids=["random", "generator", "replacement", "weighted", "distributed"],
)
def test_an_epoch_entered_in_the_middle_gives_its_remaining_batches(
    sampler: Callable[[Any], Any], workers: int
) -> None:
    def loader(done: int) -> ExactLoader:
        data = Drawing()
        return exact(DataLoader(data, 4, sampler=sampler(data), num_workers=workers), epoch=2, done=done)

    whole, rest = drawn(loader(0)), drawn(loader(3))

    assert len(whole) > 3
    assert rest == whole[3:]


def test_epochs_and_seeds_differ() -> None:
    def order(**where: int) -> list[Any]:
        return drawn(exact(DataLoader(Drawing(), 4, shuffle=True), **where))

    assert order(epoch=0) == order(epoch=0)
    assert order(epoch=0) != order(epoch=1)
    assert order(seed=1) != order(seed=2)


def test_no_batch_before_the_position_is_loaded() -> None:
    touched = []

    class Touching(Drawing):
        def __getitem__(self, index: int) -> Any:
            touched.append(index)
            return index

    list(exact(DataLoader(Touching(), 4), done=8))

    assert touched == list(range(32, 40))


def test_a_shorter_loader_goes_on_in_its_next_round() -> None:
    loader = DataLoader(Drawing(), 4, shuffle=True)
    second_round = drawn(exact(loader, done=10))

    assert drawn(exact(loader, done=13)) == second_round[3:]
    assert second_round != drawn(exact(loader, done=0))


def test_any_iterable_is_read_up_to_the_position() -> None:
    assert list(exact([1, 2, 3, 4], done=2)) == [3, 4]


def test_it_calls_back_before_each_batch_and_not_after_the_last_one_that_is_asked_for() -> None:
    log: list[Any] = []
    loader = ExactLoader(
        ["a", "b"], seed=0, position=lambda: Position(0, 0), between_steps=lambda: log.append("between")
    )
    batches = iter(loader)
    log.append(next(batches))
    log.append(next(batches))

    assert log == ["between", "a", "between", "b"]


def test_a_dataset_that_fetches_whole_batches_still_may() -> None:
    class Whole(Drawing):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(index, torch.rand(()).item()) for index in indices]

    batch = next(iter(exact(DataLoader(Whole(), 4))))

    assert batch[0].tolist() == [0, 1, 2, 3]
    assert next(iter(exact(DataLoader(Whole(), 4))))[1].tolist() == batch[1].tolist()


def test_the_users_loader_is_left_as_it_was() -> None:
    loader = DataLoader(Drawing(), 4, shuffle=True)
    dataset, batches = loader.dataset, loader.batch_sampler
    list(exact(loader))

    assert loader.dataset is dataset
    assert loader.batch_sampler is batches


def test_attributes_of_loader_and_dataset_stay_within_reach() -> None:
    data = TensorDataset(torch.zeros(8, 2))
    loader = exact(DataLoader(data, 4))

    assert len(loader) == 2
    assert loader.batch_size == 4
    assert loader.dataset.tensors is data.tensors


def test_workers_ignore_the_stop_signals() -> None:
    import signal

    class Handlers(Drawing):
        def __getitem__(self, index: int) -> Any:
            return [int(signal.getsignal(number) == signal.SIG_IGN) for number in (15, 12, 2)]

    batch = next(iter(protected(DataLoader(Handlers(), 1, num_workers=1))))

    assert [int(flag) for flag in batch] == [1, 1, 1]


def test_mix_is_the_same_everywhere_and_depends_on_each_part() -> None:
    assert mix(1, "order", 2) == mix(1, "order", 2) == 1671847539343688486
    assert len({mix(1, 2), mix(2, 1), mix(12), mix("1", 2), mix(1, 2, 0)}) == 5
