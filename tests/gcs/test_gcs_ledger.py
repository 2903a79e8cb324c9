"""The ledger is the one lock, on an object store too."""

import multiprocessing

from launcher.address import storage_at
from launcher.errors import LedgerConflict
from launcher.events import AttemptStarting
from launcher.ledger import Ledger

fork = multiprocessing.get_context("fork")
WRITERS, EVENTS = 5, 8


def test_processes_that_append_at_once_lose_nothing_and_give_no_number_twice(place: str) -> None:
    ready = fork.Barrier(WRITERS)

    def write(writer: int) -> None:
        ledger = Ledger(storage_at(place))
        ready.wait()
        for number in range(EVENTS):
            ledger.append_while(lambda state: None, AttemptStarting(attempt=number, target=str(writer)))

    writers = [fork.Process(target=write, args=(writer,)) for writer in range(WRITERS)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()

    records = Ledger(storage_at(place)).records()
    assert [one.exitcode for one in writers] == [0] * WRITERS
    assert [one.number for one in records] == list(range(1, WRITERS * EVENTS + 1))
    for writer in range(WRITERS):
        own = [one.event.attempt for one in records if one.event.target == str(writer)]  # type: ignore[union-attr]
        assert own == list(range(EVENTS))


def test_who_appends_after_a_number_that_is_no_longer_the_last_is_refused(place: str) -> None:
    one, other = Ledger(storage_at(place)), Ledger(storage_at(place))
    seen = other.refresh().version
    one.append(AttemptStarting(attempt=1, target="one"), after=0)

    try:
        other.append(AttemptStarting(attempt=1, target="other"), after=seen)
        raise AssertionError("two wrote one number")
    except LedgerConflict:
        assert [record.event.target for record in other.records()] == ["one"]  # type: ignore[union-attr]
