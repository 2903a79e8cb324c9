"""Where ranks run in: modules, a conda or virtual environment, a container. Pure.

The supervisor is started by the absolute path of the launcher's own Python, whatever the script sets up before. Ranks
inherit the script's environment.

A conda environment is activated once, in the script, rather than entered by `conda run` in each rank: that does not
pass signals on, hence no rank would save. Its `python` is then the first on PATH. Of a virtual environment the path of
its Python says all.
"""

import shlex
from collections.abc import Sequence

from launcher.errors import UsageError
from launcher.spec_slurm import Container, Slurm

FIND_MODULE = (
    "command -v module >/dev/null || for init in /etc/profile.d/*modules.sh /etc/profile.d/*lmod.sh "
    '"${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash"; do [ -r "$init" ] && . "$init" && break; done'
)
"""`module` is a function of login shells; a batch script has it only where the submitting shell exported it."""

_FIND_CONDA = 'eval "$("$(command -v conda || echo "${CONDA_EXE:-conda}")" shell.bash hook)"'


def setup_lines(slurm: Slurm | None) -> list[str]:
    """Lines of the batch script before the supervisor starts. Where modules or conda fail, so does the job."""
    if slurm is None:
        return []
    lines = [FIND_MODULE, f"module load {shlex.join(slurm.modules)} || exit 1"] if slurm.modules else []
    if slurm.conda:
        lines += [_FIND_CONDA, f"conda activate {shlex.quote(slurm.conda)} || exit 1"]
    return [*lines, *slurm.setup]


def rank_command(
    slurm: Slurm | None,
    *,
    python: str,
    argv: Sequence[str],
    mounts: Sequence[str] = (),
    workdir: str = "/",
    gpus: bool = False,
) -> tuple[str, ...]:
    """What srun starts for each rank.

    Args:
        python: the launcher's own, for ranks that have no other.
        argv: what Python gets.
        mounts: folders that a container shows under their own names; the working directory is one of them.
        workdir: absolute, where a rank of a container starts.
        gpus: whether a container shows the GPUs (pyxis does without being asked).

    Raises:
        UsageError: a folder cannot be shown in a container.
    """
    match slurm:
        case Slurm(container=Container(runtime="apptainer") as container):
            binds = [f"--bind={mount}" for mount in _mounts(container, mounts, workdir)]
            shown = ("--nv",) if gpus else ()
            return ("apptainer", "exec", *shown, *binds, f"--pwd={workdir}", container.image, container.python, *argv)
        case Slurm(container=Container() as container):
            return (container.python, *argv)
        case Slurm(venv=str() as venv):
            return (f"{venv.rstrip('/')}/bin/python", *argv)
        case Slurm(conda=str()):
            return ("python", *argv)
        case _:
            return (python, *argv)


def srun_options(slurm: Slurm | None, *, mounts: Sequence[str] = (), workdir: str = "/") -> tuple[str, ...]:
    """The user's options of srun, and those of the container; `mounts`, `workdir` and errors as in rank_command."""
    if slurm is None:
        return ()
    container = slurm.container
    if container is None or container.runtime != "pyxis":
        return tuple(slurm.srun_args)
    return (
        *slurm.srun_args,
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, mounts, workdir))}",
        f"--container-workdir={workdir}",
    )


def _mounts(container: Container, own: Sequence[str], workdir: str) -> list[str]:
    """All as SOURCE:TARGET or with flags, which both runtimes read."""
    for folder in (*own, workdir):
        if not folder.startswith("/") or {":", ","} & set(folder):
            raise UsageError(
                f"slurm.container: {folder} cannot be mounted: runtimes take absolute paths without ':' and ','"
            )
    given = (mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts)
    return list(dict.fromkeys([*given, *(f"{folder}:{folder}" for folder in (*own, workdir))]))
