"""Who may share a global batch, and which micro-batches each then has."""

import pytest

from launcher.backends.local import LocalBackend, Machine
from launcher.elastic import GlobalBatch, allowed_sizes, check_size
from launcher.errors import UsageError
from launcher.node.shares import Share
from launcher.record import Record
from launcher.spec import JobSpec


def spec(accumulate: int = 1, exact: str = "resume", ranks: int | None = None, cpus: int | None = 1) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "x",
            "model": {"class_path": "a.B"},
            "trainer": {"accumulate_grad_batches": accumulate},
            "exact": exact,
            "resources": {"tasks_per_node": ranks, "cpus_per_task": cpus},
        }
    )


def test_all_divisors_of_the_global_batch_can_share_it() -> None:
    assert allowed_sizes(spec(3), 4) == (1, 2, 3, 4, 6, 12)
    assert allowed_sizes(spec(), 4) == (1, 2, 4)
    assert allowed_sizes(spec(4, "world-size"), 2) == (1, 2, 4, 8)


def test_another_number_is_refused_with_those_that_are_possible() -> None:
    check_size(spec(3), 4, 6, "cpu")
    with pytest.raises(UsageError, match=r"5 ranks cannot share the 12 micro-batches .*: 1, 2, 3, 4, 6, 12$"):
        check_size(spec(3), 4, 5, "cpu")


def test_what_was_not_written_down_forbids_nothing() -> None:
    check_size(spec(3), None, 5, "cpu")


@pytest.mark.parametrize(
    ("body", "created_with", "accelerator", "said"),
    [
        (spec(3, "world-size"), 4, "cpu", "accumulate_grad_batches 3 is no power of two; take 2 or 4"),
        (spec(2, "world-size"), 6, "cpu", "6 ranks, with which the run is created, are no power of two; take 4 or 8"),
        (spec(2, "world-size", cpus=None), 4, "cpu", "set resources.cpus_per_task"),
    ],
)
def test_the_exact_mode_says_what_it_lacks(body: JobSpec, created_with: int, accelerator: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_size(body, created_with, created_with, accelerator)


def test_on_gpus_the_exact_mode_does_not_count_threads() -> None:
    check_size(spec(2, "world-size", cpus=None), 4, 2, "gpu")


def test_no_attempt_is_planned_that_cannot_go_on() -> None:
    record = Record(
        id="x", name="x", created=0.0, target="local", spec={}, spec_file="", spec_text="", workdir=".", ranks=4
    )
    backend = LocalBackend(Machine(cpus=8, gpus=()))

    assert len(backend.plan("run", record, spec(3, ranks=6), 2).ranks) == 6
    with pytest.raises(UsageError, match="possible numbers of ranks: 1, 2, 3, 4, 6, 12"):
        backend.plan("run", record, spec(3, ranks=8), 2)


def shares(ranks: int, accumulate: int, world_size: int) -> list[Share]:
    return [Share(GlobalBatch(ranks, accumulate), world_size, rank) for rank in range(world_size)]


CASES = [
    (ranks, accumulate, world_size)
    for ranks in (1, 2, 3, 4)
    for accumulate in (1, 2, 3, 4)
    for world_size in GlobalBatch(ranks, accumulate).sizes()
]


@pytest.mark.parametrize(("ranks", "accumulate", "world_size"), CASES)
def test_each_step_has_the_micro_batches_that_it_had_on_the_original_ranks(
    ranks: int, accumulate: int, world_size: int
) -> None:
    for epoch in range(1, 3 * accumulate):
        all_of_them = shares(ranks, accumulate, world_size)
        (own,) = {share.own(epoch) for share in all_of_them}
        for step, begun in enumerate(range(0, epoch, accumulate)):
            first = step * all_of_them[0].accumulate
            turns = range(first, min(first + all_of_them[0].accumulate, own))
            dealt = [share.micro_batch(turn, epoch) for share in all_of_them for turn in turns]
            batches = range(begun, min(begun + accumulate, epoch))
            expected = [(rank, batch) for rank in range(ranks) for batch in batches]
            assert [(one.rank, one.batch) for one in dealt if one.counts] == expected
            assert {(one.rank, one.batch) for one in dealt} == set(expected)
            assert [one.slot for one in dealt if one.counts] == sorted(one.slot for one in dealt if one.counts)
            assert len(turns) > 0


@pytest.mark.parametrize(("ranks", "accumulate", "world_size"), CASES)
def test_a_position_is_the_same_for_any_number_of_ranks(ranks: int, accumulate: int, world_size: int) -> None:
    for epoch in range(1, 3 * accumulate):
        for share in shares(ranks, accumulate, world_size):
            for done in [*range(0, epoch, accumulate), epoch]:
                assert share.virtual(share.own(done), epoch) == done


def test_where_nothing_has_changed_a_batch_is_that_of_its_own_rank() -> None:
    for share in shares(3, 2, 3):
        for epoch in (7, None):
            assert [share.micro_batch(own, epoch)[:3] for own in range(7)] == [(share.rank, n, True) for n in range(7)]
            assert [share.virtual(own, epoch) for own in range(8)] == list(range(8))


def test_a_rank_that_has_less_in_a_short_step_begins_with_what_does_not_count() -> None:
    middle = shares(4, 3, 3)[1]

    assert [middle.micro_batch(own, 10)[:3] for own in (12, 13)] == [(2, 9, False), (2, 9, True)]
