"""Precision means what it says: the named type really runs, or training does not start."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision, Precision

from launcher.accelerator import xla_refuses
from launcher.errors import LauncherError
from launcher.node.environment import Accelerator

_COMPUTE = {
    "64-true": torch.float64,
    "32-true": torch.float32,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
}


class UnsupportedPrecision(LauncherError):
    """This machine cannot compute in the type that trainer.precision names."""


def precision_arguments(precision: str | int, accelerator: Accelerator) -> dict[str, Any]:
    """What to pass to the Trainer: `precision` as it is, or a plugin where Lightning would do something else.

    Raises:
        UnsupportedPrecision: the accelerator cannot compute in this type.
    """
    if accelerator == "gpu" and str(precision).startswith("bf16") and not torch.cuda.is_bf16_supported(False):
        raise UnsupportedPrecision(
            f"trainer.precision: {precision}: {torch.cuda.get_device_name()} has no bfloat16; "
            "use '16-mixed' or '32-true'"
        )
    if accelerator == "cpu" and str(precision) in ("16", "16-mixed"):
        # Given the name alone, Lightning runs bfloat16 on the CPU.
        plugin: Precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        return {"plugins": [plugin]}
    if accelerator == "xla":
        if reason := xla_refuses(precision):
            raise UnsupportedPrecision(reason)
        if str(precision) in ("bf16", "bf16-mixed"):
            # Lightning's own XLA strategy refuses it. Parameters, gradients and the optimizer stay float32.
            return {"plugins": [MixedPrecision("bf16-mixed", "xla")]}
    return {"precision": precision}


def computed_type(trainer: Trainer) -> str:
    """The type in which a linear layer really computes under the trainer's precision, by computing one.

    Returns:
        Its name as torch has it, e.g. "bfloat16".

    Raises:
        UnsupportedPrecision: it is another one than the precision names, or computing it fails.
    """
    plugin, device = trainer.precision_plugin, trainer.strategy.root_device
    named = str(plugin.precision)
    try:
        with plugin.module_init_context(), plugin.forward_context():
            layer = torch.nn.Linear(8, 8, device=device)
            computed = layer(plugin.convert_input(torch.zeros(1, 8, device=device))).dtype
    except RuntimeError as error:
        raise UnsupportedPrecision(f"trainer.precision: {named} does not compute on {device.type}: {error}") from error
    if _COMPUTE.get(named, computed) != computed:
        raise UnsupportedPrecision(f"trainer.precision: {named}, but {device.type} computes in {computed}")
    return str(computed).removeprefix("torch.")
