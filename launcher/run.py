"""A run: one id, one directory; its record, its ledger, and the files of its attempts."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.address import Address, below, storage_at
from launcher.errors import LauncherError, UsageError
from launcher.layout import attempt_folder, finished_path
from launcher.ledger import Ledger
from launcher.record import RECORD, Record, check_id, code_from, read_record, write_record
from launcher.storage import Storage, Unreachable


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


def failures(run: Run, attempt: int) -> list[dict[str, Any]]:
    """The failure records of an attempt, the earliest first."""
    folder = attempt_folder(attempt)
    names = [name for name in run.storage.list(folder) if name.startswith("failure-")]
    records = [run.read_json(f"{folder}/{name}") for name in names]
    return sorted(records, key=lambda record: record["time"])


def create_run(runs_root: Address, record: Record) -> Run:
    """Raises UsageError if the id is taken or no good as a folder's name, LauncherError if it cannot be written."""
    check_id(record.id)
    storage = storage_at(below(runs_root, record.id))
    write_record(storage, RECORD, record)
    return Run(storage)
