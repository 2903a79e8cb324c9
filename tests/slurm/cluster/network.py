"""The network of a cluster: a bridge on this machine, which is the login node, and a cable to each machine."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from slurm.cluster.errors import ClusterError
from slurm.cluster.layout import Addresses, Layout, networks_for
from slurm.cluster.shell import output

_LOCK = Path("/run")
"""Held while a network is chosen: two clusters that come up at once must not take the same."""


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a file or folder that exists, against others who do; gives the number of its inode."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def interfaces() -> list[dict[str, Any]]:
    """Of this machine, as `ip` describes them."""
    found: list[dict[str, Any]] = json.loads(output(["ip", "-json", "address", "show"]))
    return [one for one in found if one]


def bridge_of(layout: Layout) -> dict[str, Any] | None:
    """Raises ClusterError where a cluster of the same name has another folder."""
    for one in interfaces():
        if one["ifname"] == layout.bridge:
            # A crash between the bridge and its alias leaves one without: it is nobody else's.
            if one.get("ifalias", str(layout.folder)) != str(layout.folder):
                raise ClusterError(
                    f"there is a cluster {layout.name!r} in {one['ifalias']}; take another --name, or its --state"
                )
            return one
    return None


def addresses_of(layout: Layout) -> Addresses | None:
    """None while the cluster has no network."""
    bridge = bridge_of(layout)
    for address in bridge["addr_info"] if bridge else ():
        if address["family"] == "inet":
            return Addresses(IPv4Network(f"{address['local']}/24", strict=False))
    return None


def make_bridge(layout: Layout) -> Addresses:
    """Or take the one that is there."""
    with locked(_LOCK):
        if addresses := addresses_of(layout):
            return addresses
        taken = {
            IPv4Network(f"{address['local']}/24", strict=False)
            for one in interfaces()
            for address in one["addr_info"]
            if address["family"] == "inet"
        }
        free = next((network for network in networks_for(layout.name) if network not in taken), None)
        if free is None:
            raise ClusterError("no network is free for the cluster; take another cluster down")
        addresses = Addresses(free)
        if bridge_of(layout) is None:
            output(["ip", "link", "add", layout.bridge, "type", "bridge"])
        output(["ip", "link", "set", layout.bridge, "alias", str(layout.folder), "up"])
        output(["ip", "address", "add", f"{addresses.login}/24", "dev", layout.bridge])
        return addresses


def plug_in(layout: Layout, machine: str, init: int) -> None:
    """Lay the cable of a machine, whose end becomes its eth0."""
    peer = ["peer", "name", "eth0", "netns", str(init)]
    output(["ip", "link", "add", layout.interface(machine), "type", "veth", *peer])
    output(["ip", "link", "set", layout.interface(machine), "master", layout.bridge, "up"])


def set_link(layout: Layout, machine: str, state: str) -> None:
    """ "up" or "down". Nothing that a machine sends comes through, nor a word that it is gone."""
    output(["ip", "link", "set", layout.interface(machine), state])


def unplug(layout: Layout, machine: str) -> None:
    """Take the cable away, if there is one."""
    _delete([layout.interface(machine)])


def remove(layout: Layout) -> None:
    """The bridge and all cables."""
    bridge = bridge_of(layout)
    cables = [one["ifname"] for one in interfaces() if one["ifname"].startswith(f"{layout.bridge}-")]
    _delete([*cables, *([layout.bridge] if bridge else [])])


def _delete(names: list[str]) -> None:
    """Interfaces, of which the kernel may be removing some by itself: a cable goes with the namespace at its end."""
    for name in names:
        try:
            output(["ip", "link", "delete", name])
        except ClusterError:
            if any(one["ifname"] == name for one in interfaces()):
                raise
