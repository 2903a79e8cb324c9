"""What a cluster needs of Debian."""

from pathlib import Path

from machines.packages import Packages
from machines.shell import output

NEEDED = Packages(
    "a cluster",
    Path(__file__).with_name("packages.txt"),
    (
        *("ip", "nsenter", "unshare"),
        *("munged", "mariadbd", "mariadb", "mariadb-install-db"),
        *("slurmctld", "slurmd", "slurmdbd", "sbatch", "srun", "sacct", "sacctmgr", "scontrol", "sinfo", "squeue"),
    ),
)


def obstacle() -> str | None:
    """Why no cluster can come up on this machine; None when one can, be it after an installation."""
    return NEEDED.obstacle()


def slurm_version() -> tuple[int, int]:
    """Of the daemons: (22, 5) for 22.05.8."""
    major, minor = output(["slurmctld", "-V"]).split()[-1].split(".")[:2]
    return int(major), int(minor)
