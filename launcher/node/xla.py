"""XLA by torch_xla, and with xla_ranks.py all that the launcher knows of it: one process, one device, one replica.

Gradients are averaged as PJRT_DEVICE allows (xla_ranks.py). Whatever else ranks say to one another goes over gloo, by
way of the host: metrics, buffers, the first weights.

What has been traced is executed at the same places in each attempt (where a batch comes in, before gradients are
averaged, after the optimizer's step) and not where somebody happens to look at a value: the compiler fuses what it is
given together, and what is fused differently may differ in its last bits.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("PJRT_DEVICE", "CPU")
if threads := os.environ.get("OMP_NUM_THREADS"):
    os.environ.setdefault("NPROC", threads)  # so does PJRT's CPU client call it

import torch
import torch.distributed as dist
import torch_xla
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import find_shared_parameters, set_shared_parameters
from torch import Tensor, nn
from torch_xla import runtime
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from launcher.errors import UsageError
from launcher.node import seeding
from launcher.node.environment import Place
from launcher.node.plain import plain
from launcher.node.xla_ranks import DEVICE, Ranks, join

log = logging.getLogger(__name__)


class WrongWorld(UsageError):
    """The ranks, or the devices of one, are not those that were planned; without this check, nobody would notice."""


def trainer_arguments(place: Place) -> dict[str, Any]:
    """What to pass to the Trainer of this rank.

    Raises:
        WrongWorld: PJRT_DEVICE names something for which there is no strategy here.
    """
    if (device := runtime.device_type()) not in ("CPU", "TPU"):
        raise WrongWorld(f"PJRT_DEVICE={device}: with trainer.strategy: xla it is CPU or TPU; set one of them")
    # Tensors of inference mode cannot be traced; Lightning makes this exception for its own XLA accelerator only.
    return {"accelerator": XlaAccelerator(), "strategy": XlaStrategy(join(place)), "inference_mode": False}


class XlaAccelerator(Accelerator):
    """Whatever PJRT_DEVICE names. (Lightning's is for TPUs alone.)"""

    @staticmethod
    def name() -> str:
        return "xla"

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        """One for each rank of this machine: the first one of its own process."""
        return [DEVICE] * devices

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...


class XlaStrategy(DDPStrategy):
    """Data parallel as DDP has it, without torch's DistributedDataParallel, which knows no XLA tensors."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(process_group_backend="gloo")
        self._ranks = ranks
        self._accumulating = False

    # -- ranks

    def setup_distributed(self) -> None:
        """Raises WrongWorld: there are more or fewer ranks, or devices, than were planned."""
        assert self.cluster_environment is not None
        reset_seed()
        self.set_world_ranks()
        _init_dist_connection(self.cluster_environment, "gloo", timeout=self._timeout)
        if (devices := runtime.addressable_runtime_device_count()) != 1:
            unset = f"{runtime.device_type()}_NUM_DEVICES"
            raise WrongWorld(f"each rank has one device of its own, but here PJRT has {devices}; unset {unset}")
        seen = int(self._ranks.summed(torch.ones((), device=DEVICE))) if self.world_size > 1 else 1
        if seen != self.world_size:
            raise WrongWorld(f"{self.world_size} ranks were started, but {self._ranks.way} gradients reach {seen}")

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        return super().reduce(tensor.detach().cpu(), group, reduce_op).to(tensor.device)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        return super().all_gather(tensor.cpu(), group, sync_grads).to(tensor.device)

    # -- the model

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        fits = trainer.state.fn == TrainerFn.FITTING
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if fits:
            if self.is_global_zero:
                log.info("XLA on PJRT_DEVICE=%s, gradients averaged %s", runtime.device_type(), self._ranks.way)
                if runtime.device_type() == "TPU":
                    log.warning("this has never run on a TPU before: hold its first results against those of a CPU")
            self.model = _Replica(self.model, lambda: self._accumulating)
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fits:
            _optimizers_to_device(self.optimizers, DEVICE)

    def model_to_device(self) -> None:
        model = self.model
        assert model is not None
        _from_rank_0([*model.parameters(), *model.buffers()])
        tied = find_shared_parameters(model)  # to move a parameter here is to make another one
        model.to(DEVICE)
        set_shared_parameters(model, tied)
        for metric in (module for module in model.modules() if isinstance(module, Metric)):
            metric.dist_sync_fn = metric.dist_sync_fn or _gathered

    def teardown(self) -> None:
        self.model = self.lightning_module
        super().teardown()

    # -- steps

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        torch_xla.sync()
        return super().batch_to_device(batch, device, dataloader_idx)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Hooks after the backward pass see the mean of all ranks' gradients, as with DDP."""
        plugin, model = self.precision_plugin, self.lightning_module
        assert model is not None
        loss = plugin.pre_backward(closure_loss, model)
        plugin.backward(loss, model, optimizer, *args, **kwargs)
        if self.world_size > 1 and not self._accumulating:
            self._ranks.average([one for one in model.parameters() if one.requires_grad], self.world_size)
        return plugin.post_backward(loss, model)

    def optimizer_step(
        self,
        optimizer: Any,
        closure: Callable[[], Any],
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        done = super().optimizer_step(optimizer, closure, model, **kwargs)
        torch_xla.sync()
        return done

    # -- checkpoints that the user's own code saves; the launcher's own are copied to the host as they are staged

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        torch_xla.sync()
        super().save_checkpoint(plain(checkpoint, tensor=lambda one: one.detach().cpu()), filepath, storage_options)


class _Replica(nn.Module):
    """What DistributedDataParallel does before a forward pass: each step begins with rank 0's buffers."""

    def __init__(self, module: nn.Module, accumulating: Callable[[], bool]) -> None:
        super().__init__()
        self.module = module
        self._accumulating = accumulating
        self._begins = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._begins:
            _from_rank_0(list(self.module.buffers()))
        self._begins = torch.is_grad_enabled() and not self._accumulating()
        return self.module(*args, **kwargs)


def _from_rank_0(tensors: list[Tensor]) -> None:
    """Collective. Give all ranks what rank 0 has."""
    if dist.get_world_size() == 1:
        return
    for tensor in tensors:
        host = tensor.detach().cpu().contiguous()
        dist.broadcast(host, 0)
        with torch.no_grad():
            tensor.copy_(host)


def _gathered(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """For metrics: the tensors of all ranks."""
    return [one.to(tensor.device) for one in gather_all_tensors(tensor.cpu(), group)]


def _seed(seed: int) -> None:
    torch_xla.manual_seed(seed)


seeding.of_devices.append(_seed)
# A DataLoader worker has none of the runtime's threads, and would wait for them.
os.register_at_fork(after_in_child=seeding.of_devices.clear)
