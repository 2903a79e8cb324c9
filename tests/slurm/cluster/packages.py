"""What a cluster needs of Debian."""

import os
import shutil
from pathlib import Path

from slurm.cluster.errors import ClusterError
from slurm.cluster.shell import output

PACKAGES = Path(__file__).with_name("packages.txt").read_text().split()
PROGRAMS = (
    *("ip", "nsenter", "unshare"),
    *("munged", "mariadbd", "mariadb", "mariadb-install-db"),
    *("slurmctld", "slurmd", "slurmdbd", "sbatch", "srun", "sacct", "sacctmgr", "scontrol", "sinfo", "squeue"),
)


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def obstacle() -> str | None:
    """Why no cluster can come up on this machine; None when one can, be it after an installation."""
    if os.geteuid() != 0:
        return "a cluster takes root: it makes namespaces and network interfaces"
    if missing() and shutil.which("apt-get") is None:
        return f"a cluster takes Debian's packages ({' '.join(PACKAGES)}); this machine lacks {', '.join(missing())}"
    return None


def install() -> None:
    """What is missing. Raises ClusterError where that cannot be."""
    if reason := obstacle():
        raise ClusterError(reason)
    if missing():
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        output(["apt-get", "-qq", "-o", "Acquire::Retries=5", "update"], 300, quiet)
        options = ["-qq", "-y", "--no-install-recommends", "-o", "Acquire::Retries=5"]
        output(["apt-get", "install", *options, *PACKAGES], 900, quiet)


def slurm_version() -> tuple[int, int]:
    """Of the daemons: (22, 5) for 22.05.8."""
    major, minor = output(["slurmctld", "-V"]).split()[-1].split(".")[:2]
    return int(major), int(minor)
