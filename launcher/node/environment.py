"""Who this rank is: read from the environment that the backend gave it; no torch."""

import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from launcher.layout import files_folder

Accelerator = Literal["gpu", "cpu", "xla"]
"""`xla`: whatever PJRT_DEVICE names, by torch_xla."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank of one attempt of one run."""

    run_dir: str
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    accelerator: Accelerator
    main_address: str
    main_port: int

    @property
    def files(self) -> Path:
        """Where Lightning and the loggers write."""
        return files_folder(self.run_dir, self.attempt)

    @property
    def nodes(self) -> int:
        return self.world_size // self.local_world_size


def place_from(env: Mapping[str, str]) -> Place:
    """Read torchrun's variables and the launcher's own. Raises KeyError naming the missing one."""
    return Place(
        run_dir=env["LAUNCHER_RUN_DIR"],
        attempt=int(env["LAUNCHER_ATTEMPT"]),
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        local_world_size=int(env["LOCAL_WORLD_SIZE"]),
        node_rank=int(env["NODE_RANK"]),
        accelerator=cast(Accelerator, env["LAUNCHER_ACCELERATOR"]),
        main_address=env["MASTER_ADDR"],
        main_port=int(env["MASTER_PORT"]),
    )


def adopt_slurm_numbers() -> None:
    """Where srun started this rank, put its numbers under torchrun's names, for the launcher and for the user's code.

    Source: srun(1), OUTPUT ENVIRONMENT VARIABLES.
    """
    for name, slurm in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"), ("NODE_RANK", "SLURM_NODEID")):
        if name not in os.environ and slurm in os.environ:
            os.environ[name] = os.environ[slurm]


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when its parent dies, whatever kills it (prctl(2)).

    Args:
        parent: pid of the process that must still be the parent; another one means that it died before
            the kernel was told.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
