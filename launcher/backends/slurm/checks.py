"""A spec against the facts of a cluster: what Slurm would refuse, or keep in its queue for ever."""

from collections.abc import Iterable, Iterator

from launcher.errors import Problem
from launcher.facts import Facts, Nodes, Partition, gpus
from launcher.spec import JobSpec, seconds
from launcher.spec_problems import nearest

_UNIT_KB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


def problems(spec: JobSpec, facts: Facts) -> list[Problem]:
    """What does not fit, each with its key and the limit; `where` is the cluster."""
    found = [*_partition_problems(spec, facts), *_accounting_problems(spec, facts)]
    return [Problem(f"cluster {facts.cluster}", key, message) for key, message in found]


_Problems = Iterator[tuple[str, str]]


def _partition_problems(spec: JobSpec, facts: Facts) -> _Problems:
    wanted = (spec.slurm and spec.slurm.partition) or facts.default_partition
    if wanted is None:
        yield "slurm.partition", f"there is no default; choose one of {', '.join(facts.partitions)}"
        return
    names = wanted.split(",")
    if unknown := [name for name in names if name not in facts.partitions]:
        yield from (("slurm.partition", _unknown("partition", name, facts.partitions)) for name in unknown)
        return
    # A job that names several starts in any of them.
    yield from min((list(_misfits(spec, name, facts.partitions[name])) for name in names), key=len)


def _misfits(spec: JobSpec, name: str, partition: Partition) -> _Problems:
    """What of a spec a partition cannot do."""
    resources, of_it = spec.resources, f"partition '{name}'"
    at_most = f"at most {partition.max_time}" if partition.max_time else "without a limit"
    if resources.time is None and partition.default_time is None:
        yield "resources.time", f"not set, and {of_it} has no default; say how long ({at_most})"
    elif resources.time and partition.max_time and seconds(resources.time) > seconds(partition.max_time):
        yield "resources.time", f"{of_it} allows {at_most}, got {resources.time}"
    # Slurm does not take less of a range: the job would wait for ever. More than there are nodes is fine.
    if partition.max_nodes is not None and resources.most_nodes > partition.max_nodes:
        yield "resources.nodes", f"{of_it} allows at most {partition.max_nodes} in a job, got {resources.nodes}"
    slurm = spec.slurm
    for key, given, allowed in (
        ("slurm.account", slurm and slurm.account, partition.accounts),
        ("slurm.qos", slurm and slurm.qos, partition.qos),
    ):
        if given and allowed is not None and given not in allowed:
            yield key, f"{of_it} takes only {', '.join(allowed)}, got '{given}'"
    yield from _too_large(spec, of_it, partition.nodes)


def _too_large(spec: JobSpec, of_it: str, nodes: list[Nodes]) -> _Problems:
    resources = spec.resources
    there = sum(alike.count for alike in nodes)
    if resources.least_nodes > there:
        yield "resources.nodes", f"{of_it} has {there}, got {resources.nodes}"
        return
    tasks = resources.tasks_per_node or resources.gpus_per_node or 1
    needs = [
        ("resources.cpus_per_task", "CPUs", tasks * (resources.cpus_per_task or 1)),
        ("resources.mem", "MB of memory", _megabytes(resources.mem)),
        ("resources.gpus_per_node", "gpu", resources.gpus_per_node or 0),
        *(("slurm.gres", kind, number) for kind, number in gpus((spec.slurm and spec.slurm.gres) or "").items()),
    ]
    capacities = [(alike.count, {"CPUs": alike.cpus, "MB of memory": alike.memory_mb, **alike.gres}) for alike in nodes]
    each_fits = True
    for key, what, amount in needs:
        most = max(has.get(what, 0) for _, has in capacities)
        if amount > most:
            each_fits = False
            tasks_each = f" ({tasks} tasks)" if what == "CPUs" and tasks > 1 else ""
            kinds = sorted({kind for _, has in capacities for kind in has if kind.startswith("gpu:")})
            others = f"; there are {', '.join(kinds)}" if most == 0 and what.startswith("gpu:") and kinds else ""
            yield key, f"no node of {of_it} has more than {most} {what}, got {amount}{tasks_each}{others}"
    fitting = sum(count for count, has in capacities if all(amount <= has.get(what, 0) for _, what, amount in needs))
    if each_fits and fitting < resources.least_nodes:
        yield (
            "resources.nodes",
            f"{fitting} of the {there} nodes of {of_it} have what each needs, got {resources.nodes}",
        )


def _accounting_problems(spec: JobSpec, facts: Facts) -> _Problems:
    """Slurm takes any account where associations are not enforced, and any QOS where QOS are not."""
    slurm = spec.slurm
    for what, given, own, rule in (
        ("account", slurm and slurm.account, facts.accounts, "associations"),
        ("qos", slurm and slurm.qos, facts.qos, "qos"),
    ):
        if given and own is not None and rule in facts.enforced and given not in own:
            yield f"slurm.{what}", _unknown(what, given, own)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    meant = nearest(name, known)
    hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(known)}" if known else "there are none"
    return f"unknown {what} '{name}'; {hint}"


def _megabytes(memory: str | None) -> int:
    """Rounded up. 0 stands for all of a node, None for what Slurm gives: they fit."""
    return -(-int(memory[:-1]) * _UNIT_KB[memory[-1]] // 1024) if memory and memory != "0" else 0
