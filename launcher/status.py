"""What a run looks like from outside: its state, folded from the ledger and from who is still alive."""

from collections.abc import Mapping
from typing import Any

from launcher.cadence import drain_s
from launcher.checkpoints import in_order
from launcher.driver import is_alive, this_machine
from launcher.events import CheckpointSaved, Driver, RunEnded
from launcher.layout import attempt_folder, code_root, diff_path, finished_path, progress_path
from launcher.run import Run
from launcher.state import Attempt, RunState


def status(run: Run) -> dict[str, Any]:
    """The answer of `launcher status --json`; keys are a contract, see docs in README."""
    state = run.ledger.refresh()
    finished = run.finished
    label, reason = run_state(run, state, finished)
    progress = _progress(run, state)
    newest = _newest_checkpoint(state)
    latest = finished or _reached(progress, newest)
    return {
        "run": run.id,
        "name": run.record.name,
        "target": run.now.target,
        "state": label,
        "reason": reason,
        "step": latest.get("step", 0),
        "total_steps": progress.get("total_steps"),
        "epoch": latest.get("epoch", 0),
        "precision": latest.get("precision"),
        "compute": progress.get("compute"),
        "metrics": {**progress.get("metrics", {}), **(finished or {}).get("metrics", {})},
        "attempts": [
            {
                "number": attempt.number,
                "target": attempt.target,
                "cause": attempt.cause,
                "reason": attempt.reason,
                "first_step": attempt.first_step,
                "last_step": last_step(run, state, attempt),
                "started": attempt.started,
                "ended": attempt.ended,
                "hosts": list(attempt.hosts),
                "idle": list(attempt.idle),
            }
            for attempt in state.attempts
        ],
        "checkpoint": {"step": newest.step, "path": absolute(run, newest.path)} if newest else None,
        "saving": {
            "interval_s": progress.get("save_interval_s"),
            "drain_s": drain_s(state),
            "problem": progress.get("save_problem"),
        },
        "job": state.submission.job if state.submission else None,
        "code": _code(run),
        "run_dir": run.storage.root,
        "created": run.record.created,
    }


def run_state(run: Run, state: RunState, finished: Mapping[str, Any] | None) -> tuple[str, str]:
    """One of queued running stopped finished failed cancelled moved unknown, and why."""
    if finished is not None and not state.moved_to:
        return "finished", ""
    if state.ended:
        return state.ended.state, state.ended.reason
    driver = state.driver
    if driver is None:
        return "queued", _waiting(state) or "nobody drives it yet"
    if driver.job and not state.open_attempt and (waiting := _waiting(state)):
        return "queued", waiting
    if is_alive(driver, run.storage):
        if state.cancelling:
            return "running", "being cancelled"
        if state.open_attempt:
            return "running", ""
        return "queued", f"attempt {len(state.attempts) + 1} is about to start"
    if state.cancelling:
        return "cancelled", "cancelled by the user"
    gone = f"process {driver.pid} on {driver.host}, which drove it, is gone; "
    if state.submission and (waiting := _waiting(state)):
        if state.submission.job != driver.job:
            return "queued", waiting
        again = f"its scheduler starts job {driver.job} again, or else `launcher reconcile {run.id}` has it go on"
        return "unknown", gone + again
    gone += f"`launcher resume {run.id}`"
    # From another machine, silence is no proof of death.
    return ("stopped" if driver.machine == this_machine() else "unknown"), gone


def _waiting(state: RunState) -> str:
    """For which job the run waits, in words; "" if for none."""
    if state.submission is None:
        return ""
    if state.submission.job is None:
        return f"submission {state.submission.number} was begun, and nobody knows whether it was taken"
    return f"job {state.submission.job} is to start"


def living_driver(run: Run, state: RunState) -> Driver | None:
    """The process that drives the run now; None if it has ended, or if that process is gone."""
    driver = None if state.ended else state.driver
    return driver if driver and is_alive(driver, run.storage) else None


