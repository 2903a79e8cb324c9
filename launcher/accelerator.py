"""What a spec computes on, and what it may ask of it. Pure."""

from launcher.errors import UsageError
from launcher.spec import JobSpec

_XLA_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
_FULL_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_REFUSED = {
    "16-mixed": "float16 needs a gradient scaler, which XLA has not, and TPUs compute in bfloat16: use 'bf16-mixed'",
    "16-true": "TPUs have no float16, and Lightning would silently compute in float32: use 'bf16-true'",
}


def asks_for_xla(spec: JobSpec) -> bool:
    return spec.trainer.strategy == "xla"


def check_xla(spec: JobSpec) -> None:
    """Whether a spec that asks for XLA can have what else it asks for.

    Raises:
        UsageError: it cannot; says which key and what to write instead.
    """
    if reason := xla_refuses(spec.trainer.precision):
        raise UsageError(reason)
    if spec.resources.gpus_per_node:
        raise UsageError(
            f"resources.gpus_per_node: {spec.resources.gpus_per_node}, but trainer.strategy: xla does not use GPUs; "
            "leave it out, or set it to 0"
        )
    if spec.exact == "world-size":
        raise UsageError(
            "exact: world-size: with trainer.strategy: xla nobody can say in which order a device adds; leave `exact` "
            "out, or use DDP (trainer.strategy: auto)"
        )
    if spec.trainer.sync_batchnorm:
        raise UsageError(
            "trainer.sync_batchnorm: PyTorch has it for GPUs alone; with trainer.strategy: xla, leave it out"
        )


def xla_refuses(precision: str | int | None) -> str | None:
    """Why trainer.precision does not run on XLA, with the word to use; None if it does."""
    name = "32-true" if precision is None else _FULL_NAMES.get(str(precision), str(precision))
    if name in _XLA_PRECISIONS:
        return None
    reason = _REFUSED.get(name, f"XLA has no such type: use one of {', '.join(_XLA_PRECISIONS)}")
    return f"trainer.precision: {precision} does not run with trainer.strategy: xla: {reason}"
