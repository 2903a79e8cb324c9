"""One curve over all attempts: how the loggers' files go on where the checkpoint was taken.

A killed attempt has logged steps that its checkpoint does not hold; they are run and logged again. So each checkpoint
carries a mark of how far the loggers' files had come, and the next attempt takes them back to it. That is exact
whatever steps the values carry.

An attempt that was taken for dead may wake and write on. So each attempt has files of its own: it goes on with copies,
renamed over those of the attempt before, which still holds the old ones open and writes where nobody reads.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from launcher.mirror import Mirror, fetch
from launcher.node.loggers import identity, remember_identities
from launcher.run import Run
from launcher.storage import PosixStorage, sync

_CLOCK_WAIT_S = 5.0
_CHUNK = 1 << 20
_STAMP = re.compile(r"tfevents\.(\d+)\.")

log = logging.getLogger(__name__)


class Curves:
    """Of rank 0. The files of all loggers, as one thing that can be marked and taken back to a mark."""

    def __init__(self, loggers: Sequence[Logger], run: Run, mirror: Mirror | None = None) -> None:
        """Expects the loggers in the order of the spec, before any of them has begun to write.

        Args:
            mirror: of the folder that they write to, where that is not the run directory itself.
        """
        self._run, self._loggers, self._mirror = run, loggers, mirror
        self._root = os.path.abspath(mirror.folder if mirror else run.storage.root)  # noqa: PTH100 - resolves no links
        self._boards = [one for one in loggers if isinstance(one, TensorBoardLogger) and _is_local(one.log_dir)]
        self._tables = [one for one in loggers if isinstance(one, CSVLogger) and _is_local(one.log_dir)]
        self._synced: dict[str, int] = {}
        event_file_writer.RecordWriter = _record_writer

    def mark(self) -> dict[str, Any]:
        """Flush all files and say how long they are; plain values, for the checkpoint. Quick: see `sync`.

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
                tables[self._key(writer.path)] = {"rows": writer.rows, "columns": list(writer.metrics_keys)}
        place = {"folder": self._mirror.prefix} if self._mirror else {}
        return {**place, "events": events, "tables": tables}

    def sync(self, mark: Mapping[str, Any]) -> None:
        """Make durable what a mark of this attempt counts; before the checkpoint that carries it. From any thread.

        Raises:
            OSError: it cannot be written, or not be stored.
        """
        rows = {key: one["rows"] for key, one in mark["tables"].items() if one["rows"]}
        for key, extent in {**mark["events"], **rows}.items():
            if self._synced.get(key) != extent:
                sync(self._path(key))
                self._synced[key] = extent
        if self._mirror:
            self._mirror.push()

    def close(self) -> None:
        """Store what was logged last, if the loggers' folder is not the run directory itself."""
        if self._mirror:
            self._mirror.close()

    def rewind(self, mark: Mapping[str, Any] | None) -> None:
        """Take all files back to a mark, and have the loggers go on from there. Once, before any of them writes.

        Files that have lost what the mark holds are used as they are, with one warning.

        Args:
            mark: None if the attempt starts from the beginning: nothing of earlier attempts is kept.
        """
        mark = mark or {}
        self._fetch(mark)
        lost = [*self._cut_events(mark.get("events", {})), *self._cut_tables(mark.get("tables", {}))]
        if lost:
            log.warning("curves have gaps: these files are shorter than at the checkpoint: %s", ", ".join(lost))
        for board in self._boards:
            self._continue(board)
        remember_identities(self._loggers, self._run)
        if self._mirror:
            self._mirror.push()
            self._mirror.start()

    def _fetch(self, mark: Mapping[str, Any]) -> None:
        """Bring here what the mark counts, if it lies elsewhere: run directories may be moved to other storage."""
        there, here = mark.get("folder", ""), self._mirror.prefix if self._mirror else ""
        names = [name for part in ("events", "tables") for name in mark.get(part, {}) if not Path(name).is_absolute()]
        if there != here:
            fetch(self._run.storage, there, names, Path(self._root))

    def _cut_events(self, sizes: Mapping[str, int]) -> Iterator[str]:
        """Yields the files that are too short.

        All are replaced, those of the right length too: an attempt before this one may write on. The length changes at
        once or not at all, and a second cut does no harm. Files that the mark does not know are emptied rather than
        deleted: a running TensorBoard that reads one would never get past it. (It reads by name, from where it had come
        to, and none of these files grows any more.)
        """
        files = self._event_files()
        for key in sorted({*files, *sizes}):
            size, wanted = files[key].stat().st_size if key in files else 0, sizes.get(key, 0)
            if size < wanted:
                yield key
            if key in files:
                _keep(files[key], min(size, wanted))

    def _cut_tables(self, known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yields the files that are too short."""
        for table in self._tables:
            path = _absolute(table.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            wanted = known.get(self._key(path), {"rows": 0, "columns": []})
            rows = _first_rows(path, wanted["rows"])
            if len(rows) < wanted["rows"]:
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

    def _renewed(self, rows: Sequence[Mapping[str, Any]]) -> "_Held":
        """All of the file or nothing: Lightning's loses rows to a kill."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        file = _Held(beside)
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


class _Held:
    """A file to append to that stays this one, whatever comes to bear its name. The kernel closes it at the end."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, data: bytes) -> None:
        while data:  # a disk that is filling up takes a part, and reports the rest at the next write
            data = data[os.write(self.descriptor, data) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Left to the end of the process: TensorBoard's writer may close a file twice."""


def _record_writer(file: Any) -> RecordWriter:
    """What TensorBoard writes events with. Its own opens the file by name for each write."""
    name = os.fsdecode(getattr(file, "filename", "://"))  # TensorFlow's files, where it is installed, have none
    return RecordWriter(file if "://" in name else _Held(Path(name)))


def _keep(path: Path, size: int) -> None:
    """Put the first bytes of a file in its place, as a file of their own."""
    folder, left = PosixStorage(path.parent), size
    # Whatever has "tfevents" in its name is read by TensorBoard, so that the copy must not until it is whole.
    with path.open("rb") as given, folder.writer(".kept") as taken:
        while chunk := given.read(min(left, _CHUNK)):
            taken.write(chunk)
            left -= len(chunk)
    folder.move(".kept", path.name)


def _first_rows(path: Path, wanted: int) -> list[dict[str, str]]:
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
