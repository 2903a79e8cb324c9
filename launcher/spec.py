"""The job spec: what a user writes, typed and checked.

A file has at least a name and a model. `model`, `data` and `trainer` are LightningCLI's, `resources` and `slurm` take
sbatch's words, `tpu` those of gcloud. All that is wrong with a file is reported at once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from launcher.document import Document, Finding, Path, Place
from launcher.errors import Problem, SpecError
from launcher.overrides import CannotSet, assign, override, vary
from launcher.spec_fields import (
    ClassSpec,
    Duration,
    Memory,
    Name,
    Range,
    Section,
    VariableName,
    seconds,
    text,
)
from launcher.spec_problems import as_problems, dotted, given, in_words
from launcher.spec_slurm import Slurm
from launcher.spec_sweep import Sweep, cells, written
from launcher.spec_tpu import Tpu
from launcher.trainer_args import TrainerArgs
from launcher.yamlfile import Unreadable, parse, read

__all__ = [
    "ClassSpec",
    "JobSpec",
    "Model",
    "TrainerArgs",
    "json_schema",
    "load_spec",
    "parse_spec",
    "runs_of",
    "seconds",
]

Positive = Annotated[int, Field(ge=1)]
Budget = Annotated[int, Field(ge=0)]
Unlimited = Budget | Literal["unlimited"]
Size = Annotated[str, text("[1-9][0-9]{0,8}[KMGT]", "an amount with its unit, such as '100M' or '2G'")]

MAX_RANKS = 100_000
_SHARED = {
    "sweep": "a sweep cannot vary itself",
    "code": "the runs of a sweep share one copy of the code",
}
"""What a sweep cannot vary, and why."""


class Model(ClassSpec):
    """The LightningModule."""

    weights: str | None = None
    """A file of weights to begin with, relative to the current folder: a checkpoint of Lightning, or a state_dict."""


class Resources(Section):
    """What each attempt needs. Nodes are machines, tasks are ranks."""

    nodes: Positive | Range = 1
    """Number of machines; or the least and the most, such as "2-4": each attempt takes what the queue gives."""
    tasks_per_node: Positive | None = None
    """Ranks on each node; by default one for each GPU, or one where there is none."""
    gpus_per_node: Budget | None = None
    """By default those that are there; 0 trains on the CPU."""
    cpus_per_task: Positive | None = None
    """CPU cores of each rank; by default the node's, divided among its ranks."""
    mem: Memory | None = None
    """Memory of each node, as sbatch has it: "16G", "512M", or "0" for all of it."""
    time: Duration | None = None
    """Time limit of an allocation, such as "90s", "24h" or "1-12:00:00". Where it ends, the run goes on in the next."""

    @property
    def least_nodes(self) -> int:
        return int(str(self.nodes).partition("-")[0])

    @property
    def most_nodes(self) -> int:
        return int(str(self.nodes).rpartition("-")[2])

    @model_validator(mode="after")
    def _not_too_many_ranks(self) -> Self:
        ranks = self.most_nodes * (self.tasks_per_node or self.gpus_per_node or 1)
        if ranks > MAX_RANKS:
            raise ValueError(f"nodes and the tasks of each make {ranks:,} ranks; at most {MAX_RANKS:,} are possible")
        return self


class Checkpoint(Section):
    """When to save, and what to keep. Of the two intervals, whichever is over first counts."""

    every_n_steps: Positive | None = None
    """Save after so many optimizer steps."""
    every: Literal["auto"] | Duration | None = "auto"
    """Save after so much time; null for never; auto by what saving costs and how often work is lost."""
    keep_last: Positive = 3
    """Older ones are removed, unless another rule keeps them."""
    keep_every: Positive | None = None
    """Keep also the first one in each stretch of so many steps."""
    monitor: str | None = None
    """A logged metric, such as val_loss. The best ones by it are saved after their validation, and kept."""
    mode: Literal["min", "max"] = "min"
    """Which values of the metric are better: small ones or large ones."""
    keep_best: Positive = 1
    """How many of the best are kept."""

    @model_validator(mode="after")
    def _best_by_something(self) -> Self:
        if self.monitor is None and {"mode", "keep_best"} & self.model_fields_set:
            raise ValueError("mode and keep_best need a metric: add monitor, such as monitor: val_loss")
        return self


class Retry(Section):
    """How often an attempt may be followed by another, by what ended it."""

    preemption: Unlimited = "unlimited"
    """The scheduler took the resources away."""
    timeout: Unlimited = "unlimited"
    """The allocation's time was over."""
    infra: Budget = 3
    """A node, the network or the storage failed; in a row without a new checkpoint."""
    error: Budget = 0
    """The code that is trained raised."""
    max_no_progress: Positive = 5
    """Attempts in a row without a new checkpoint, whatever ended them, after which the run has failed."""


class Env(Section):
    """The environment of the ranks."""

    vars: dict[VariableName, str] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    """Variables and their values, which are text: quote numbers."""


