"""What is exact: the guarantee for a run that is interrupted, and what a change of its spec does to it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WITHOUT_EFFECT = (
    *("name", "checkpoint", "retry", "code", "slurm", "tpu", "sweep", "env", "resources.time", "resources.mem"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.profiler", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "model.weights"),
)
_LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps")
_RANKS = ("resources.nodes", "resources.tasks_per_node", "resources.gpus_per_node")
_LAYOUT = (*_RANKS, "resources.cpus_per_task", "trainer.strategy")
_ELSEWHERE = (
    "the same samples in each step; sums over them may differ in their last bits, and what the model draws on its "
    "device, as for dropout, comes from another generator"
)
_THREADS = "sums over other threads may differ in their last bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What an attempt computes on, as far as its bits depend on it."""

    accelerator: str
    """`cpu`, `gpu`, or `xla`."""
    ranks: int
    threads: int | None
    """Of a rank; None: as many as its host has for it."""


def guarantee(accelerator: str, ranks: int, *, deterministic: bool, exact: str) -> str:
    """What a resumed run has in common with one that was never touched.

    Args:
        accelerator: `cpu`, `gpu`, `xla`, which is XLA on the CPU, or `tpu`, which is XLA on that.
        deterministic: trainer.deterministic is on.
        exact: that of the spec.
    """
    if exact == "world-size" and (accelerator == "cpu" or deterministic):
        same = "" if accelerator == "cpu" else " of GPUs of the same kind"
        return f"the same weights and optimizer states to the bit, on any power of two{same}; metrics up to rounding"
    if accelerator in ("cpu", "xla"):
        return "the same bits, while the number of ranks and of threads stays the same"
    if accelerator == "tpu":
        return "the same samples and random numbers; whether a TPU gives the same bits, nobody has tried"
    if not deterministic:
        return "the same samples and random numbers; for the same bits set trainer.deterministic: true"
    if ranks == 1:
        return "the same bits, on GPUs of the same kind"
    return "the same bits, on as many GPUs of the same kind, connected alike (NCCL_ALGO=Ring fixes the order of sums)"


def of_moving(before: Layout, after: Layout, batches: int, *, exact: str) -> list[str]:
    """One sentence for each thing that is different for a run on another target, its spec aside.

    Args:
        batches: micro-batches that an optimizer step sees, on any number of ranks.
        exact: that of the spec.
    """
    said = []
    if before.ranks != after.ranks:
        shares = f"of the {batches} batches of a step each has {batches // after.ranks}, not {batches // before.ranks}"
        said.append(f"ranks: {before.ranks} -> {after.ranks}: {shares}; {_effect(_RANKS[0], (None, None), exact)}")
    if before.accelerator != after.accelerator:
        said.append(f"accelerator: {before.accelerator} -> {after.accelerator}: {_ELSEWHERE}")
    elif before.threads != after.threads and exact != "world-size":
        threads = [one.threads or "all that there are" for one in (before, after)]
        said.append(f"threads of a rank: {threads[0]} -> {threads[1]}: {_THREADS}")
    return said or ["ranks and accelerator stay what they were: the same bits, on processors of the same kind"]


def consequences(old: Mapping[str, Any], new: Mapping[str, Any], *, moving: bool = False) -> list[str]:
    """One sentence for each changed key that may make the run another than it would have been from the beginning.

    Args:
        old, new: resolved specs, as JobSpec.model_dump gives them.
        moving: what says how many ranks there are, and of what kind, is left to `of_moving`.
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    without_effect = (*_WITHOUT_EFFECT, *(_LAYOUT if moving else ()))
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}: "
        f"{_effect(key, (before.get(key), after.get(key)), str(new.get('exact', '')))}"
        for key in changed
        if not _is_below(key, without_effect)
    ]


def _effect(key: str, values: tuple[Any, Any], exact: str) -> str:
    if _is_below(key, _LENGTH):
        return (
            "as if it had been so from the beginning, unless a learning rate schedule depends on the length of training"
        )
    if _is_below(key, _RANKS):
        if exact == "world-size":
            return "the same samples in each step, and the same bits in weights and optimizer states"
        return "the same samples in each step; sums over them may differ in their last bits"
    if key == "trainer.strategy" and "xla" in values:
        return _ELSEWHERE
    if key == "resources.cpus_per_task":
        return _THREADS
    return "from here on; the run is no longer what it would have been from the beginning"


def _is_below(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _leaves(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{above}.{key}" if above else key)
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, f"{above}.{index}")
    else:
        yield above, value


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return str(leaves[key]) if key in leaves else "its default"
