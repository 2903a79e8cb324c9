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
_BY_CHIPS = ("v5litepod", "v6e")
"""Their types count chips; those of the others count cores, of which a chip has two."""
_CHIPS_A_HOST = 4
_IN_ONE_HOST = 8
"""Slices of so many chips are one machine, where types count chips."""


def hosts_of(accelerator_type: str) -> int:
    """How many machines a slice has. Raises UsageError: there is no such type."""
    generation, size = _parts(accelerator_type)
    if generation in _BY_CHIPS:
        return 1 if size <= _IN_ONE_HOST else size // _CHIPS_A_HOST
    return max(1, size // 2 // _CHIPS_A_HOST)


def runtime_of(accelerator_type: str) -> str:
    """The runtime version that Google names for PyTorch. Raises UsageError: there is no such type."""
    return _RUNTIMES[_parts(accelerator_type)[0]]


def _parts(accelerator_type: str) -> tuple[str, int]:
    generation, _, size = accelerator_type.partition("-")
    if generation not in _RUNTIMES or not size.isdecimal() or int(size) == 0:
        raise UsageError(
            f"tpu.accelerator_type: {accelerator_type} is none that is known here: a generation "
            f"({', '.join(_RUNTIMES)}) and a size, such as v5litepod-16"
        )
    return generation, int(size)
