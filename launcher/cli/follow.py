"""Following a run: rank 0's log as it grows, the ledger's turns, and a progress bar at the bottom."""

import time

from launcher.cli.terminal import Terminal, bar
from launcher.events import AttemptEnded, AttemptResumes, AttemptStarted, CheckpointsDropped
from launcher.layout import log_path, progress_path
from launcher.output import parts
from launcher.run import Run
from launcher.state import RunState
from launcher.storage import Storage

_BAR_S = 0.5
_PLAIN_S = 10.0


class LogTail:
    """New whole lines of a rank's growing log."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path, self._offset = storage, path, 0

    def lines(self) -> list[str]:
        try:
            data = b"".join(parts(self._storage, self._path, self._offset))
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


class Follower:
    """Shows what happens to a run; call `tick` a few times a second."""

    def __init__(self, run: Run, terminal: Terminal, rank: int = 0) -> None:
        self._run, self._terminal, self._rank = run, terminal, rank
        self._seen = len(run.ledger.records())
        self._attempt = 0
        self._tail: LogTail | None = None
        self._drawn_at = 0.0

    def tick(self, state: RunState) -> None:
        attempt = state.attempts[-1] if state.attempts else None
        if attempt and attempt.number != self._attempt:
            self._print_log()
            self._attempt = attempt.number
            self._tail = LogTail(self._run.storage, log_path(attempt.number, self._rank))
        self._print_log()
        for record in self._run.ledger.records()[self._seen :]:
            self._print_event(record.event)
            self._seen = record.number
        if attempt and attempt.ended is None:
            self._draw(attempt.number)
        else:
            self._terminal.bottom("")

    def _print_log(self) -> None:
        for line in self._tail.lines() if self._tail else []:
            self._terminal.line(line)

    def _print_event(self, event: object) -> None:
        match event:
            case AttemptStarted(attempt=number, hosts=hosts, idle=idle) if idle:
                self._terminal.line(f"attempt {number} runs on {', '.join(hosts)}; {', '.join(idle)} idle")
            case AttemptResumes(attempt=number, step=step, path=path):
                begins = f"resumes from step {step}" if path else "starts from the beginning"
                self._terminal.line(self._terminal.colour(f"attempt {number} {begins}", "bold"))
            case AttemptEnded(attempt=number, cause=cause, reason=reason, step=step):
                because = f" ({reason})" if reason else ""
                self._terminal.line(
                    self._terminal.colour(f"attempt {number} ended at step {step}: {cause}{because}", "bold")
                )
            case CheckpointsDropped(paths=paths, reason=reason) if not reason.startswith("keep_last"):
                self._terminal.line(self._terminal.colour(f"set aside {paths[0]}: {reason}", "yellow"))

    def _draw(self, attempt: int) -> None:
        every = _BAR_S if self._terminal.interactive else _PLAIN_S
        if time.monotonic() - self._drawn_at < every:
            return
        self._drawn_at = time.monotonic()
        report = self._run.read_json(progress_path(attempt))
        if report and self._terminal.interactive:
            self._terminal.bottom(bar(report))
        elif report:
            self._terminal.line(bar(report))
