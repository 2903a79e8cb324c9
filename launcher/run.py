"""A run: one id, one directory, its record of how it was launched, and where everything in it lies."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import launcher
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.ledger import FORMAT, Ledger
from launcher.storage import PosixStorage, Storage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,94}")


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
    """Folders that ranks put on their import path, in this order."""
    workdir: str = ""
    launcher: str = field(default=launcher.__version__)
    format: int = FORMAT


class Run:
    """An existing run directory."""

    def __init__(self, storage: Storage) -> None:
        """Raises UsageError if there is no run, FormatTooNew if a newer launcher made it."""
        self.storage = storage
        try:
            body = json.loads(storage.read("run.json"))
        except FileNotFoundError:
            raise UsageError(f"{storage.root}: there is no run here (no run.json)") from None
        if body["format"] > FORMAT:
            raise FormatTooNew(
                f"{storage.root}: written by launcher {body['launcher']}, this is {launcher.__version__}; "
                "update this one"
            )
        lists = {key: tuple(body[key]) for key in ("overrides", "import_path")}
        self.record = Record(**{**body, **lists})
        self.ledger = Ledger(storage)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def finished(self) -> dict[str, Any] | None:
        """The content of finished.json; a run is finished if and only if it exists."""
        content: dict[str, Any] | None = self.read_json("finished.json")
        return content

    def read_json(self, path: str) -> Any:
        """A JSON file of the run directory; None if it does not exist."""
        try:
            return json.loads(self.storage.read(path))
        except FileNotFoundError:
            return None

    def write_json(self, path: str, body: Mapping[str, Any]) -> None:
        self.storage.replace(path, (json.dumps(body, indent=1) + "\n").encode())


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt:03d}"


def log_path(attempt: int, rank: int) -> str:
    return f"{attempt_folder(attempt)}/logs/rank-{rank:05d}.log"


def progress_path(attempt: int) -> str:
    """Rank 0's heartbeat: step, epoch, precision, metrics."""
    return f"{attempt_folder(attempt)}/progress.json"


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


def create_run(runs_root: Path, record: Record) -> Run:
    """Raises UsageError if the id is taken or no good as a folder's name."""
    if not _NAME.fullmatch(record.id):
        raise UsageError(f"'{record.id}' is no name for a run: letters, digits, '.', '_' and '-', at most 95")
    storage = PosixStorage(runs_root / record.id)
    try:
        storage.create("run.json", (json.dumps(asdict(record), indent=1) + "\n").encode())
    except FileExistsError:
        raise UsageError(f"a run named '{record.id}' exists already: {storage.root}") from None
    except OSError as error:
        raise LauncherError(
            f"cannot write the run directory {storage.root}: {error.strerror}; "
            "choose another place with --runs-root or LAUNCHER_RUNS"
        ) from None
    return Run(storage)


def run_ids(runs_root: Path) -> list[str]:
    """Ids of all runs, the oldest first."""
    found = []
    for entry in _entries(runs_root):
        try:
            found.append((Path(entry.path, "run.json").stat().st_mtime_ns, entry.name))
        except OSError:
            continue
    return [name for _, name in sorted(found)]


def find_run(runs_root: Path, wanted: str | None) -> Run:
    """The run with this id, name or unique prefix of an id; without one, the latest.

    Raises:
        UsageError: none or several fit.
    """
    ids = run_ids(runs_root)
    if not ids:
        raise UsageError(f"there are no runs under {runs_root.absolute()} (see --runs-root, LAUNCHER_RUNS)")
    if wanted is None:
        return open_run(runs_root, ids[-1])
    if wanted in ids:
        return open_run(runs_root, wanted)
    fitting = [name for name in ids if name.startswith(wanted)]
    named = [name for name in fitting if open_run(runs_root, name).record.name == wanted]
    if named:
        return open_run(runs_root, named[-1])
    if len(fitting) == 1:
        return open_run(runs_root, fitting[0])
    if fitting:
        raise UsageError(f"'{wanted}' fits {len(fitting)} runs: {', '.join(fitting[-5:])}")
    raise UsageError(f"no run '{wanted}' under {runs_root.absolute()}; `launcher list` shows them")


def open_run(runs_root: Path, run_id: str) -> Run:
    return Run(PosixStorage(runs_root / run_id))


def _entries(runs_root: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(runs_root) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
