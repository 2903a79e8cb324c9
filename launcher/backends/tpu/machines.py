"""What an accelerator type stands for. Pure.

Source: https://cloud.google.com/tpu/docs/v4 (and v2, v3, v5e, v5p, v6e: "Configurations", "VM types"),
https://cloud.google.com/tpu/docs/runtimes ("PyTorch").
"""

from launcher.errors import UsageError

_RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_TWO_CORES = ("v2", "v3")
"""Chips with two devices each; those that came later have one."""
_BY_CHIPS = ("v5litepod", "v6e")
"""Their types count chips; those of the others count cores, of which a chip has two."""
_CHIPS_A_HOST = 4
_IN_ONE_HOST = 8
"""Slices of so many chips are one machine, where types count chips."""


def hosts_of(accelerator_type: str) -> int:
    """How many machines a slice has. Raises UsageError: there is no such type."""
    chips = _chips(accelerator_type)
    if _parts(accelerator_type)[0] in _BY_CHIPS and chips <= _IN_ONE_HOST:
        return 1
    return max(1, chips // _CHIPS_A_HOST)


def chips_a_host(accelerator_type: str) -> int:
    """How many ranks of XLA each machine of a slice has: one a chip.

    Raises:
        UsageError: there is no such type, or its chips have more than one device.
    """
    generation = _parts(accelerator_type)[0]
    if generation in _TWO_CORES:
        raise UsageError(
            f"tpu.accelerator_type: {accelerator_type}: a chip of {generation} has two devices, and a rank has one; "
            "with trainer.strategy: xla, use a later generation"
        )
    return _chips(accelerator_type) // hosts_of(accelerator_type)


def runtime_of(accelerator_type: str) -> str:
    """The runtime version that Google names for PyTorch. Raises UsageError: there is no such type."""
    return _RUNTIMES[_parts(accelerator_type)[0]]


def _chips(accelerator_type: str) -> int:
    generation, size = _parts(accelerator_type)
    return size if generation in _BY_CHIPS else max(1, size // 2)


def _parts(accelerator_type: str) -> tuple[str, int]:
    generation, _, size = accelerator_type.partition("-")
    if generation not in _RUNTIMES or not size.isdecimal() or int(size) == 0:
        raise UsageError(
            f"tpu.accelerator_type: {accelerator_type} is none that is known here: a generation "
            f"({', '.join(_RUNTIMES)}) and a size, such as v5litepod-16"
        )
    return generation, int(size)
