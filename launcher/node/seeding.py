"""Randomness that is a function of where one stands, not of what ran before: nothing of it needs to be saved."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
import torch

of_devices: list[Callable[[int], None]] = []
"""Sets the generator of a device, one for each kind that this process computes on and torch does not know by itself."""


def mix(*key: object) -> int:
    """63 bits that depend on all parts of the key alike, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def seed_all(seed: int) -> None:
    """Set Python's, NumPy's and torch's generators.

    `torch.manual_seed` looks at every kind of accelerator and takes about 0.5 ms a call; the generators
    themselves take microseconds, and this runs at every step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.cuda.manual_seed(seed)
    for of_device in of_devices:
        of_device(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
