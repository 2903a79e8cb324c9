"""What there is to be had, and where: a small part of Google's, with the same names."""

import re
from dataclasses import dataclass

from tpu.cloud.status import ApiError

_SIZES = {
    "v2": (8, 32, 128, 256, 512),
    "v3": (8, 32, 64, 128, 256),
    "v4": (8, 16, 32, 64, 128, 256, 512),
    "v5litepod": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (8, 16, 32, 64, 128, 256, 512),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
}
ZONES = {
    "us-central1-f": ("v2", "v3"),
    "us-central2-b": ("v4",),
    "us-east5-a": ("v5p", "v6e"),
    "us-west4-a": ("v5litepod",),
    "europe-west4-a": ("v3", "v6e"),
    "europe-west4-b": ("v5litepod", "v5p"),
}
RUNTIMES = (
    "tpu-ubuntu2204-base",
    "tpu-vm-base",
    "tpu-vm-v4-base",
    "v2-alpha-tpuv5",
    "v2-alpha-tpuv5-lite",
    "v2-alpha-tpuv6e",
)
_CHIPS_IN_ITS_NAME = ("v5litepod", "v6e")
"""Generations whose types count chips. The others count cores, of which a chip has two."""
_CHIPS_A_HOST = 4


@dataclass(frozen=True)
class Slice:
    """What an accelerator type stands for."""

    type: str
    chips: int
    hosts: int

    @property
    def chips_a_host(self) -> int:
        return self.chips // self.hosts


def accelerators(zone: str) -> tuple[str, ...]:
    return tuple(f"{generation}-{size}" for generation in ZONES[zone] for size in _SIZES[generation])


def slice_of(accelerator: str, zone: str) -> Slice:
    """Raises ApiError where the zone does not have it."""
    if accelerator not in accelerators(zone):
        raise ApiError(
            "INVALID_ARGUMENT",
            f'Cloud TPU received a bad request. Accelerator type "{accelerator}" is not available in zone "{zone}" '
            "[EID: 0x7e8a1b2c3d4e5f60]",
        )
    generation, _, size = accelerator.partition("-")
    if generation in _CHIPS_IN_ITS_NAME:
        chips = int(size)
        return Slice(accelerator, chips, 1 if chips <= 8 else chips // _CHIPS_A_HOST)
    chips = int(size) // 2
    return Slice(accelerator, chips, chips // _CHIPS_A_HOST)


def accelerator_of(generation: str, topology: str) -> str:
    """The name of an acceleratorConfig, whose topology is as "2x2x2"."""
    chips = 1
    for side in re.findall(r"\d+", topology):
        chips *= int(side)
    word = {"V5LITE_POD": "v5litepod"}.get(generation, generation.lower())
    return f"{word}-{chips if word in _CHIPS_IN_ITS_NAME else 2 * chips}"
