"""scripts/slurm-cluster: words in, calls of Cluster out."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from machines import command_line
from machines.settings import chosen

from slurm.cluster.cluster import Cluster, state_folder
from slurm.cluster.database import cache_folder
from slurm.cluster.errors import ClusterError
from slurm.cluster.settings import Settings

DESCRIPTION = f"""\
A real Slurm cluster on this machine, to test on: slurmctld, slurmdbd with MariaDB, and nodes n1, n2, ... with a slurmd
each. Every node has namespaces of its own (network, processes, mounts, hostname), so that it can lose its power or its
network. It takes root and Debian's packages, which `up` installs when they are missing; no systemd.

    scripts/slurm-cluster up --nodes 2
    eval "$(scripts/slurm-cluster env)"; sinfo; srun --nodes=2 hostname
    scripts/slurm-cluster power-off n2; scripts/slurm-cluster power-on n2
    scripts/slurm-cluster down --wipe

Nodes see all files of this machine but those under /tmp: let jobs write elsewhere, as on any cluster. Jobs in the
partitions low (requeued), lowcancel (cancelled), lownograce and lowcancelnograce (at once) make way for those in
main and high.

Clusters with different names do not meet. State: --state, or SLURM_CLUSTER_STATE, or {state_folder()}.
The initialised database is kept in SLURM_CLUSTER_CACHE, or {cache_folder()}, which makes `up` 10 s faster.
"""


def parser() -> argparse.ArgumentParser:
    top, verbs = command_line.parser(
        "slurm-cluster", "cluster", DESCRIPTION, state_folder(), Settings, _MEANING, kept="jobs and accounting"
    )
    verbs.add_parser("status", help="machines, daemons, nodes as Slurm sees them")
    execute = verbs.add_parser("exec", help="run a command on a node, or on the controller: exec n1 ps ax")
    execute.add_argument("machine")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    on_node = {
        "power-off": "everything on NODE ends at once, unheard",
        "power-on": "boot it again",
        "net-cut": "NODE goes on, and reaches nobody",
        "net-restore": "it reaches the others again",
        "kill-slurmd": "kill -9; jobs on NODE go on",
        "start-slurmd": "start it again",
        "drain": "NODE takes no new jobs",
        "fail": "Slurm takes NODE for lost, at once",
        "resume": "after drain and fail",
    }
    for verb, does in on_node.items():
        verbs.add_parser(verb, help=does).add_argument("node", metavar="NODE")
    on_controller = {"ctld": "slurmctld; jobs go on", "dbd": "slurmdbd; slurmctld keeps its reports for later"}
    for daemon, does in on_controller.items():
        verbs.add_parser(f"kill-{daemon}", help=f"kill -9 of {does}")
        verbs.add_parser(f"start-{daemon}", help="start it again")
    return top


_MEANING = {
    "nodes": "how many",
    "cpus": "that each node advertises, whatever this machine has",
    "memory_mb": "that each node advertises; a job that asks for none gets its share by CPUs",
    "gpus": "of each node: --gres=gpu:N, in name only",
    "accounting": "slurmdbd with MariaDB, for sacct",
    "proctrack": "what finds a job's processes; cgroup also limits memory",
    "grace_seconds": "GraceTime of the partitions main, low, lowcancel",
    "kill_wait_seconds": "KillWait: from SIGTERM to SIGKILL",
    "cred_expire_seconds": "a requeued job may start again after this and one second more",
    "send_user_signal": "preempted jobs get the signal of their --signal",
    "requeue": "JobRequeue: jobs are requeued unless they say --no-requeue",
    "shared": "a folder under /tmp that nodes see too (may be repeated)",
}


def settings_of(arguments: argparse.Namespace) -> Settings | None:
    """None when nothing was chosen."""
    return chosen(arguments, Settings)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        _do(Cluster(arguments.name, arguments.state), arguments)
    except ClusterError as error:
        print(f"slurm-cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _do(cluster: Cluster, arguments: argparse.Namespace) -> None:
    match arguments.verb:
        case "up":
            command_line.bring_up("slurm-cluster", arguments.name, partial(cluster.up, settings_of(arguments)))
        case "down":
            cluster.down(arguments.wipe)
        case "status":
            _status(cluster)
        case "env":
            command_line.export(cluster.env)
        case "exec":
            command = cluster.inside(arguments.machine, arguments.command or ["bash"])
            os.execvpe(command[0], command, {**os.environ, **cluster.env})
        case verb:
            on_node = [arguments.node] if "node" in arguments else []
            getattr(cluster, verb.replace("-", "_"))(*on_node)


def _status(cluster: Cluster) -> None:
    lines = cluster.status()
    for name, said in lines:
        print(f"{name:6s} {said}")
    if "slurmctld up" in dict(lines).get("ctl", ""):
        print(cluster.output("sinfo", "--Node", "--partition=main", "--format=%8N %12T %12C %8G %E"), end="")
