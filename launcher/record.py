"""How a run was launched: run.json, and what a sweep has of it."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import launcher
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.events import FORMAT
from launcher.storage import Storage

RECORD = "run.json"
SWEEP = "sweep.json"
"""In the folder of a sweep: the record of what its runs have in common, and what they differ in."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,94}")

_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "name", "target", "spec_file", "spec_text", "workdir"), str),
    **dict.fromkeys(("overrides", "import_path"), list),
    "created": (int, float),
    "spec": dict,
}
"""What the values of run.json are."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder of the user's whose files are in the snapshot."""

    path: str
    """Where it was, symlinks resolved."""
    folder: str
    """Where it is, relative to the snapshot."""
    commit: str | None = None
    """HEAD; None where there is no git, or no commit yet."""
    changed: int = 0
    """Files that are not as in that commit: changed, removed, new."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The snapshot that every attempt of a run imports from; see `code_home`."""

    digest: str
    """Over names, modes and contents of all files."""
    trees: tuple[Tree, ...]
    """The spec's own first."""
    import_path: tuple[str, ...]
    """Takes the place of Record.import_path: folders relative to the snapshot; absolute if they are outside."""
    workdir: str | None
    """Record.workdir relative to the snapshot; None if it is outside."""
    diff: bool = False
    """There is a `code/<digest>.diff`: what `git diff HEAD` said of all trees."""
    shared: bool = False
    """The snapshot is that of the sweep: it lies in the folder around the run's."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """run.json: written once, when the run is created."""

    id: str
    name: str
    created: float
    """Seconds since 1970."""
    target: str
    spec: dict[str, Any]
    """The resolved job spec, as JobSpec.model_dump gives it."""
    spec_file: str
    spec_text: str
    overrides: tuple[str, ...] = ()
    import_path: tuple[str, ...] = ()
    """Folders that ranks put on their import path, in this order, when there is no snapshot."""
    workdir: str = ""
    ranks: int | None = None
    """World size that the run was created with: the global batch, and so what each step sees, follows from it. None:
    not written down."""
    code: Code | None = None
    """None: ranks import from wherever the code is now."""
    site: dict[str, Any] | None = None
    """The target as it was resolved, as Target.model_dump gives it; None: this machine."""
    launcher: str = field(default=launcher.__version__)
    format: int = FORMAT


def read_record(storage: Storage, file: str = RECORD) -> Record:
    """Keys that this launcher does not know are passed over: the format says whether they matter.

    Raises:
        FormatTooNew: a newer launcher wrote it.
        FileNotFoundError, ValueError, KeyError, TypeError, AttributeError: it is not there, or is no record.
    """
    body = json.loads(storage.read(file))
    if body["format"] > FORMAT:
        raise FormatTooNew(
            f"{storage.root}: written by launcher {body['launcher']}, this is {launcher.__version__}; update this one"
        )
    for key, kinds in _KINDS.items():
        if not isinstance(body[key], kinds):
            raise TypeError(f"{key} is {body[key]!r}")
    lists = {key: tuple(body[key]) for key in ("overrides", "import_path")}
    code = body.get("code")
    return Record(**{**_known(Record, body), **lists, "code": code_from(code) if code is not None else None})


def code_from(body: Mapping[str, Any]) -> Code:
    """The opposite of asdict, after JSON."""
    trees = tuple(Tree(**_known(Tree, tree)) for tree in body["trees"])
    return Code(**{**_known(Code, body), "trees": trees, "import_path": tuple(body["import_path"])})


def _known(kind: type[Record | Code | Tree], body: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: body[one.name] for one in fields(kind) if one.name in body}


def new_id(name: str) -> str:
    """Sorts by time, unique on shared storage: `<name>-<date>-<time>-<four random hex digits>`."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def write_record(storage: Storage, file: str, record: Record, **more: Any) -> None:
    """Raises UsageError if there is one, LauncherError if it cannot be written."""
    with writing(storage.root):
        try:
            storage.create(file, (json.dumps({**asdict(record), **more}, indent=1) + "\n").encode())
        except FileExistsError:
            raise UsageError(f"a run named '{record.id}' exists already: {storage.root}") from None


def check_id(run_id: str) -> None:
    """Raises UsageError if it is no good as a folder's name."""
    if not _NAME.fullmatch(run_id):
        raise UsageError(f"'{run_id}' is no name for a run: letters, digits, '.', '_' and '-', at most 95")


@contextmanager
def writing(run_dir: str) -> Iterator[None]:
    """What fails here is a LauncherError that says what to do."""
    try:
        yield
    except OSError as error:
        raise LauncherError(
            f"cannot write the run directory {run_dir}: {error.strerror}; "
            "choose another place with --runs-root or LAUNCHER_RUNS"
        ) from None
