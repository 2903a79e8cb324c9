"""How ranks average what is on their devices: by way of the host, or by XLA itself.

PJRT's CPU client cannot reach other processes, and does not say so: there, gradients go over gloo. On TPUs they go by
XLA's own collectives. That half has been written after torch_xla's sources (2.9), and has never run on a TPU.
"""

from functools import reduce
from typing import Protocol

import torch
import torch.distributed as dist
import torch_xla
from torch import Tensor, nn
from torch_xla import runtime
from torch_xla._internal import pjrt
from torch_xla.core import xla_model

from launcher.errors import UsageError
from launcher.node.compiled import kept_programs
from launcher.node.environment import Place

DEVICE = torch.device("xla", 0)
"""Of every rank: there is one in each process."""


class NoTpu(UsageError):
    """The spec, or its target, asks for a TPU where there is none."""


class Ranks(Protocol):
    """All ranks of an attempt, as gradients reach them. Its methods are collectives."""

    way: str
    """By which gradients go."""

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of a tensor on the device."""
        ...

    def average(self, parameters: list[nn.Parameter], ranks: int) -> None:
        """Replace gradients by their mean over all ranks; where one rank has none, it counts as zeros there."""
        ...


class OverGloo:
    way = "over gloo"

    def summed(self, tensor: Tensor) -> Tensor:
        host = tensor.cpu()
        dist.all_reduce(host)
        return host.to(tensor.device)

    def average(self, parameters: list[nn.Parameter], ranks: int) -> None:
        torch_xla.sync()
        used = _used(parameters)
        width = reduce(torch.promote_types, {one.dtype for one in parameters}, torch.float32)
        hosts = [(torch.zeros_like(one, device="cpu") if one.grad is None else one.grad.cpu()) for one in parameters]
        total = torch.cat([used.to(width), *(one.to(width).flatten() for one in hosts)])
        dist.all_reduce(total.div_(ranks))
        averaged = total.to(DEVICE)[len(parameters) :]
        parts = torch.split(averaged, [one.numel() for one in parameters])
        for parameter, users, part in zip(parameters, total[: len(parameters)].tolist(), parts, strict=True):
            if users:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)


class ByXla:
    way = "by XLA"

    def summed(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        xla_model.all_reduce(xla_model.REDUCE_SUM, [total])
        return total

    def average(self, parameters: list[nn.Parameter], ranks: int) -> None:
        """As a program of its own: all ranks must run the same one, whatever else some of them have looked at."""
        torch_xla.sync()
        used = _used(parameters)
        dist.all_reduce(used)  # nobody waits for the device
        gradients = []
        for parameter, users in zip(parameters, used.tolist(), strict=True):
            if users:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        xla_model.all_reduce(xla_model.REDUCE_SUM, gradients, scale=1 / ranks)
        torch_xla.sync()


def _used(parameters: list[nn.Parameter]) -> Tensor:
    return torch.tensor([float(one.grad is not None) for one in parameters])


def join(place: Place) -> Ranks:
    """Have this process know its device and its peers. To be called before anything is done on the device.

    Raises:
        NoTpu: PJRT_DEVICE is TPU, and this host has none, or not what it takes.
    """
    if runtime.device_type() == "CPU":
        return OverGloo()
    runtime.initialize_cache(str(kept_programs(place.run_dir, place.rank)))  # the CPU client cannot read it back
    # As torch_xla does it where torchrun has started a process for each chip: which chip is this rank's, and where its
    # peers are, follows from the metadata of the host.
    try:
        if place.world_size > 1:
            pjrt.initialize_multiprocess(place.local_rank, place.local_world_size)
        else:
            pjrt.initialize_singleprocess()
    except OSError as error:
        raise NoTpu(
            f"PJRT_DEVICE=TPU, but there is none to use: {error}; it takes a host of Cloud TPU, and 'torch-xla[tpu]' "
            "installed there"
        ) from error
    return ByXla()
