"""On how many ranks a run can go on: the global batch of its beginning, and who may share it. Pure.

One optimizer step of a run sees `ranks x accumulate_grad_batches` micro-batches, each of them one batch of one rank's
loader. Any number of ranks that divides them can take the run on, with as many micro-batches one after the other as
that takes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.spec import JobSpec


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """What one optimizer step sees, in terms of the run as it was created."""

    ranks: int
    """The world size that the run was created with."""
    accumulate: int
    """trainer.accumulate_grad_batches of the spec as it is now."""

    @property
    def micro_batches(self) -> int:
        return self.ranks * self.accumulate

    def sizes(self, *, powers_of_two: bool = False) -> tuple[int, ...]:
        """The world sizes that it can be shared among, ascending."""
        whole = (size for size in range(1, self.micro_batches + 1) if self.micro_batches % size == 0)
        return tuple(size for size in whole if not powers_of_two or _is_power_of_two(size))


def global_batch(spec: JobSpec, created_with: int | None, world_size: int) -> GlobalBatch:
    """That of a run.

    Args:
        spec: as it is now.
        created_with: Record.ranks of the run; None: it has not been written down, and each attempt stands for itself.
        world_size: of the attempt.
    """
    return GlobalBatch(created_with or world_size, spec.trainer.accumulate_grad_batches)


def allowed_sizes(spec: JobSpec, created_with: int) -> tuple[int, ...]:
    """The world sizes on which a run can go on, ascending: what a scheduler may choose from.

    Args:
        spec: as it is now.
        created_with: Record.ranks of the run.
    """
    return GlobalBatch(created_with, spec.trainer.accumulate_grad_batches).sizes(
        powers_of_two=spec.exact == "world-size"
    )


def allowed_nodes(spec: JobSpec, created_with: int | None, tasks: int) -> tuple[int, ...]:
    """Of the numbers of nodes that resources.nodes leaves to a scheduler, those that a run can use in full, ascending.

    Args:
        spec: as it is now.
        created_with: Record.ranks of the run; None: it is about to be created, for the largest number.
        tasks: ranks on each node.
    """
    least, most = spec.resources.least_nodes, spec.resources.most_nodes
    return tuple(
        nodes for nodes in _nodes(allowed_sizes(spec, created_with or most * tasks), tasks) if least <= nodes <= most
    )


def nodes_to_use(
    spec: JobSpec, created_with: int | None, tasks: int, accelerator: str, granted: int | None = None
) -> int:
    """On how many nodes an attempt runs: the largest number that can share the global batch; others stay idle.

    Args:
        spec, created_with, tasks: as for allowed_nodes.
        accelerator: `cpu` or `gpu`.
        granted: nodes that there are; None: as many as resources.nodes asks for at most.

    Raises:
        UsageError: the fewest that resources.nodes asks for cannot share it, or are not there.
    """
    resources = spec.resources
    created_with = created_with or resources.most_nodes * tasks
    check_size(spec, created_with, resources.least_nodes * tasks, accelerator, tasks=tasks)
    if granted is not None and granted < resources.least_nodes:
        raise UsageError(f"resources.nodes: {resources.nodes}, but the allocation has {granted}")
    return max(nodes for nodes in allowed_nodes(spec, created_with, tasks) if granted is None or nodes <= granted)


def check_size(
    spec: JobSpec, created_with: int | None, world_size: int, accelerator: str, *, tasks: int | None = None
) -> None:
    """Whether an attempt may begin.

    Args:
        spec: as it is now.
        created_with: as for global_batch.
        world_size: that the attempt would have.
        accelerator: `cpu`, `gpu` or `xla`.
        tasks: ranks on each node; None: those possible are named by their ranks alone.

    Raises:
        UsageError: with the world sizes that are possible, or the key to set.
    """
    batch = global_batch(spec, created_with, world_size)
    if spec.exact == "world-size":
        _check_exact(spec, batch, accelerator)
    sizes = allowed_sizes(spec, batch.ranks)
    if world_size not in sizes:
        powers = ", of which exact: world-size takes powers of two" if spec.exact == "world-size" else ""
        nodes = _nodes(sizes, tasks) if tasks else ()
        of_nodes = f"; of nodes with {tasks} each: {', '.join(map(str, nodes))}" if nodes else ""
        raise UsageError(
            f"resources: {world_size} ranks cannot share the {batch.micro_batches} micro-batches of a step "
            f"({batch.ranks} ranks that the run was created with x trainer.accumulate_grad_batches {batch.accumulate})"
            f"{powers}; possible numbers of ranks: {', '.join(map(str, sizes))}{of_nodes}"
        )


def _check_exact(spec: JobSpec, batch: GlobalBatch, accelerator: str) -> None:
    if not _is_power_of_two(batch.accumulate):
        below, above = _neighbours(batch.accumulate)
        raise UsageError(
            f"exact: world-size adds gradients in a binary tree: trainer.accumulate_grad_batches {batch.accumulate} is "
            f"no power of two; take {below} or {above}, or leave `exact` out"
        )
    if not _is_power_of_two(batch.ranks):
        below, above = _neighbours(batch.ranks)
        raise UsageError(
            f"exact: world-size adds gradients in a binary tree: {batch.ranks} ranks, with which the run is created, "
            f"are no power of two; take {below} or {above}, or leave `exact` out"
        )
    if accelerator == "cpu" and spec.resources.cpus_per_task is None:
        raise UsageError(
            "exact: world-size: set resources.cpus_per_task; without it the number of threads follows from that of "
            "ranks, and with it the order in which sums are taken"
        )


def _nodes(sizes: Iterable[int], tasks: int) -> tuple[int, ...]:
    """World sizes in nodes, as far as they fill them."""
    return tuple(size // tasks for size in sizes if size % tasks == 0)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _neighbours(number: int) -> tuple[int, int]:
    above = 1 << number.bit_length()
    return above // 2, above
