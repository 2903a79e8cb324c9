"""A Slurm cluster to test on: real daemons, each machine a set of namespaces. See `scripts/slurm-cluster --help`.

Python and not a shell script, since most of it is decisions that can be tested without root (settings, addresses,
configuration files), and since tests drive the same objects as the command line does. Standard library only: the
script runs with whatever Python a bare machine has.

    settings        what can be chosen
    layout          every name, address and path, from a cluster's name and folder
    configuration   the text of the configuration files
    shell, processes, cgroups, network, machine     the edges: programs, /proc, control groups, bridge, namespaces
    packages, database     Debian's packages; MariaDB and its first initialisation
    client          what a user of the cluster does: sbatch, squeue, wait
    cluster         up, down, faults
    command_line    scripts/slurm-cluster
"""

from slurm.cluster.client import Client
from slurm.cluster.cluster import Cluster
from slurm.cluster.errors import ClusterError
from slurm.cluster.settings import Settings

__all__ = ["Client", "Cluster", "ClusterError", "Settings"]
