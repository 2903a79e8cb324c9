"""Learning about a cluster from what Slurm's commands say: read as 22.05 says it, with the names that 24.11 changed."""

import getpass
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher import shell
from launcher.backends.slurm.commands import SlurmError
from launcher.backends.slurm.script import clean
from launcher.facts import Facts, Nodes, Partition, gpus
from launcher.spec_slurm import Slurm

_NODES = "%R|%D|%c|%m|%G"
"""Of sinfo: partition, number of nodes, and of each of them CPUs, megabytes, generic resources."""
_ASSOCIATIONS = "cluster,account,qos,maxsubmitjobs"
_WAIT_S = 60
"""For a node to try something on."""
_TIMEOUT_S = 30
"""For an answer, when there is nothing to wait for."""


def learn() -> Facts:
    """Ask the cluster; takes about a second.

    Raises:
        SlurmError: there is no Slurm here, or it does not answer, or in words that are not known.
    """
    config = settings(_output("scontrol", "show", "config"))
    partitions = _output("scontrol", "show", "partition", "--oneliner")
    nodes = _output("sinfo", "--noheader", "--exact", f"--format={_NODES}")
    try:
        _output("sacct", "--noheader", "--allocations", "--starttime=now")
        whose = ("show", "assoc", f"user={getpass.getuser()}", f"format={_ASSOCIATIONS}")
        associations = _output("sacctmgr", "--noheader", "--parsable2", *whose)
    except SlurmError:
        associations = None
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        return facts(now, config, partitions, nodes, associations)
    except (KeyError, ValueError) as error:
        version = config.get("SLURM_VERSION", "of an unknown version")
        raise SlurmError(f"this Slurm ({version}) says something that is not understood: {error!r}") from error


def reaches_controller(slurm: Slurm | None) -> bool:
    """Whether scontrol works on a node of a job: a requeue has to come from there. Runs a job of a few seconds.

    Args:
        slurm: the partition, account and qos to run it with.

    Raises:
        SlurmError: no node was free within a minute, or the job was refused.
    """
    options = [
        f"--{name}={value}"
        for name in ("partition", "account", "qos")
        if (value := getattr(slurm, name, None)) is not None
    ]
    say = 'scontrol show job "$SLURM_JOB_ID" >/dev/null 2>&1 && echo reached: yes || echo reached: no'
    limits = (f"--immediate={_WAIT_S}", "--ntasks=1", "--nodes=1", "--time=2", "--job-name=launcher-probe")
    said = _output("srun", *limits, *options, "sh", "-c", say, timeout_s=_WAIT_S + _TIMEOUT_S)
    return "reached: yes" in said.splitlines()


def facts(probed: str, config: Mapping[str, str], partitions: str, nodes: str, associations: str | None) -> Facts:
    """What follows from the words of Slurm.

    Args:
        probed: when they were said.
        config: `scontrol show config`, by settings().
        partitions: `scontrol show partition --oneliner`.
        nodes: `sinfo` in the format above.
        associations: `sacctmgr show assoc` of the user, in the format above; None if accounting does not answer.

    Raises:
        KeyError: something is not said at all.
        ValueError: something is said in another way.
    """
    cluster = config["ClusterName"]
    own = [one for one in _rows(associations or "", 4) if one[0] == cluster]
    submits = [int(one[3]) if one[3] else None for one in own]
    alike = _nodes(nodes)
    return Facts(
        probed=probed,
        cluster=cluster,
        version=config["SLURM_VERSION"],
        partitions={name: _partition(line, alike[name]) for name, line in _partition_lines(partitions)},
        accounting=associations is not None,
        accounts=sorted({one[1] for one in own}) if own else None,
        qos=sorted({qos for one in own for qos in one[2].split(",") if qos}) if own else None,
        enforced=_list(config.get("AccountingStorageEnforce", "none")) or [],
        max_submit=max((one for one in submits if one is not None), default=None) if None not in submits else None,
        max_array_size=int(config["MaxArraySize"]),
        job_requeue=config["JobRequeue"] == "1",
        kill_wait_s=int(config["KillWait"].split()[0]),
        user_signal=_sends_user_signal(config),
    )


def settings(text: str) -> dict[str, str]:
    """The lines `Name = value` of `scontrol show config`."""
    return dict(re.findall(r"^([\w\[\]]+) *= (.*?) *$", text, re.MULTILINE))


