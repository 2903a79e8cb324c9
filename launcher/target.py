"""A target: a place to run, with what holds for all runs there.

`local` and `slurm` are built in. Any other has a file, `targets/NAME.yaml`, in the user's configuration or in the
project's folder `.launcher`; where both have one, the project's goes over the user's, key by key. What `launcher probe`
learned lies beside the user's, in `NAME.facts.yaml`, and below both: what is written by hand holds.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ValidationError

from launcher.document import Document, Finding, Path, Place
from launcher.errors import Problem, SpecError, UsageError
from launcher.facts import Facts
from launcher.spec import JobSpec
from launcher.spec_fields import Section
from launcher.spec_problems import as_problems, given, in_words, nearest
from launcher.spec_slurm import Slurm
from launcher.spec_tpu import Tpu
from launcher.trainer_args import TrainerArgs
from launcher.yamlfile import MAX_BYTES, Unreadable, parse, read
from launcher.yamlscalar import is_text, quoted

BUILT_IN = ("local", "slurm")
_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""No dots: they set facts apart from targets."""
_ENVIRONMENTS = ("conda", "venv", "container")
"""Keys of `slurm` of which a job has one: who names another than a lower layer means that one alone."""
_OF_THE_PLACE = ("precision", "strategy")
"""Keys of `trainer` that follow from what there is to compute on."""


def _of_the_place(trainer: TrainerArgs) -> TrainerArgs:
    if others := sorted(trainer.model_fields_set - {*_OF_THE_PLACE}):
        raise ValueError(
            f"{', '.join(others)}: a target sets {' and '.join(_OF_THE_PLACE)} alone; what a run is, its spec says"
        )
    return trainer


class Target(Section):
    """A place to run."""

    kind: Literal["local", "slurm", "tpu"]
    """What there is: this machine, a Slurm cluster that this machine can submit to, or a project with Cloud TPUs."""
    python: str | None = None
    """What runs the launcher there; by default the Python that submits."""
    slurm: Slurm | None = None
    """Defaults for the section `slurm` of specs."""
    tpu: Tpu | None = None
    """Defaults for the section `tpu` of specs."""
    trainer: Annotated[TrainerArgs, AfterValidator(_of_the_place)] | None = None
    """Precision and strategy of all runs here, whatever their specs say; `--set` says it last."""
    api_endpoint: str | None = None
    """Where the API of Cloud TPU is, if it is not Google's own."""
    facts: Facts | None = None
    """What `launcher probe` learned."""


def load_target(name: str, folder: FilePath | None = None) -> Target:
    """Read and check a target.

    Args:
        name: built in, or that of a file.
        folder: where the project is looked for: there or above; default: the current folder.

    Raises:
        UsageError: there is no such target; names those that there are.
        SpecError: with everything that is wrong with its files.
    """
    files = _files(name, folder)
    if name not in BUILT_IN and not files:
        known = target_names(folder)
        meant = nearest(name, tuple(known))
        hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(known)}"
        raise UsageError(
            f"no target {quoted(name)}; {hint} (a target is a file such as {_user_folder()}/NAME.yaml; "
            "on a cluster `launcher probe` writes one)"
        )
    document = Document({"kind": name} if name in BUILT_IN else {}, {(): Place(0, f"target {name}")}, [])
    layers = list(_layers(name, files))
    for layer in layers:
        document = _over(document, layer)
    found, target = document.findings, None
    if all(layer.value is not None for layer in layers):  # else all that is missing would be said to be wrong, too
        try:
            target = Target.model_validate(document.value)
        except ValidationError as error:
            found = [*found, *in_words(error, document, Target)]
    if target is None or found:
        raise SpecError(as_problems(_advised(one, name) for one in found))
    return target


def target_names(folder: FilePath | None = None) -> list[str]:
    """All targets that there are; the arguments are those of load_target."""
    files = [file for one in _folders(folder) for file in one.glob("*.yaml")]
    return sorted({*BUILT_IN, *(file.stem for file in files if re.fullmatch(_NAME, file.stem))})


def placed(spec: JobSpec, target: Target, overrides: Sequence[str] = ()) -> JobSpec:
    """The spec as it runs on the target: with its defaults, and its precision and strategy.

    Args:
        overrides: assignments that were made to the spec; they hold here, too.

    Raises:
        SpecError: they do not fit together.
    """
    defaults = target.model_dump(mode="json", exclude_unset=True, include={"slurm", "tpu"})
    values = _merged(defaults, spec.model_dump(mode="json", exclude_unset=True))
    if own := trainer_of(target, overrides):
        values["trainer"] = {**values.get("trainer", {}), **own}
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        document = Document(values, {(): Place(0, "the spec with what its target says")}, [])
        raise SpecError(as_problems(in_words(error, document, JobSpec))) from None


def trainer_of(target: Target, overrides: Sequence[str]) -> dict[str, Any]:
    """What stands in the place of a spec's own `trainer` there; the arguments are those of placed."""
    own = target.model_dump(mode="json", exclude_unset=True, include={"trainer"}).get("trainer") or {}
    assigned = {tuple(one.partition("=")[0].split(".")[:2]) for one in overrides}
    return {key: value for key, value in own.items() if not assigned & {("trainer",), ("trainer", key)}}


