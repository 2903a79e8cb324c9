"""why: the cause of the last failure, the first traceback, and what to do next."""

import argparse
from typing import Any

from launcher.cli.common import print_json, wanted_run
from launcher.cli.terminal import Terminal
from launcher.ledger import Attempt
from launcher.policy import Cause
from launcher.run import Run, failures, log_path
from launcher.status import status

_NEXT = {
    Cause.ERROR: "mend the code or the spec, then: launcher resume {run}",
    Cause.INFRA: "a process was killed or lost; if it happens again, look at memory and at the machine, "
    "then: launcher resume {run}",
    Cause.PREEMPTED: "nothing is wrong: launcher resume {run}",
    Cause.TIMEOUT: "nothing is wrong: launcher resume {run}",
    Cause.STOPPED: "nothing is wrong: launcher resume {run}",
    Cause.CANCELLED: "it was cancelled; to carry it on all the same: launcher resume {run}",
}


def why(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    shown = status(run)
    attempt = _last_ended(run)
    answer = _answer(run, shown, attempt)
    if args.json:
        print_json(answer)
        return 0
    terminal = Terminal()
    terminal.line(f"{run.id} {terminal.state(shown['state'])}" + (f": {shown['reason']}" if shown["reason"] else ""))
    if answer["attempt"] is not None:
        terminal.line(f"attempt {answer['attempt']} ended: {answer['cause']} ({answer['reason']})")
    if answer["traceback"]:
        terminal.line()
        terminal.line(answer["traceback"].rstrip())
        terminal.line()
    if answer["rank"] is not None:
        terminal.line(f"log of rank {answer['rank']} on {answer['host']}: {answer['log']}")
    if answer["next"]:
        terminal.line(f"next: {answer['next']}")
    return 0


def _last_ended(run: Run) -> Attempt | None:
    """The last attempt that ended otherwise than by finishing."""
    ended = [one for one in run.ledger.refresh().attempts if one.cause not in (None, Cause.FINISHED)]
    return ended[-1] if ended else None


def _answer(run: Run, shown: dict[str, Any], attempt: Attempt | None) -> dict[str, Any]:
    empty = dict.fromkeys(("attempt", "cause", "rank", "host", "traceback", "log"))
    answer: dict[str, Any] = {"run": run.id, "state": shown["state"], "reason": shown["reason"], **empty}
    answer["next"] = _next(run, shown["state"], attempt)
    if attempt is None or attempt.cause is None:
        return answer
    first = _first_failure(run, attempt)
    rank = first["rank"] if first else None
    return {
        **answer,
        "attempt": attempt.number,
        "cause": attempt.cause,
        "reason": attempt.reason,
        "rank": rank,
        "host": first["host"] if first else None,
        "traceback": first["traceback"] if first else None,
        "log": f"{run.storage.root}/{log_path(attempt.number, rank or 0)}",
    }


def _next(run: Run, state: str, attempt: Attempt | None) -> str | None:
    """What the user may do; None if nothing."""
    if state == "finished":
        return None
    if state in ("running", "queued"):
        return f"it goes on by itself: launcher logs -f {run.id}"
    if state == "cancelled":
        cause = Cause.CANCELLED
    elif attempt is None or run.ledger.refresh().open_attempt:  # the launcher itself was ended
        cause = Cause.STOPPED
    else:
        cause = Cause(attempt.cause or "")
    return _NEXT[cause].format(run=run.id)


def _first_failure(run: Run, attempt: Attempt) -> dict[str, Any] | None:
    """The record of the user's error; an echo of a lost peer only if there is nothing else."""
    records = failures(run, attempt.number)
    errors = [record for record in records if record["kind"] == "error"]
    return next(iter(errors or records), None)
