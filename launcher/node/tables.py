"""The metrics.csv of Lightning's CSVLogger, cut to its first rows and written on by one attempt."""

import csv
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from launcher.node.held import Held
from launcher.storage import sync


class Table(ExperimentWriter):
    """A metrics.csv of its own, in place of the one that is there. Lightning's deletes that, and writes by name."""

    def __init__(self, path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
        """Begins with these rows and columns."""
        super().__init__(str(path.parent))
        self.path, self.rows = path, len(rows)
        self.metrics_keys = list(columns) if rows else []
        self._file = self._renewed(rows)

    def save(self) -> None:
        if not self.metrics:
            return
        if self._record_new_keys() and self._is_ours():
            with self.path.open(newline="", encoding="utf-8") as file:
                self._file = self._renewed(list(csv.DictReader(file)))
        self._file.write(_as_csv(self.metrics_keys, self.metrics))
        self.rows += len(self.metrics)
        self.metrics = []

    def _renewed(self, rows: Sequence[Mapping[str, Any]]) -> "Held":
        """All of the file or nothing: Lightning's loses rows to a kill."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        file = Held(beside)
        header = dict(zip(self.metrics_keys, self.metrics_keys, strict=True))
        file.write(_as_csv(self.metrics_keys, [header, *rows]) if header else b"")
        os.fsync(file.descriptor)
        beside.replace(self.path)
        sync(self.path.parent)
        return file

    def _is_ours(self) -> bool:
        """Not so once another attempt has put its own in this one's place."""
        try:
            return os.path.samestat(os.fstat(self._file.descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _check_log_dir_exists(self) -> None:
        """It does, and what is in it stays."""


def first_rows(path: Path, wanted: int) -> list[dict[str, str]]:
    """Of a table; fewer if it does not hold so many."""
    if not wanted or not path.exists():
        return []
    whole = path.read_bytes()
    text = whole[: whole.rfind(b"\n") + 1].decode(errors="replace")  # without a row that is torn
    rows: list[dict[str, str]] = []
    with suppress(csv.Error):  # nor what no table holds, after a crash of the machine
        rows += itertools.islice(csv.DictReader(io.StringIO(text, newline="")), wanted)
    return rows


def _as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, fieldnames=columns, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()
