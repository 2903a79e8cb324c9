"""TensorBoard's event files: how they are written and read, and what a running TensorBoard makes of them."""

import ctypes
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from launcher.node.held import Held

_CLOCK_WAIT_S = 5.0
_STAMP = re.compile(r"tfevents\.(\d+)\.")

log = logging.getLogger(__name__)


def record_writer(file: Any) -> RecordWriter:
    """What TensorBoard writes events with. Its own opens the file by name for each write."""
    name = os.fsdecode(getattr(file, "filename", "://"))  # TensorFlow's files, where it is installed, have none
    return RecordWriter(file if "://" in name else Held(Path(name)))


def events(path: Path) -> Iterator[Event]:
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


def say_once(board: TensorBoardLogger, said: set[tuple[str, float]]) -> None:
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


def await_later_name(files: Sequence[Path]) -> None:
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
