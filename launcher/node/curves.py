"""One curve over all attempts: how the loggers' files go on where the checkpoint was taken.

A killed attempt has logged steps that its checkpoint does not hold; they are run and logged again. So each checkpoint
carries a mark of how far the loggers' files had come, and the next attempt takes them back to it. That is exact
whatever steps the values carry.

An attempt that was taken for dead may wake and write on. So each attempt has files of its own: it goes on with copies,
renamed over those of the attempt before, which still holds the old ones open and writes where nobody reads.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]

from launcher.address import is_local
from launcher.layout import files_prefix
from launcher.mirror import Mirror, fetch
from launcher.node.boards import await_later_name, events, record_writer, say_once
from launcher.node.environment import Place
from launcher.node.held import keep
from launcher.node.loggers import identity, remember_identities
from launcher.node.tables import Table, first_rows
from launcher.run import Run
from launcher.storage import sync

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
        self._boards = [one for one in loggers if isinstance(one, TensorBoardLogger) and _is_folder(one.log_dir)]
        self._tables = [one for one in loggers if isinstance(one, CSVLogger) and _is_folder(one.log_dir)]
        self._synced: dict[str, int] = {}
        event_file_writer.RecordWriter = record_writer

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
            if isinstance(writer := table._experiment, Table):
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
                keep(files[key], min(size, wanted))

    def _cut_tables(self, known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yields the files that are too short."""
        for table in self._tables:
            path = _absolute(table.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            wanted = known.get(self._key(path), {"rows": 0, "columns": []})
            rows = first_rows(path, wanted["rows"])
            if len(rows) < wanted["rows"]:
                yield self._key(path)
            table._experiment = Table(path, rows, wanted["columns"])

    def _continue(self, board: TensorBoardLogger) -> None:
        """Prepare the next event file: its name, and what it says to a running TensorBoard about those before it."""
        folder = _absolute(board.log_dir)
        files, last, said = [*folder.glob("*tfevents*")], -1, set()
        for path in files:
            ours = path.name.endswith(self._suffix(board))
            for event in events(path):
                last = max(last, event.step)
                if ours and event.step == 0:
                    said |= {(one.tag, one.simple_value) for one in event.summary.value if one.HasField("simple_value")}
        # "Forget what has this step or a greater one": nothing that was kept has, so it concerns what was cut, if a
        # running TensorBoard had read it. The first such word in a curve is not heeded, hence one in each attempt.
        board._kwargs["purge_step"] = last + 1
        if not self._is_inside(folder):
            board._kwargs["filename_suffix"] = board._kwargs.get("filename_suffix", "") + self._suffix(board)
        if said:
            say_once(board, said)
        await_later_name(files)

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


def mirror(run: Run, place: Place) -> Mirror | None:
    """Of what the loggers write, where that is not in the run directory."""
    if is_local(place.run_dir):
        return None
    return Mirror(run.storage, files_prefix(place.attempt), place.files)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolves no links


def _is_folder(folder: str) -> bool:
    if "://" in folder:
        log.warning("%s is no local folder: after a kill, some steps will stand there twice", folder)
    return "://" not in folder
