"""One curve over all attempts: how the loggers' files go on where the checkpoint was taken.

A killed attempt has logged steps that its checkpoint does not hold; they are run and logged again. So each checkpoint
carries a mark of how far the loggers' files had come, and the next attempt cuts them back to it. That is exact whatever
steps the values carry.
"""

import csv
import ctypes
import io
import itertools
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

from launcher.node.loggers import identity, remember_identities
from launcher.run import Run
from launcher.storage import PosixStorage, sync

_CLOCK_WAIT_S = 5.0
_STAMP = re.compile(r"tfevents\.(\d+)\.")

log = logging.getLogger(__name__)


class Curves:
    """Of rank 0. The files of all loggers, as one thing that can be marked and taken back to a mark."""

    def __init__(self, loggers: Sequence[Logger], run: Run, check: Callable[[], None] = lambda: None) -> None:
        """Expects the loggers in the order of the spec, before any of them has begun to write.

        Args:
            check: called before anything is logged; raises if a newer attempt has begun.
        """
        self._run, self._loggers, self._check = run, loggers, check
        self._root = os.path.abspath(run.storage.root)  # noqa: PTH100 - resolves no links
        self._boards = [one for one in loggers if isinstance(one, TensorBoardLogger) and _is_local(one.log_dir)]
        self._tables = [one for one in loggers if isinstance(one, CSVLogger) and _is_local(one.log_dir)]
        self._synced: dict[str, int] = {}

    def mark(self) -> dict[str, Any]:
        """Hand all that was logged to the system and say how long the files are; plain values, for the checkpoint.

        Raises:
            OSError: what was logged cannot be written.
        """
        for board in self._boards:
            if board._experiment is not None:
                board.experiment.flush()
        events = {key: path.stat().st_size for key, path in self._event_files().items()}
        tables = {}
        for table in self._tables:
            if isinstance(writer := table._experiment, _Table):
                writer.save()
                size = writer.path.stat().st_size if writer.rows else 0
                tables[self._key(writer.path)] = {
                    "rows": writer.rows,
                    "columns": list(writer.metrics_keys),
                    "bytes": size,
                }
        return {"events": events, "tables": tables}

    def sync(self, mark: Mapping[str, Any]) -> None:
        """Make durable what a mark counts. From any thread, one mark at a time.

        Raises:
            OSError: it cannot be written.
        """
        sizes = {**mark["events"], **{key: one["bytes"] for key, one in mark["tables"].items() if one["rows"]}}
        for key in [key for key, size in sizes.items() if self._synced.get(key) != size]:
            sync(self._path(key))
        self._synced = sizes

    def rewind(self, mark: Mapping[str, Any] | None) -> None:
        """Take all files back to a mark, and have the loggers go on from there. Once, before any of them writes.

        Files that have lost what the mark holds are used as they are, with one warning.

        Args:
            mark: None if the attempt starts from the beginning: nothing of earlier attempts is kept.
        """
        mark = mark or {}
        lost = [*self._cut_events(mark.get("events", {})), *self._cut_tables(mark.get("tables", {}))]
        if lost:
            log.warning("curves have gaps: these files are shorter than at the checkpoint: %s", ", ".join(lost))
        for board in self._boards:
            self._continue(board)
        remember_identities(self._loggers, self._run)

    def _cut_events(self, sizes: Mapping[str, int]) -> Iterator[str]:
        """Yields the files that are too short.

        Cut in place: the length changes at once or not at all, and a second cut does no harm. Files that the mark does
        not know are emptied rather than deleted: a running TensorBoard that reads one would never get past it.
        """
        files = self._event_files()
        for key in sorted({*files, *sizes}):
            size, wanted = files[key].stat().st_size if key in files else 0, sizes.get(key, 0)
            if size < wanted:
                yield key
            elif size > wanted:
                os.truncate(files[key], wanted)

    def _cut_tables(self, known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yields the files that are too short."""
        for table in self._tables:
            path = _absolute(table.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            wanted = known.get(self._key(path), {"rows": 0, "columns": []})
            rows = _cut_table(path, wanted["rows"], wanted["columns"])
            if rows < wanted["rows"]:
                yield self._key(path)
            table._experiment = _Table(path, rows, wanted["columns"])

    def _continue(self, board: TensorBoardLogger) -> None:
        """Prepare the next event file: its name, and what it says to a running TensorBoard about those before it."""
        folder = _absolute(board.log_dir)
        files, last, said = [*folder.glob("*tfevents*")], -1, set()
        for path in files:
            ours = path.name.endswith(self._suffix(board))
            for event in _events(path):
                last = max(last, event.step)
                if ours and event.step == 0:
                    said |= {(one.tag, one.simple_value) for one in event.summary.value if one.HasField("simple_value")}
        # "Forget what has this step or a greater one": nothing that was kept has, so it concerns what was cut, if a
        # running TensorBoard had read it. The first such word in a curve is not heeded, hence one in each attempt.
        board._kwargs["purge_step"] = last + 1
        if not self._is_inside(folder):
            board._kwargs["filename_suffix"] = board._kwargs.get("filename_suffix", "") + self._suffix(board)
        if said:
            _say_once(board, said)
        _check_first(board, self._check)
        _await_later_name(files)

    def _event_files(self) -> dict[str, Path]:
        """All event files of this run; also those below log_dir, where add_scalars and add_hparams write."""
        found = (
            path
            for board in self._boards
            for path in _absolute(board.log_dir).rglob("*tfevents*")
            if path.is_file() and path.name.endswith(self._suffix(board))
        )
        return {self._key(path): path for path in found}

    def _suffix(self, board: TensorBoardLogger) -> str:
        """Outside the run directory others may write too: what belongs to this run bears its name."""
        return "" if self._is_inside(_absolute(board.log_dir)) else f".{identity(self._run)}"

    def _is_inside(self, path: Path) -> bool:
        return path.is_relative_to(self._root)

    def _key(self, path: Path) -> str:
        """As it stands in a mark: run directories may be moved."""
        return path.relative_to(self._root).as_posix() if self._is_inside(path) else str(path)

    def _path(self, key: str) -> Path:
        return Path(self._root, key)


class _Table(ExperimentWriter):
    """Appends to a metrics.csv that is there; Lightning's deletes it."""

    def __init__(self, path: Path, rows: int, columns: Sequence[str]) -> None:
        """Expects `path` to hold that many rows under these columns, or not to exist if there are none."""
        super().__init__(str(path.parent))
        self.path, self.rows = path, rows
        self.metrics_keys = list(columns) if rows else []
        self._file = _identity(path)

    def save(self) -> None:
        if _identity(self.path) != self._file:  # a newer attempt has taken it over
            self.metrics = []
            return
        new = len(self.metrics)
        super().save()
        self.rows += new
        self._file = _identity(self.path)

    def _check_log_dir_exists(self) -> None:
        """It does, and has been cut."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """All of the file or nothing: Lightning's loses rows to a kill."""
        with self.path.open(newline="", encoding="utf-8") as file:
            _write_table(self.path, fieldnames, csv.DictReader(file))


def _identity(path: Path) -> tuple[int, ...] | None:
    """Of the file that has this name now, as it was last written to; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns  # the number of a file that is gone is given to the next


def _cut_table(path: Path, wanted: int, columns: Sequence[str]) -> int:
    """Keep the first rows and these columns; returns how many rows there are now."""
    kept: list[dict[str, str]] = []
    if wanted and path.exists():
        whole = path.read_bytes()
        text = whole[: whole.rfind(b"\n") + 1].decode(errors="replace")  # without a row that is torn
        with suppress(csv.Error):  # nor what no table holds, after a crash of the machine
            kept += itertools.islice(csv.DictReader(io.StringIO(text, newline="")), wanted)
    if kept:
        _write_table(path, columns, kept)
    else:
        path.unlink(missing_ok=True)
    return len(kept)


def _write_table(path: Path, columns: Sequence[str], rows: Iterator[dict[str, str]] | list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    PosixStorage(path.parent).replace(path.name, text.getvalue().encode())


def _events(path: Path) -> Iterator[Event]:
    """The events of a file, up to the first that is torn. (Ten times as fast as TensorBoard's own: 1.4 s a million.)"""
    left = path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:  # the length, and its checksum
            (length,) = struct.unpack("<Q", header[:8])
            left -= length + 16
            if left < 0:
                return
            body = file.read(length + 4)  # the event, and its checksum
            try:
                yield Event.FromString(body[:length])
            except DecodeError:
                return


def _say_once(board: TensorBoardLogger, said: set[tuple[str, float]]) -> None:
    """Hyperparameters' metrics are logged anew at step 0 by each attempt; drop those that stand there already.

    A second value at step 0 would be more than one too many: TensorBoard takes it for a new beginning and forgets what
    that curve had before.
    """
    write: Callable[..., None] = board.log_metrics
    prefix = f"{board._prefix}{board.LOGGER_JOIN_CHAR}" if board._prefix else ""

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        new = {name: value for name, value in metrics.items() if step or (prefix + name, _float32(value)) not in said}
        write(new, step)

    board.log_metrics = log_metrics  # type: ignore[method-assign]


def _check_first(board: TensorBoardLogger, check: Callable[[], None]) -> None:
    """Event files are appended to by their names, be it by an attempt that was overtaken."""
    write: Callable[..., None] = board.log_metrics

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        check()
        write(metrics, step)

    board.log_metrics = log_metrics  # type: ignore[method-assign]


def _float32(value: Any) -> float | None:
    """As an event file holds it; None if it is no number."""
    try:
        return ctypes.c_float(float(value)).value
    except (TypeError, ValueError):
        return None


def _await_later_name(files: Sequence[Path]) -> None:
    """Event files are read in the order of their names, which begin with the second in which they were made."""
    stamps = [int(found[1]) for path in files if (found := _STAMP.search(path.name))]
    last = max(stamps, default=0)
    deadline = time.monotonic() + _CLOCK_WAIT_S
    while int(time.time()) <= last:
        if time.monotonic() > deadline:
            log.warning(
                "this machine's clock is %d s behind the one of an earlier attempt: "
                "until it has caught up, TensorBoard shows what is logged now as if it came before",
                last - int(time.time()),
            )
            return
        time.sleep(0.02)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolves no links


def _is_local(folder: str) -> bool:
    if "://" in folder:
        log.warning("%s is no local folder: after a kill, some steps will stand there twice", folder)
    return "://" not in folder