def read_facts(name: str) -> Facts | None:
    """What was learned last; None if nothing was, or not by this version of the launcher."""
    with suppress(Unreadable, ValidationError):
        return Facts.model_validate(parse(read(_facts_file(name)), lambda line: Place(line, "")).value)
    return None


def write_facts(name: str, facts: Facts) -> list[FilePath]:
    """Keep what was learned, in place of what was; a target that has no file gets one, with examples.

    Returns:
        The files that were written.

    Raises:
        UsageError: no target can be called so.
    """
    if name == "local" or not re.fullmatch(_NAME, name):
        raise UsageError(f"a cluster cannot be called {quoted(name)} here; name the target: launcher probe --on NAME")
    text = yaml.dump(
        facts.model_dump(mode="json", exclude_defaults=True), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )
    written = {_facts_file(name): _FACTS_HEADER.format(name=name) + text}
    if not _files(name, None):
        written[_user_folder() / f"{name}.yaml"] = _EXAMPLE.format(
            name=name, partition=facts.default_partition or "gpu"
        )
    for file, content in written.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_text(content)
        beside.replace(file)
    return list(written)


_FACTS_HEADER = """\
# What `launcher probe --on {name}` learned; it writes this file anew. To correct a value, write it in {name}.yaml,
# below `facts`: what stands there holds.
"""
_EXAMPLE = """\
# For runs with `--on {name}`. A spec may say otherwise.
kind: slurm
# python: /shared/venv/bin/python    # what runs the launcher in jobs; all nodes must see it
# slurm:                     # the words of a spec's section `slurm`
#   partition: {partition}
#   account: my-project
#   setup: [module load cuda]
"""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.2 takes for something else than text, too."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text(text) else '"'),
)


def _user_folder() -> FilePath:
    base = os.environ.get("XDG_CONFIG_HOME") or FilePath.home() / ".config"
    return FilePath(base) / "launcher/targets"


def _facts_file(name: str) -> FilePath:
    return _user_folder() / f"{name}.facts.yaml"


def _folders(folder: FilePath | None) -> Iterator[FilePath]:
    """Where targets are: the user's folder, then the project's, which goes over it."""
    yield _user_folder()
    start = (folder or FilePath.cwd()).absolute()
    for root in (start, *start.parents):
        if (root / "pyproject.toml").exists() or (root / ".git").exists():
            yield root / ".launcher/targets"
            return


def _files(name: str, folder: FilePath | None) -> list[FilePath]:
    files = (one / f"{name}.yaml" for one in _folders(folder))
    return [file for file in files if file.exists()] if re.fullmatch(_NAME, name) else []


def _layers(name: str, files: list[FilePath]) -> Iterator[Document]:
    """From the lowest on. Lines of a higher one sort after those of a lower one."""
    facts = _facts_file(name)
    if facts.exists():
        document = _document(facts, 0)
        places = {("facts", *path): place for path, place in document.places.items()}
        findings = [finding._replace(path=("facts", *finding.path)) for finding in document.findings]
        value = None if document.value is None else {"facts": document.value}
        yield Document(value, places | {(): document.place(())}, findings)
    for number, file in enumerate(files, start=1):
        yield _document(file, number)


def _document(file: FilePath, number: int) -> Document:
    """What a file says: keys and values, perhaps none; None where it says something else, which is found."""
    try:
        content = read(file)
    except Unreadable as error:
        raise SpecError([Problem(str(file), "", str(error))]) from None
    document = parse(content, lambda line: Place(number * MAX_BYTES + line, f"{file}:{line}"))
    if not isinstance(document.value, dict | None):
        wrong = Finding(document.place(()), (), f"expected keys and values, got {given(document.value)}")
        return Document(None, document.places, [*document.findings, wrong])
    return Document(document.value or (None if document.findings else {}), document.places, document.findings)


def _over(low: Document, high: Document) -> Document:
    """The lower layer where the higher one is silent; of each value, the place in the layer that it comes from."""
    ends = {*high.places} - {*_mappings(high.value, ())}
    kept = {
        path: place
        for path, place in low.places.items()
        if not any(path[:length] in ends for length in range(len(path)))
    }
    return Document(_merged(low.value, high.value or {}), kept | high.places, [*low.findings, *high.findings])


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a target or a spec, key by key; lists are replaced as a whole."""
    slurm = high.get("slurm")
    named = {*_ENVIRONMENTS} & {*slurm} if isinstance(slurm, Mapping) else set()
    if named and isinstance(below := low.get("slurm"), Mapping):
        low = {**low, "slurm": {key: value for key, value in below.items() if key in named or key not in _ENVIRONMENTS}}
    return _deep(low, high)


def _deep(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = low.get(key)
        merged[key] = _deep(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _mappings(value: Any, path: Path) -> Iterator[Path]:
    """Paths of all mappings that are in a value, itself included."""
    if isinstance(value, dict):
        yield path
        for key, below in value.items():
            yield from _mappings(below, (*path, key))


def _advised(finding: Finding, name: str) -> Finding:
    if finding.place.text.startswith(f"{_facts_file(name)}:"):
        return finding._replace(message=f"{finding.message} (`launcher probe --on {name}` writes this file anew)")
    return finding
