"""A run: one id, one directory, its record of how it was launched, and where everything in it lies."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import launcher
from launcher.address import Address, absolute, below, here, is_local, split, storage_at
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.events import FORMAT
from launcher.ledger import Ledger
from launcher.storage import Storage, Unreachable

RECORD = "run.json"
SWEEP = "sweep.json"
"""In the folder of a sweep: the record of what its runs have in common, and what they differ in."""

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
            self.record = read_record(storage)
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
        """The record with spec, code and target as they have been changed since the run was created."""
        state = self.ledger.refresh()
        spec = state.spec or self.record.spec
        code = code_from(state.code) if state.code else self.record.code
        now = replace(self.record, spec=spec, code=code if spec.get("code", {}).get("snapshot", True) else None)
        return now if state.target is None else replace(now, target=state.target, site=state.site)

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


def code_folder(code: Code) -> str:
    """Of the snapshot, relative to the run directory (see `code_root`) or to the scratch folder."""
    return f"code/{code.digest}"


def code_archive(code: Code) -> str:
    """The snapshot as one file, for storage that nothing can be imported from; relative to the run directory."""
    return f"code/{code.digest}.tar"


def code_root(run_dir: str, code: Code) -> str:
    """The address of the folder that the snapshot's paths are relative to: the run's, or that of its sweep. Pure."""
    return split(run_dir)[0] if code.shared else run_dir


def code_home(run_dir: str, code: Code) -> str:
    """The folder that ranks import from: the snapshot itself, or what it was unpacked to on this machine. Pure."""
    return f"{here(code_root(run_dir, code))}/{code_folder(code)}"


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
    write_record(storage, RECORD, record)
    return Run(storage)


def write_record(storage: Storage, file: str, record: Record, **more: Any) -> None:
    """Raises UsageError if there is one, LauncherError if it cannot be written."""
    with writing(storage.root):
        try:
            storage.create(file, (json.dumps({**asdict(record), **more}, indent=1) + "\n").encode())
        except FileExistsError:
            raise UsageError(f"a run named '{record.id}' exists already: {storage.root}") from None


def cell_id(sweep_id: str, index: int) -> str:
    """Of one run of a sweep."""
    return f"{sweep_id}.{cell_folder(index)}"


def cell_folder(index: int) -> str:
    """Its run directory, relative to the folder of the sweep."""
    return f"{index:04d}"


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


class Entry(NamedTuple):
    """A run or a sweep."""

    id: str
    address: str
    is_sweep: bool = False


def entries(runs_root: Address) -> list[Entry]:
    """All runs and sweeps, the oldest first; without the runs of sweeps.

    Raises:
        OSError: they cannot be listed.
    """
    storage = storage_at(runs_root)

    def aged(name: str) -> tuple[float, Entry] | None:
        for file in (RECORD, SWEEP):
            with suppress(FileNotFoundError, NotADirectoryError):
                return storage.modified(f"{name}/{file}"), Entry(name, below(runs_root, name), file == SWEEP)
        return None

    names = storage.list("")
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # an object store answers each after some hundredths of a second
        found = list(threads.map(aged, names)) if names else []
    return [entry for _, entry in sorted(one for one in found if one is not None)]


def run_ids(runs_root: Address) -> list[str]:
    """Ids of all runs and sweeps: a new one can have none of them. The oldest first."""
    return [one.id for one in entries(runs_root)]


def find(runs_root: Address, wanted: str | None) -> Entry:
    """The run or sweep with this id, name or unique beginning of an id; without one, the latest.

    `SWEEP.3` is the fourth run of a sweep.

    Raises:
        UsageError: none or several fit.
    """
    known = entries(runs_root)
    if not known:
        raise UsageError(f"there are no runs under {absolute(runs_root)} (see --runs-root, LAUNCHER_RUNS)")
    if wanted is None:
        return known[-1]
    fitting = _fitting(known, wanted)
    if not fitting and (cell := _cell(known, wanted)):
        return cell
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"'{wanted}' fits {len(fitting)} runs: {', '.join(one.id for one in fitting[-5:])}")
    raise UsageError(f"no run '{wanted}' under {absolute(runs_root)}; `launcher list` shows them")


def find_run(runs_root: Address, wanted: str | None) -> Run:
    """The same, where it must be a single run.

    Raises:
        UsageError: none or several fit, or a sweep.
        LauncherError: it is damaged, or too new.
    """
    found = find(runs_root, wanted)
    if found.is_sweep:
        raise UsageError(
            f"{found.id} is a sweep: name one of its runs, such as {found.id}.0 (`launcher status {found.id}` has all)"
        )
    return Run(storage_at(found.address))


def _fitting(known: list[Entry], wanted: str) -> list[Entry]:
    """One, if its id or name says so; else all whose ids begin like this."""
    if exact := [one for one in known if one.id == wanted]:
        return exact
    begun = [one for one in known if one.id.startswith(wanted)]
    return [one for one in begun if _name_of(one) == wanted][-1:] or begun


def _cell(known: list[Entry], wanted: str) -> Entry | None:
    name, _, index = wanted.rpartition(".")
    sweeps = [one for one in _fitting(known, name) if one.is_sweep] if name and index.isdecimal() else []
    if len(sweeps) != 1:
        return None
    (sweep,) = sweeps
    cell = Entry(cell_id(sweep.id, int(index)), below(sweep.address, cell_folder(int(index))))
    if RECORD not in storage_at(cell.address).list(""):
        raise UsageError(f"{cell.id} has not begun, or there is no such run; `launcher status {sweep.id}` lists them")
    return cell


def _name_of(entry: Entry) -> str | None:
    """None if the record cannot be read: it must not hide the others."""
    try:
        return read_record(storage_at(entry.address), SWEEP if entry.is_sweep else RECORD).name
    except (LauncherError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def open_run(runs_root: Address, run_id: str) -> Run:
    return Run(storage_at(below(runs_root, run_id)))