class Code(Section):
    """Where the ranks import from: a copy of the working tree, made when the run is created."""

    path: list[str] = Field(default_factory=list)
    """Additional folders, relative to that of the spec."""
    snapshot: bool = True
    """Import from the copy; false imports from the tree as it is at each start."""
    exclude: list[str] = Field(default_factory=list)
    """What the copy leaves out, beside what git ignores: patterns such as "*.bin" or "figures", relative to the root of
    the project; a folder's name stands for all that it holds."""
    max_size: Size = "100M"
    """How large the copy may be; a larger tree is refused."""
    drift: Literal["warn", "fail"] = "warn"
    """What to do when Python or a package has another version than in the attempt before."""

    @property
    def max_bytes(self) -> int:
        return int(self.max_size[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[self.max_size[-1]]


class JobSpec(Section):
    """A training job: one model, trained in one or many places, in as many attempts as it takes."""

    name: Name
    """What its runs are called."""
    seed_everything: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of Python, NumPy and PyTorch; initial weights and the order of samples follow from it."""
    model: Model
    """The LightningModule, and perhaps weights to begin with."""
    data: ClassSpec | None = None
    """The LightningDataModule; without it the model brings its own dataloaders."""
    trainer: TrainerArgs = TrainerArgs()
    """Arguments of Lightning's Trainer, under Lightning's names."""
    resources: Resources = Resources()
    exact: Literal["resume", "world-size"] = "resume"
    """What leaves the result the same to the last bit: `resume`, an interruption; `world-size`, also another number of
    ranks, between powers of two. The latter adds gradients in an order of its own, which costs time in each step."""
    checkpoint: Checkpoint = Checkpoint()
    retry: Retry = Retry()
    env: Env = Env()
    code: Code = Code()
    slurm: Slurm | None = None
    tpu: Tpu | None = None
    sweep: Sweep | None = None


def load_spec(path: FilePath, overrides: Sequence[str] = ()) -> JobSpec:
    """Read and check a file.

    Args:
        path: of the YAML file.
        overrides: assignments such as `trainer.max_epochs=3`; their values are YAML.

    Raises:
        SpecError: with everything that is wrong.
    """
    try:
        content = read(path)
    except Unreadable as error:
        raise SpecError([Problem(str(path), "", str(error))]) from None
    return parse_spec(content, source=str(path), overrides=overrides)


def parse_spec(text: str | bytes, *, source: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Check the text of a spec. `source` is what problems call the file; the rest is as for load_spec."""
    document = parse(text, lambda line: Place(line, f"{source}:{line}"))
    if not isinstance(document.value, dict):
        wrong = (
            "the file is empty" if document.value is None else f"expected keys and values, got {given(document.value)}"
        )
        missing = Finding(document.place(()), (), f"{wrong}; a job spec has at least a name and a model")
        raise SpecError(as_problems(document.findings or [missing]))
    for assignment in overrides:
        document = override(document, assignment)
    spec, findings = _validated(document)
    findings = [*document.findings, *findings, *_sweep_findings(document)]
    if spec and not findings:
        findings = [*_cell_findings(document, spec)]
    if spec is None or findings:
        raise SpecError(as_problems(findings))
    return spec


def runs_of(spec: JobSpec) -> tuple[JobSpec, ...]:
    """The specs of its runs: of a sweep, one for each; else itself."""
    if spec.sweep is None:
        return (spec,)
    common = spec.model_dump(mode="json", exclude_unset=True)
    return tuple(JobSpec.model_validate(vary(common, values)) for values in cells(spec.sweep))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}


def _validated(document: Document) -> tuple[JobSpec | None, list[Finding]]:
    try:
        return JobSpec.model_validate(document.value), []
    except ValidationError as error:
        return None, in_words(error, document, JobSpec)


def _sweep_findings(document: Document) -> Iterator[Finding]:
    """Each value of a sweep must be one that an override could set. The same is said once of each key."""
    found: dict[tuple[str, str], Finding] = {}
    for place, key, values in written(document.value.get("sweep")):
        try:
            _, path = assign(document.value, key, None)
            if path[0] in _SHARED:
                raise CannotSet(_SHARED[path[0]])
        except CannotSet as error:
            found.setdefault((key, str(error)), Finding(document.place(place), place, str(error)))
            continue
        for item, value in values:
            for message in _wrong_alone(path, value):
                found.setdefault((key, message), Finding(document.place(item), item, message))
    yield from found.values()


def _cell_findings(document: Document, spec: JobSpec) -> Iterator[Finding]:
    """What is wrong with the runs of a sweep as a whole though each value alone is right; the same is said once."""
    told: set[str] = set()
    for index, values in enumerate(cells(spec.sweep) if spec.sweep else ()):
        try:
            varied = Document(vary(document.value, values), {(): Place(0, "")}, [])
            messages = [": ".join((dotted(one.path), one.message)) for one in _validated(varied)[1]]
        except CannotSet as error:
            messages = [str(error)]
        for message in messages:
            if message not in told:
                told.add(message)
                yield Finding(document.place(("sweep",)), ("sweep",), f"run {index}: {message}")


def _wrong_alone(path: Path, value: Any) -> Iterator[str]:
    """What would be wrong with the value at the path, whatever is around it."""
    path = tuple(0 if isinstance(key, int) else key for key in path)
    for key in reversed(path):
        value = [value] if key == 0 else {key: value}
    _, findings = _validated(Document(value, {(): Place(0, "")}, []))
    for finding in findings:
        if finding.path[: len(path)] == path[: len(finding.path)]:
            below = dotted(finding.path[len(path) :])
            yield f"{below}: {finding.message}" if below else finding.message
