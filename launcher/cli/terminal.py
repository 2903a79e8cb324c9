"""Writing to a terminal or to a pipe: colours and one redrawn line on the former, plain lines on the latter."""

import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2, "bold": 1}
_STATES = {
    "finished": "green",
    "running": "blue",
    "queued": "dim",
    "stopped": "yellow",
    "unknown": "yellow",
    "moved": "yellow",
    "failed": "red",
    "cancelled": "red",
}


class Terminal:
    """A stream with an optional line at its bottom that is redrawn in place.

    Args:
        unread: go on in silence when nobody reads the stream any more: the pipe or the terminal is closed.
    """

    def __init__(self, stream: TextIO | None = None, *, unread: bool = False) -> None:
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="replace")  # a rank may print what this terminal's encoding lacks
        self.interactive = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self.interactive and not os.environ.get("NO_COLOR")
        self._unread = unread
        self._bottom = ""

    def colour(self, text: str, name: str) -> str:
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self._coloured else text

    def state(self, state: str) -> str:
        return self.colour(state, _STATES[state])

    def line(self, text: str = "") -> None:
        bottom = self._bottom
        self.bottom("")
        self._write(text + "\n")
        self.bottom(bottom)

    def bottom(self, text: str) -> None:
        """Redraw the bottom line; nothing in a pipe."""
        if not self.interactive or text == self._bottom:
            return
        width = shutil.get_terminal_size().columns - 1
        self._write("\r\x1b[K" + text[:width])
        self._bottom = text

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        for index, row in enumerate((head, *rows)):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self.line(self.colour(text, "dim") if index == 0 else text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            if not self._unread:
                raise
            discard(self._stream)


def discard(stream: TextIO) -> None:
    """Lead a stream to nowhere, with what it holds and all that is yet to come."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def bar(progress: dict[str, Any], width: int = 24) -> str:
    """`epoch 2  [=====>    ] 340/1000  train_loss 0.31`"""
    step, total = progress.get("step", 0), progress.get("total_steps")
    drawn = f"step {step}"
    if total:
        filled = min(width, width * step // total)
        drawn = f"[{'=' * filled}{' ' * (width - filled)}] {step}/{total}"
    stage = progress.get("stage", "train")
    shown = "" if stage == "train" else f"  {stage}"
    return f"epoch {progress.get('epoch', 0)}  {drawn}{shown}  {metrics_text(progress.get('metrics', {}))}".rstrip()


def metrics_text(metrics: dict[str, float | None]) -> str:
    return "  ".join(f"{name} {'nan' if value is None else format(value, '.4g')}" for name, value in metrics.items())


def metric_text(value: float | None) -> str:
    return "-" if value is None else format(value, ".4g")


def values_text(values: Mapping[str, Any]) -> str:
    """What a run of a sweep differs in: `lr=0.001 layers=[64, 64]`."""
    return " ".join(f"{name}={value_text(values[key])}" for key, name in short(values).items())


def value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key with its last part, or with the whole of it where several have the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def ago(at: float) -> str:
    """Seconds since 1970 to a short span before now."""
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"


def clock(at: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at))