def changes(old: Facts, new: Facts) -> Iterator[str]:
    """What differs, a line each, such as `partition gpu: max_time 1-00:00:00 -> 2-00:00:00`."""
    for name in sorted({*old.partitions, *new.partitions}):
        was, is_ = old.partitions.get(name), new.partitions.get(name)
        if was and is_:
            yield from (f"partition {name}: {line}" for line in _changed_values(was, is_))
        else:
            yield f"partition {name}: {'new' if is_ else 'gone'}"
    yield from _changed_values(old, new, but=("probed", "partitions"))


def _changed_values(old: Any, new: Any, but: Sequence[str] = ()) -> Iterator[str]:
    for key in type(new).model_fields:
        was, is_ = getattr(old, key), getattr(new, key)
        if key not in but and was != is_:
            yield f"{key} {shown(was)} -> {shown(is_)}"


def shown(value: Any) -> str:
    """A value of the facts as people read it."""
    match value:
        case None:
            return "unset"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(shown, value)) or "none"
        case Nodes():
            kinds = [f"{number} {kind}" for kind, number in value.gres.items()]
            return f"{value.count} x ({', '.join((f'{value.cpus} CPUs', f'{value.memory_mb}M', *kinds))})"
        case _:
            return str(value)


def _sends_user_signal(config: Mapping[str, str]) -> bool:
    """The option has had another name, and another place, since 24.11."""
    before = _list(config.get("SlurmctldParameters", "")) or ()
    since = _list(config.get("PreemptParameters", "")) or ()
    return "preempt_send_user_signal" in before or "send_user_signal" in since


def _partition_lines(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for line in text.splitlines():
        if line.startswith("PartitionName="):
            says = dict(re.findall(r"(\w+)=(\S*)", line))
            yield says["PartitionName"], says


def _partition(says: Mapping[str, str], nodes: list[Nodes]) -> Partition:
    return Partition(
        default=says["Default"] == "YES",
        max_time=_limit(says["MaxTime"]),
        default_time=_limit(says["DefaultTime"]),
        max_nodes=int(most) if (most := _limit(says["MaxNodes"])) else None,
        accounts=_list(says.get("AllowAccounts", "ALL")),
        qos=_list(says.get("AllowQos", "ALL")),
        preempt_mode=says["PreemptMode"],
        grace_time_s=int(says["GraceTime"]),
        nodes=nodes,
    )


def _nodes(text: str) -> defaultdict[str, list[Nodes]]:
    """Nodes of each partition, the most numerous kind first."""
    counted: Counter[tuple[str, ...]] = Counter()
    for name, count, *kind in _rows(text, 5):
        counted[name, *kind] += int(count)
    found = defaultdict(list)
    for (name, cpus, memory_mb, gres), number in counted.most_common():
        if number:
            found[name].append(Nodes(count=number, cpus=int(cpus), memory_mb=int(memory_mb), gres=gpus(gres)))
    return found


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    """Rows of a table whose columns `|` separates; warnings between them are passed over."""
    for line in text.splitlines():
        if len(row := [cell.strip() for cell in line.split("|")]) == columns:
            yield row


def _limit(text: str) -> str | None:
    return None if text in ("UNLIMITED", "INFINITE", "NONE") else text


def _list(text: str) -> list[str] | None:
    """Values that commas separate; None for all, nothing for none."""
    if text == "ALL":
        return None
    return [] if text in ("", "none", "(null)") else text.split(",")


def _output(*argv: str, timeout_s: float = _TIMEOUT_S) -> str:
    try:
        answer = shell.ask(argv, env=clean(os.environ), timeout_s=timeout_s)
    except FileNotFoundError:
        raise SlurmError(
            f"{argv[0]} is not on PATH: there is no Slurm on this machine; go to a login node of the cluster"
        ) from None
    command, said = " ".join(argv[:3]), answer.stderr.strip() or answer.stdout.strip() or "nothing"
    if answer.code == shell.TIMED_OUT:
        raise SlurmError(f"{command}: no answer within {timeout_s:g} s; it said: {said}")
    if answer.code:
        raise SlurmError(f"{command}: exit code {answer.code}, it said: {said}")
    return answer.stdout
