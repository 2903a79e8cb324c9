"""A run: one id, one directory, its record of how it was launched, and where everything in it lies."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import launcher
from launcher.address import Address, absolute, below, here, is_local, storage_at
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.ledger import FORMAT, Ledger
from launcher.storage import Storage, Unreachable

_AT_ONCE = 16
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


class Run:
    """An existing run directory."""

    def __init__(self, storage: Storage) -> None:
        """Opens what `create_run` made.

        Raises:
            UsageError: there is no run.
            FormatTooNew: a newer launcher made it.
            LauncherError: run.json cannot be read, or is not what a launcher wrote.
        Unreachable: the storage does not answer.
        """
        self.storage = storage
        try:
            self.record = _read_record(storage)
        except FileNotFoundError:
            raise UsageError(f"{storage.root}: there is no run here (no run.json)") from None
        except Unreachable:  # that says nothing about the file
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise LauncherError(
                f"{storage.root}/run.json: damaged, or not written by a launcher ({problem})"
            ) from error
        self.ledger = Ledger(storage)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def now(self) -> Record:
        """The record with spec and code as they have been changed since the run was created."""
        state = self.ledger.refresh()
        spec = state.spec or self.record.spec
        code = code_from(state.code) if state.code else self.record.code
        return replace(self.record, spec=spec, code=code if spec.get("code", {}).get("snapshot", True) else None)

    @property
    def finished(self) -> dict[str, Any] | None:
        """The newest attempt's finished.json; a run is finished if and only if it exists.

        An attempt that was overtaken and comes to its end all the same writes its own, which nobody reads.
        """
        state = self.ledger.refresh()
        if not state.attempts or state.attempts[-1].number <= state.budget_from:
            return None  # or it was resumed since, and is finished no longer
        content: dict[str, Any] | None = self.read_json(finished_path(state.attempts[-1].number))
        return content

    def read_json(self, path: str) -> Any:
        """A JSON file of the run directory; None if it does not exist."""
        try:
            return json.loads(self.storage.read(path))
        except FileNotFoundError:
            return None

    def write_json(self, path: str, body: Mapping[str, Any]) -> None:
        self.storage.replace(path, (json.dumps(body, indent=1) + "\n").encode())


def _read_record(storage: Storage) -> Record:
    """Keys that this launcher does not know are passed over: the format says whether they matter."""
    body = json.loads(storage.read("run.json"))
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


def code_folder(code: Code) -> str:
    """Of the snapshot, relative to the run directory or to the scratch folder."""
    return f"code/{code.digest}"


def code_archive(code: Code) -> str:
    """The snapshot as one file, for storage that nothing can be imported from; relative to the run directory."""
    return f"code/{code.digest}.tar"


def code_home(run_dir: str, code: Code) -> str:
    """The folder that ranks import from: the snapshot itself, or what it was unpacked to on this machine. Pure."""
    return f"{here(run_dir)}/{code_folder(code)}"


def files_folder(run_dir: str, attempt: int) -> Path:
    """Where Lightning and the loggers of an attempt write: the run directory, or what stands in for it here. Pure."""
    return here(run_dir) if is_local(run_dir) else here(run_dir) / files_prefix(attempt)


def files_prefix(attempt: int) -> str:
    """Where such files are stored that had to be written elsewhere."""
    return f"{attempt_folder(attempt)}/files"


def diff_path(code: Code) -> str:
    return f"code/{code.digest}.diff"


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt:03d}"


def log_path(attempt: int, rank: int) -> str:
    return f"{attempt_folder(attempt)}/logs/rank-{rank:05d}.log"


def spec_path(attempt: int) -> str:
    """The resolved job spec that the attempt was started with."""
    return f"{attempt_folder(attempt)}/spec.json"


def progress_path(attempt: int) -> str:
    """Rank 0's heartbeat: step, epoch, precision, metrics."""
    return f"{attempt_folder(attempt)}/progress.json"


def finished_path(attempt: int) -> str:
    """What rank 0 writes when training and test have come to their end."""
    return f"{attempt_folder(attempt)}/finished.json"


def environment_path(attempt: int) -> str:
    """Versions of Python and of all packages, as rank 0 found them."""
    return f"{attempt_folder(attempt)}/environment.json"


def failure_path(attempt: int, rank: int) -> str:
    """What a rank wrote about the exception that ended it."""
    return f"{attempt_folder(attempt)}/failure-{rank:05d}.json"


def failures(run: Run, attempt: int) -> list[dict[str, Any]]:
    """The failure records of an attempt, the earliest first."""
    folder = attempt_folder(attempt)
    names = [name for name in run.storage.list(folder) if name.startswith("failure-")]
    records = [run.read_json(f"{folder}/{name}") for name in names]
    return sorted(records, key=lambda record: record["time"])


def new_id(name: str) -> str:
    """Sorts by time, unique on shared storage: `<name>-<date>-<time>-<four random hex digits>`."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def create_run(runs_root: Address, record: Record) -> Run:
    """Raises UsageError if the id is taken or no good as a folder's name, LauncherError if it cannot be written."""
    check_id(record.id)
    storage = storage_at(below(runs_root, record.id))
    with writing(storage.root):
        try:
            storage.create("run.json", (json.dumps(asdict(record), indent=1) + "\n").encode())
        except FileExistsError:
            raise UsageError(f"a run named '{record.id}' exists already: {storage.root}") from None
    return Run(storage)


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


def run_ids(runs_root: Address) -> list[str]:
    """Ids of all runs, the oldest first.

    Raises:
        OSError: they cannot be listed.
    """
    storage = storage_at(runs_root)

    def age(name: str) -> float | None:
        try:
            return storage.modified(f"{name}/run.json")
        except (FileNotFoundError, NotADirectoryError):
            return None

    names = storage.list("")
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # an object store answers each after some hundredths of a second
        ages = list(threads.map(age, names)) if names else []
    return [name for _, name in sorted((at, name) for at, name in zip(ages, names, strict=True) if at is not None)]


def find_run(runs_root: Address, wanted: str | None) -> Run:
    """The run with this id, name or unique prefix of an id; without one, the latest.

    Raises:
        UsageError: none or several fit.
        LauncherError: it is damaged, or too new.
    """
    ids = run_ids(runs_root)
    if not ids:
        raise UsageError(f"there are no runs under {absolute(runs_root)} (see --runs-root, LAUNCHER_RUNS)")
    if wanted is None:
        return open_run(runs_root, ids[-1])
    if wanted in ids:
        return open_run(runs_root, wanted)
    fitting = [name for name in ids if name.startswith(wanted)]
    named = [name for name in fitting if _name_of(runs_root, name) == wanted]
    if named:
        return open_run(runs_root, named[-1])
    if len(fitting) == 1:
        return open_run(runs_root, fitting[0])
    if fitting:
        raise UsageError(f"'{wanted}' fits {len(fitting)} runs: {', '.join(fitting[-5:])}")
    raise UsageError(f"no run '{wanted}' under {absolute(runs_root)}; `launcher list` shows them")


def _name_of(runs_root: Address, run_id: str) -> str | None:
    """None if the run cannot be read: it must not hide the others."""
    try:
        return open_run(runs_root, run_id).record.name
    except LauncherError:
        return None


def open_run(runs_root: Address, run_id: str) -> Run:
    return Run(storage_at(below(runs_root, run_id)))
