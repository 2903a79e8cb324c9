"""The network of a lab: a bridge on this machine, and a cable to each of its machines."""

import json
import zlib
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from machines.errors import MachineError
from machines.lab import Lab, networks_for, own_address
from machines.locks import locked
from machines.shell import output

_LOCK = Path("/run")
"""Held while a network is chosen: two labs that come up at once must not take the same."""


def interfaces() -> list[dict[str, Any]]:
    """Of this machine, as `ip` describes them."""
    found: list[dict[str, Any]] = json.loads(output(["ip", "-json", "address", "show"]))
    return [one for one in found if one]


def bridge_of(lab: Lab) -> dict[str, Any] | None:
    """Raises MachineError where a lab of the same kind and name has another folder."""
    for one in interfaces():
        if one["ifname"] == lab.bridge:
            # A crash between the bridge and its alias leaves one without: it is nobody else's.
            if one.get("ifalias", str(lab.folder)) != str(lab.folder):
                raise MachineError(
                    f"there is one named {lab.name!r} in {one['ifalias']}; take another --name, or its --state"
                )
            return one
    return None


def network_of(lab: Lab) -> IPv4Network | None:
    """None while it has none."""
    bridge = bridge_of(lab)
    for address in bridge["addr_info"] if bridge else ():
        if address["family"] == "inet":
            return IPv4Network(f"{address['local']}/24", strict=False)
    return None


def make_bridge(lab: Lab) -> IPv4Network:
    """Or take the one that is there."""
    with locked(_LOCK):
        if found := network_of(lab):
            return found
        taken = {
            IPv4Network(f"{address['local']}/24", strict=False)
            for one in interfaces()
            for address in one["addr_info"]
            if address["family"] == "inet"
        }
        free = next((network for network in networks_for(lab.name) if network not in taken), None)
        if free is None:
            raise MachineError("no network is free; take another one down")
        if bridge_of(lab) is None:
            output(["ip", "link", "add", lab.bridge, "type", "bridge"])
        output(["ip", "link", "set", lab.bridge, "alias", str(lab.folder), "up"])
        output(["ip", "address", "add", f"{own_address(free)}/24", "dev", lab.bridge])
        return free


def plug_in(lab: Lab, machine: str, init: int) -> None:
    """Lay the cable of a machine, whose end becomes its eth0.

    Its hardware address is the same at each boot: others remember it for half a minute.
    """
    own = zlib.crc32(lab.interface(machine).encode()).to_bytes(4, "big").hex(":")
    peer = ["peer", "name", "eth0", "address", f"42:01:{own}", "netns", str(init)]
    output(["ip", "link", "add", lab.interface(machine), "type", "veth", *peer])
    output(["ip", "link", "set", lab.interface(machine), "master", lab.bridge, "up"])


def set_link(lab: Lab, machine: str, state: str) -> None:
    """ "up" or "down". Nothing that a machine sends comes through, nor a word that it is gone."""
    output(["ip", "link", "set", lab.interface(machine), state])


def unplug(lab: Lab, machine: str) -> None:
    """Take the cable away, if there is one."""
    _delete([lab.interface(machine)])


def remove(lab: Lab) -> None:
    """The bridge and all cables."""
    bridge = bridge_of(lab)
    cables = [one["ifname"] for one in interfaces() if one["ifname"].startswith(f"{lab.bridge}-")]
    _delete([*cables, *([lab.bridge] if bridge else [])])


def _delete(names: list[str]) -> None:
    """Interfaces, of which the kernel may be removing some by itself: a cable goes with the namespace at its end."""
    for name in names:
        try:
            output(["ip", "link", "delete", name])
        except MachineError:
            if any(one["ifname"] == name for one in interfaces()):
                raise
