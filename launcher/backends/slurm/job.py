"""What Slurm says about a job: `scontrol show job`, and the messages that srun leaves.

Pure. tests/unit/recorded/slurm has what Slurm 22.05 and 24.11 said in each case that matters here.
"""

import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

LEAD_SHARE = 0.2
"""Of a job's time, the largest part that may be spent on saving before its end."""

_TICK_S = 40
"""Slurm looks every 30 s for jobs whose limit, or whose moment for a signal, has come; the rest is for a busy one."""
_AT_ONCE_S = 2
"""When Slurm ends a job for another it sets PreemptTime and EndTime together; they may fall into different seconds."""

RUNS = {"RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "RESIZING", "SIGNALING"}
"""States of a job that has its nodes and is not being ended."""
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
LIVING = {*RUNS, *_WAITING, "COMPLETING"}
"""States of a job that has not ended."""

_JOB = re.compile(r"(?P<ids>JobId=.*?) JobName=.*? UserId=[^=]*\(\d+\) (?P<rest>GroupId=.*)", re.DOTALL)
_FIELD = re.compile(r"(?<!\S)(\w+)=(\S*)")
_COMMENT = re.compile(r" Comment=(.*?) *(?: StdErr=|$)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What `scontrol show job ID --oneliner` says. Times are seconds since the epoch."""

    id: str
    """The raw one, also of an element of a job array."""
    name: str
    """What `scontrol requeue` must be given: in a job array `<array>_<task>`: one raw id means them all."""
    state: str
    """RUNNING, PENDING, CANCELLED, ...: COMPLETING while it is being ended, whatever ends it."""
    reason: str
    """Why it waits, or has ended: TimeLimit, NodeDown, ...; "None" where there is none."""
    restarts: int
    start: float | None
    """StartTime: when it started, or is expected to."""
    end: float | None
    """EndTime: when its time is up, or was; during the grace time of a preemption, the end of that."""
    preempted: float | None
    """PreemptTime: when it was told to make way; then, when it was ended for that. Slurm forgets it with a requeue."""
    hosts: str
    """NodeList as Slurm writes it, `n[1-2]`; without those that it takes for lost, and empty while the job waits."""
    batch_host: str | None
    requeue: bool
    """Whether it may be requeued."""
    comment: str
    partition: str


def comment(run_id: str, number: int) -> str:
    """By which the job of a submission, of a run or a sweep, is found again when nobody has written its id down."""
    return f"launcher:{run_id}:{number}"


class Ends(StrEnum):
    """Why a job ends, or that it does not."""

    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    REQUEUED = "requeued"
    """Slurm brings the job back by itself: after a preemption, a lost node, or somebody's `scontrol requeue`. The job
    does not tell which."""
    CANCELLED = "cancelled"
    NODE_FAIL = "node_fail"
    GOES_ON = "goes_on"


def parse_job(text: str) -> Job:
    """Read what `scontrol show job --oneliner` says of one job; times as `%s` or, in local time, ISO 8601.

    Raises:
        ValueError: it is not that, or something is missing; says what.
    """
    # Free text may look like fields: the job's name is cut out; the rest of it (command, folders, comment) comes last.
    if not (parts := _JOB.match(text.strip())):
        raise ValueError(f"not what scontrol says of a job: {text.strip()[:200]!r}")
    fields: dict[str, str] = {}
    for key, value in _FIELD.findall(f"{parts['ids']} {parts['rest']}"):
        fields.setdefault(key, value)
    needed = ("JobState", "Reason", "Restarts", "Requeue", "StartTime", "EndTime", "Partition", "NodeList")
    if missing := [key for key in needed if key not in fields]:
        raise ValueError(f"no {', '.join(missing)} in what scontrol says of a job: {text.strip()!r}")
    in_array = "ArrayTaskId" in fields and "ArrayJobId" in fields
    comment = _COMMENT.search(parts["rest"])
    return Job(
        id=fields["JobId"],
        name=f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}" if in_array else fields["JobId"],
        state=fields["JobState"],
        reason=fields["Reason"],
        restarts=int(fields["Restarts"]),
        start=parse_time(fields["StartTime"]),
        end=parse_time(fields["EndTime"]),
        preempted=parse_time(fields.get("PreemptTime", "None")),  # left out of a job that waits
        hosts=fields["NodeList"].removeprefix("(null)"),
        batch_host=fields.get("BatchHost"),
        requeue=fields["Requeue"] == "1",
        comment=comment[1] if comment else "",
        partition=fields["Partition"],
    )


def parse_time(text: str) -> float | None:
    """Seconds since the epoch, of what Slurm prints with SLURM_TIME_FORMAT=%s or without; None for Unknown, None, N/A.

    Raises:
        ValueError: it is no time.
    """
    if text in ("Unknown", "None", "N/A", ""):
        return None
    return float(text) if text.isdigit() else datetime.fromisoformat(text).timestamp()


def lead_within(job: Job, lead_s: float) -> float:
    """Of the seconds that the ranks were to stop before the end, those that the job's time has room for: somebody may
    have shortened it since, or it is the partition's default."""
    if job.start is None or job.end is None:
        return lead_s
    return min(lead_s, LEAD_SHARE * (job.end - job.start))


def ended_because(job: Job, *, started_restarts: int, stop_signal_seen: bool, lead_s: float, now: float) -> Ends:
    """What ends the job, asked from within it: after SIGTERM, or when the ranks have left after a signal.

    Args:
        started_restarts: SLURM_RESTART_COUNT of this start, 0 if unset.
        stop_signal_seen: whether anybody in the job was told to stop.
        lead_s: so long before the time limit the signal was asked for.
    """
    if job.restarts > started_restarts or job.state in _WAITING:
        return Ends.REQUEUED
    if job.state in RUNS:
        if not stop_signal_seen:
            return Ends.GOES_ON
        if job.preempted is not None or job.end is None or job.end - now > lead_s + _TICK_S:
            return Ends.PREEMPTED
        within, granted_s = lead_within(job, lead_s), job.end - (job.start or 0.0)
        # The signal of a job that has less time than its lead comes as it starts.
        too_early = granted_s <= lead_s + _TICK_S and job.end - now > within + _TICK_S
        return Ends.GOES_ON if too_early else Ends.TIMEOUT
    if job.reason == "NodeDown" or job.state == "NODE_FAIL":
        return Ends.NODE_FAIL
    if job.reason == "TimeLimit" or job.state == "TIMEOUT":
        return Ends.TIMEOUT
    # Whoever cancels a job during its grace time moves EndTime alone.
    ended_for_another = job.preempted is not None and job.end is not None and job.end - job.preempted <= _AT_ONCE_S
    return Ends.PREEMPTED if job.state == "PREEMPTED" or ended_for_another else Ends.CANCELLED


_TASKS = re.compile(r"^srun: error: \S+: tasks? (?P<ranks>[\d,-]+): (?P<end>.+?)(?: \(core dumped\))?$", re.MULTILINE)
_EXITED = re.compile(r"Exited with exit code (\d+)")
_SIGNALS = {signal.strsignal(number): number for number in range(1, signal.NSIG)}
_LOST = re.compile(r"^srun: error: Node failure on (\S+)$", re.MULTILINE)
_NOT_STARTED = re.compile(
    r"""^(
    srun:\ (fatal|unrecognized\ option|invalid\ option)
    | srun:\ error:\ (Unable\ to|Invalid|Task\ launch|task\ \d+\ launch\ failed|Application\ launch)
    | slurmstepd\S*\ error:\ execve\(\)
    | (srun|slurmstepd\S*):\ error:\ (spank|pyxis):
    ).*""",
    re.MULTILINE | re.VERBOSE,
)


def exits_in(srun_log: str) -> dict[int, int]:
    """Exit codes by rank, negative for a signal, of the ranks that srun reports: those that did not leave with 0.

    They come in the order of the log: with --kill-on-bad-exit the first one's end is why the others were ended (their
    Terminated, or Killed), as far as srun heard of it first.
    """
    exits: dict[int, int] = {}
    for line in _TASKS.finditer(srun_log):
        if (code := _exit_code(line["end"])) is not None:
            for rank in _numbers(line["ranks"]):
                exits.setdefault(int(rank), code)
    return exits


def lost_hosts(srun_log: str) -> tuple[str, ...]:
    """The hosts whose failure ended the step, as far as srun names them."""
    found = (host for line in _LOST.finditer(srun_log) for host in expand_hosts(line[1]))
    return tuple(dict.fromkeys(found))


def launch_failure(srun_log: str) -> str | None:
    """Why srun could not start the ranks: the first line that says so. Its exit code may be 0 all the same."""
    found = _NOT_STARTED.search(srun_log)
    return found[0] if found else None


def expand_hosts(hosts: str) -> tuple[str, ...]:
    """`n[1-2,05],login` one by one."""
    return tuple(host for one in re.findall(r"(?:[^\[,]|\[[^\]]*\])+", hosts) for host in _expand_host(one))


def in_short(jobs: Iterable[str]) -> list[str]:
    """Ids as scancel takes them, elements of one array together: `12_[0,3-5]`, `13_2`."""
    tasks: dict[str, list[int]] = {}
    for job in jobs:
        array, _, task = job.partition("_")
        tasks.setdefault(array, []).extend([int(task)] if task else [])
    return [_elements(array, sorted(numbers)) for array, numbers in tasks.items()]


def _elements(array: str, numbers: Sequence[int]) -> str:
    if len(numbers) > 1:
        return f"{array}_[{_ranges(numbers)}]"
    return f"{array}_{numbers[0]}" if numbers else array


def _ranges(numbers: Sequence[int]) -> str:
    """`0,3-5` of ascending numbers."""
    firsts = [one for one, before in zip(numbers, [None, *numbers], strict=False) if before is None or one > before + 1]
    lasts = [one for one, then in zip(numbers, [*numbers[1:], None], strict=True) if then is None or one < then - 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def _expand_host(host: str) -> Iterator[str]:
    if not (parts := re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", host)):
        yield host
        return
    for number in _numbers(parts[2]):
        for rest in _expand_host(parts[3]):
            yield f"{parts[1]}{number}{rest}"


def _numbers(ranges: str) -> Iterator[str]:
    """Of `2-3,05`, as wide as they are written."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from (f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1))


def _exit_code(end: str) -> int | None:
    if exited := _EXITED.fullmatch(end):
        return int(exited[1])
    number = signal.SIGKILL if end == "Out Of Memory" else _SIGNALS.get(end)
    return None if number is None else -int(number)
