"""When an attempt's end is put down to a host."""

from typing import Any

import pytest

from launcher.backends.slurm.blame import Failed, faulty
from launcher.kinds import Kind

HOSTS = ("n1", "n2", "n3", "n4")


def unfit(*nodes: int) -> dict[str, Any]:
    """What a rank recorded that found them so."""
    return {"kind": Kind.HOSTS, "nodes": list(nodes)}


@pytest.mark.parametrize(
    ("records", "hosts"),
    [
        ([unfit(1)], ("n2",)),
        ([unfit(3), unfit(1)], ("n2", "n4")),
        ([unfit(1, 2), unfit(3)], ()),  # most of them: it is nothing of theirs
        ([unfit()], ()),
        ([{"kind": Kind.HOSTS}], ()),  # of another launcher
        ([unfit(7)], ()),
    ],
)
def test_hosts_that_were_found_unfit_are_at_fault_unless_most_are(
    records: list[dict[str, Any]], hosts: tuple[str, ...]
) -> None:
    assert faulty(Failed(Kind.HOSTS, "n1"), None, records, HOSTS) == hosts


@pytest.mark.parametrize(
    ("now", "before", "hosts"),
    [
        (Failed(Kind.KILLED, "n2"), Failed(Kind.KILLED, "n2"), ("n2",)),
        (Failed(Kind.CRASH, "n2"), Failed(Kind.MEMORY, "n2"), ("n2",)),
        (Failed(Kind.KILLED, "n2"), None, ()),
        (Failed(Kind.KILLED, "n2"), Failed(Kind.KILLED, "n3"), ()),
        (Failed(Kind.KILLED, "n2"), Failed(Kind.PEER, "n2"), ()),  # an echo
        (Failed(Kind.STORAGE, "n2"), Failed(Kind.STORAGE, "n2"), ()),  # which all hosts share
        (Failed(Kind.KILLED, None), Failed(Kind.KILLED, None), ()),
    ],
)
def test_a_host_where_ranks_end_twice_in_a_row_is_at_fault(
    now: Failed, before: Failed | None, hosts: tuple[str, ...]
) -> None:
    assert faulty(now, before, [], HOSTS) == hosts
