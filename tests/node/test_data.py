"""The loader that enters an epoch at any batch, without a trainer."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from launcher.errors import LauncherError
from launcher.node.data import ExactLoader, NotResumable, require_resumable
from launcher.node.order import Position
from launcher.node.seeding import mix, seed_all


class Drawing(Dataset[Any]):
    """Each sample is its index and numbers from all three generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return index, torch.rand(()).item(), random.random(), np.random.rand()


def exact(loader: Any, epoch: int = 0, done: int = 0, seed: int = 1) -> ExactLoader:
    return ExactLoader(loader, lambda: Position(mix(seed, epoch), mix(seed, epoch, "rank 0"), epoch, done))


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


def test_any_number_of_ranks_goes_through_the_same_order() -> None:
    data = Drawing()
    alone = [index for batch in drawn(exact(DataLoader(data, 4, shuffle=True), epoch=3)) for index in batch[0]]
    ranks = [
        [
            index
            for batch in drawn(exact(DataLoader(data, 4, sampler=DistributedSampler(data, 2, rank)), epoch=3))
            for index in batch[0]
        ]
        for rank in range(2)
    ]

    assert [index for pair in zip(*ranks, strict=True) for index in pair] == alone


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


def test_it_calls_back_before_each_batch_of_a_pass_but_the_first() -> None:
    log: list[Any] = []
    loader = ExactLoader(["a", "b"], lambda: Position(0, 0, 0, 0), lambda: log.append("between"))
    batches = iter(loader)
    log.append(next(batches))
    log.append(next(batches))

    assert log == ["a", "between", "b"]


def test_ranks_draw_other_numbers_for_the_samples_of_one_order() -> None:
    data = DataLoader(Drawing(), 4, shuffle=True)
    one, other = (drawn(ExactLoader(data, lambda rank=rank: Position(1, rank, 0, 0))) for rank in (5, 6))

    assert [batch[0] for batch in one] == [batch[0] for batch in other]
    assert all(a[1] != b[1] for a, b in zip(one, other, strict=True))


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

    batch = next(iter(exact(DataLoader(Handlers(), 1, num_workers=1))))

    assert [int(flag) for flag in batch] == [1, 1, 1]


def test_mix_is_the_same_everywhere_and_depends_on_each_part() -> None:
    assert mix(1, "order", 2) == mix(1, "order", 2) == 1671847539343688486
    assert len({mix(1, 2), mix(2, 1), mix(12), mix("1", 2), mix(1, 2, 0)}) == 5


class Numbers(IterableDataset[Any]):
    """Counts up; each worker has its own share, of another length. Each item comes with a random number."""

    def __init__(self, length: int = 30) -> None:
        self.length, self.at = length, 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        while self.at < self.length // workers + 3 * worker:
            self.at += 1
            yield worker * 1000 + self.at, torch.rand(()).item()
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("done", [1, 2, 5, 7])
def test_a_stream_goes_on_where_its_state_says(workers: int, done: int, batch_size: int | None) -> None:
    def loader(start: int) -> ExactLoader:
        return exact(DataLoader(Numbers(), batch_size, num_workers=workers), done=start)

    whole = loader(0)
    batches = [next(whole_pass) for whole_pass in [iter(whole)] for _ in range(done)]
    state = whole.stream_state(done)
    resumed = loader(done)
    resumed.resume_stream(state)

    as_lists = [[torch.as_tensor(column).tolist() for column in batch] for batch in (*batches, *resumed)]
    assert as_lists == [[torch.as_tensor(column).tolist() for column in batch] for batch in loader(0)]


def test_without_workers_a_stream_goes_on_from_pass_to_pass() -> None:
    loader = exact(DataLoader(Numbers(1000), 4))
    first_pass = iter(loader)
    seen = [next(first_pass)[0].tolist() for _ in range(2)]
    other = exact(DataLoader(Numbers(1000), 4))
    other.resume_stream(loader.stream_state(0))

    assert seen == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert next(iter(loader))[0].tolist() == next(iter(other))[0].tolist() == [9, 10, 11, 12]


def test_a_stream_with_another_number_of_workers_is_refused() -> None:
    loader = exact(DataLoader(Numbers(), 4, num_workers=2))
    next(iter(loader))
    other = exact(DataLoader(Numbers(), 4))
    other.resume_stream(loader.stream_state(1))

    with pytest.raises(LauncherError, match="have left it"):
        next(iter(other))


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(100))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless(), 4), "the IterableDataset Endless cannot be saved. Add `state_dict"),
        (DataLoader(Numbers(), 4, num_workers=1, persistent_workers=True), "set persistent_workers=False"),
        (zip("ab", "cd", strict=True), "the position of a zip cannot be saved; add `state_dict"),
    ],
)
def test_what_cannot_be_resumed_is_refused_with_what_to_add(loader: Any, message: str) -> None:
    with pytest.raises(NotResumable, match=message):
        require_resumable(loader, "train_dataloader")


def test_a_loader_with_a_state_of_its_own_is_put_back_to_it() -> None:
    class Own:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self) -> Iterator[int]:
            while self.at < 10:
                self.at += 1
                yield self.at

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    require_resumable(Own(), "train_dataloader")
    loader = exact(Own())
    batches = iter(loader)
    drawn_ahead = [next(batches) for _ in range(5)]
    other = exact(Own(), done=3)
    other.resume_stream(loader.stream_state(3))

    assert drawn_ahead == [1, 2, 3, 4, 5]
    assert list(other) == [4, 5, 6, 7, 8, 9, 10]
