"""The section `slurm` of a job spec: sbatch's words, and the environment that ranks run in on a cluster.

Its values stand in a batch script. What could end a line there is refused here, so that nobody else has to think of it.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from launcher.spec_fields import Duration, Form, Section, seconds

LONGEST_LEAD_S = 65535
"""The longest time of sbatch's --signal."""


def _text(pattern: str, wanted: str) -> Form:
    """As spec_fields.text, but what is no text at all is left to the type, which has a hint for numbers."""
    return Form(wanted, lambda value: not isinstance(value, str) or bool(re.fullmatch(pattern, value)), pattern)


_C = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
_ONE_LINE = "one line without control characters"

Line = Annotated[
    str, _text(r"[^\\\x00-\x1f\x7f-\x9f\u2028\u2029]+", f"text: {_ONE_LINE}, nor backslashes, which sbatch removes")
]
Argument = Annotated[str, _text(f"(?!-){_C}+", f"text: {_ONE_LINE}, no '-' first")]
_DIRECTIVE = " *#(?:SBATCH|PBS|BSUB)"  # sbatch reads on until the first line that is no comment
ShellLine = Annotated[
    str,
    _text(
        rf"(?!{_DIRECTIVE}){_C}*",
        f"a shell line: {_ONE_LINE}; options of sbatch stand in additional_parameters, not in #SBATCH",
    ),
]
Option = Annotated[str, _text(f"--?[A-Za-z]{_C}*", f"an option such as '--mpi=pmix', {_ONE_LINE}")]
Nodes = Annotated[
    str, _text(r"[A-Za-z0-9][A-Za-z0-9._,\[\]-]*", "nodes in Slurm's notation, such as 'n7' or 'n[1-4,9]'")
]
AbsolutePath = Annotated[str, _text(f"/{_C}*", f"an absolute path, {_ONE_LINE}")]
Mount = Annotated[
    str,
    _text(
        r"/[^:,\x00-\x1f\x7f-\x9f\u2028\u2029]*(?::/[^:,\x00-\x1f\x7f-\x9f\u2028\u2029]*(?::[a-z+]+)?)?",
        "absolute paths such as '/data', '/data:/mnt' or '/data:/mnt:ro', without ',' in them",
    ),
]

_OWNED = {
    "array": "use sweep",
    "chdir": "ranks start where the run was submitted",
    "comment": "the launcher finds its jobs by it",
    "cpus-per-task": "use resources.cpus_per_task",
    "error": "logs lie in the run directory",
    "export": "use env.vars",
    "export-file": "use env.vars",
    "gpus-per-node": "use resources.gpus_per_node",
    "input": "ranks read nothing",
    "job-name": "use name",
    "mem": "use resources.mem",
    "no-requeue": "use retry",
    "nodes": "use resources.nodes",
    "ntasks": "use resources.nodes and resources.tasks_per_node",
    "ntasks-per-node": "use resources.tasks_per_node",
    "open-mode": "logs of a run are always appended to",
    "output": "logs lie in the run directory",
    "parsable": "the launcher reads what sbatch prints",
    "quiet": "the launcher reads what sbatch prints",
    "requeue": "use retry",
    "signal": "use slurm.signal_delay",
    "tasks-per-node": "use resources.tasks_per_node",
    "test-only": "use `launcher check`",
    "time": "use resources.time",
    "wait": "use `launcher run` without --detach",
    "wrap": "use slurm.setup for what should run before the ranks",
    **{
        name.replace("_", "-"): f"use slurm.{name}"
        for name in (
            "partition",
            "account",
            "qos",
            "constraint",
            "reservation",
            "exclude",
            "nodelist",
            "gres",
            "dependency",
            "mail_type",
            "mail_user",
        )
    },
}
"""Options of sbatch that stand elsewhere in a spec or are the launcher's own, and what to do instead."""


def _not_owned(key: str) -> str:
    option = key.replace("_", "-")
    for owned, instead in _OWNED.items():
        if owned.startswith(option):  # sbatch takes what an option begins with for the option
            raise ValueError(f"--{owned} cannot be set here; {instead}")
    return key


OptionName = Annotated[
    str,
    _text("[a-z][a-z0-9_-]*", "the long name of an option of sbatch, without dashes before it, such as 'licenses'"),
    AfterValidator(_not_owned),
]


def _no_longer_than_slurm_can(duration: str) -> str:
    if seconds(duration) > LONGEST_LEAD_S:
        raise ValueError(f"Slurm takes at most {LONGEST_LEAD_S} seconds (18 hours)")
    return duration


class Container(Section):
    """An image for the ranks. The supervisor runs outside of it."""

    image: Argument
    """As the runtime names it, such as nvcr.io#nvidia/pytorch:25.01-py3 (pyxis) or /images/torch.sif (apptainer)."""
    mounts: list[Mount] = Field(default_factory=list)
    """Folders to be seen inside, as SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro. The run directory, the code and the
    working directory are seen anyway."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis is a plugin of srun; apptainer is a program."""
    python: Argument = "python3"
    """Inside the image, where torch and Lightning must be installed."""


class Slurm(Section):
    """For a Slurm cluster, in the words of sbatch; `resources` says the rest."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    reservation: Line | None = None
    exclude: list[Nodes] = Field(default_factory=list)
    """Nodes not to run on."""
    nodelist: list[Nodes] = Field(default_factory=list)
    """Nodes to run on."""
    gres: Line | None = None
    """Such as gpu:a100:4, where resources.gpus_per_node alone does not say which."""
    array_parallelism: Annotated[int, Field(ge=1)] | None = None
    """How many runs of a sweep may run at the same time, of each array that it is submitted as."""
    dependency: Line | None = None
    """What has to happen before the run's first job starts."""
    mail_type: Line | None = None
    mail_user: Line | None = None
    signal_delay: Annotated[Duration, AfterValidator(_no_longer_than_slurm_can)] = "120s"
    """How long before the end of the allocation the ranks are told to save and stop; never more than a fifth of it."""
    modules: list[Argument] = Field(default_factory=list)
    """To load by `module load`."""
    conda: Argument | None = None
    """Name or path of the conda environment that ranks run in; by default they run in the launcher's own."""
    venv: AbsolutePath | None = None
    """Path of the virtual environment that ranks run in."""
    container: Container | None = None
    setup: list[ShellLine] = Field(default_factory=list)
    """Shell lines to run on the first node before the launcher; ranks see the variables that they export."""
    srun_args: list[Option] = Field(default_factory=list)
    """Options of the srun that starts the ranks, each with its value: --option=value."""
    additional_parameters: dict[OptionName, Line | int | bool] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}
    )
    """Other options of sbatch, by their long names."""

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        given = [name for name in ("conda", "venv", "container") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say which Python runs the ranks: keep one of them")
        return self