def absolute(run: Run, path: str) -> str:
    return f"{run.storage.root}/{path}"


def brief(run: Run) -> dict[str, Any]:
    """One line of `launcher list`."""
    seen = glance(run)
    shown = {key: seen[key] for key in ("target", "state", "reason", "step", "epoch", "attempts", "job")}
    return {"run": run.id, "name": run.record.name, "created": run.record.created, **shown}


def glance(run: Run) -> dict[str, Any]:
    """What is shown of one of many runs, metrics too: as `status` has it, in fewer reads.

    A finished run is told from two files, whatever the length of its ledger.
    """
    number = max((int(name) for name in run.storage.list("attempts")), default=0)
    finished = run.read_json(finished_path(number)) if number else None
    newest = run.ledger.newest() if finished else None
    if finished and newest and isinstance(newest.event, RunEnded) and newest.event.state == "finished":
        ended = {"state": "finished", "reason": "", "attempts": number, "job": None}
        return {"target": finished.get("target", run.record.target), **ended, **_shown(finished)}
    state = run.ledger.refresh()
    if not state.attempts or not state.budget_from < state.attempts[-1].number == number:
        finished = None  # not the newest attempt's, or it was resumed since
    label, reason = run_state(run, state, finished)
    return {
        "target": run.now.target,
        "state": label,
        "reason": reason,
        "attempts": len(state.attempts),
        "job": state.submission.job if state.submission else None,
        **_shown(finished or _reached(_progress(run, state), _newest_checkpoint(state))),
    }


def _shown(latest: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": latest.get("step", 0), "epoch": latest.get("epoch", 0), "metrics": latest.get("metrics", {})}


def _newest_checkpoint(state: RunState) -> CheckpointSaved | None:
    checkpoints = in_order(state)
    return checkpoints[-1] if checkpoints else None


def _reached(progress: Mapping[str, Any], newest: CheckpointSaved | None) -> Mapping[str, Any]:
    """The last heartbeat; where a checkpoint has been saved since, with its step and epoch."""
    if newest and newest.step > progress.get("step", -1):
        return {**progress, "step": newest.step, "epoch": newest.epoch}
    return progress


def host_of(run: Run, attempt: Attempt, rank: int | None) -> str | None:
    """Where a rank of an attempt ran, as it was planned."""
    if len(attempt.hosts) == 1:
        return attempt.hosts[0]
    plan = run.read_json(f"{attempt_folder(attempt.number)}/plan.json") or {"ranks": []}
    nodes = [one["node"] for one in plan["ranks"] if one["rank"] == rank]
    return attempt.hosts[nodes[0]] if nodes and nodes[0] < len(attempt.hosts) else None


def _code(run: Run) -> dict[str, Any] | None:
    """The snapshot, by the tree that the spec is of; None if there is none."""
    code = run.now.code
    if code is None:
        return None
    changed = sum(tree.changed for tree in code.trees)
    return {
        "digest": code.digest,
        "commit": code.trees[0].commit,
        "dirty": changed > 0,
        "changed": changed,
        "diff": f"{code_root(run.storage.root, code)}/{diff_path(code)}" if code.diff else None,
    }


def _progress(run: Run, state: RunState) -> dict[str, Any]:
    """The newest heartbeat of the newest attempt that gave one."""
    for attempt in reversed(state.attempts):
        if report := run.read_json(progress_path(attempt.number)):
            return dict(report)
    return {}


def last_step(run: Run, state: RunState, attempt: Attempt) -> int | None:
    """The furthest step that is known of an attempt; None if it has not chosen where to begin."""
    if attempt.last_step is not None:
        return attempt.last_step
    report = run.read_json(progress_path(attempt.number)) or {}
    # A checkpoint may be newer than the heartbeat.
    saved = [one.step for one in state.checkpoints if one.attempt == attempt.number]
    known = [step for step in (attempt.first_step, report.get("step"), *saved) if step is not None]
    return max(known, default=None)
