"""What Slurm 22.05 and 24.11 said, recorded on a cluster, and what is read from it.

recorded/slurm/jobs.json, and jobs-24.11.json: `scontrol show job` as the batch process saw it, at once after the
SIGTERM that the case's name speaks of, or when its ranks had left after the signal that they had asked for
(`...-leave`). Partitions: low requeues, lowcancel cancels, after a grace time of 15 s or, `nograce`, at once. Names of
users and folders were changed.
recorded/slurm/*.log: what srun printed.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.backends.slurm.commands import (
    Queued,
    SlurmError,
    cancel,
    queued,
    show_job,
    start_estimate,
    steps,
)
from launcher.backends.slurm.job import (
    Ends,
    Job,
    ended_because,
    exits_in,
    expand_hosts,
    launch_failure,
    lost_hosts,
    parse_job,
)

RECORDED = Path(__file__).parent / "recorded/slurm"
JOBS = json.loads((RECORDED / "jobs.json").read_text())
NEWER = json.loads((RECORDED / "jobs-24.11.json").read_text())
GRACE_S = 15


def job(case: str) -> Job:
    return parse_job(JOBS[case]["said"])


def log(case: str) -> str:
    return (RECORDED / f"{case}.log").read_text()


def cause(case: str | Job, *, now: float = 0, started_restarts: int = 0, stop: bool = True, lead_s: float = 20) -> Ends:
    if isinstance(case, str):
        case, now = job(case), JOBS[case]["now"]
    return ended_because(case, started_restarts=started_restarts, stop_signal_seen=stop, lead_s=lead_s, now=now)


# What a job is


def test_a_job_that_runs_on_two_nodes() -> None:
    assert job("started") == Job(
        id="1",
        name="1",
        state="RUNNING",
        reason="None",
        restarts=0,
        start=1795890595.0,
        end=1795891195.0,
        preempted=None,
        hosts="n[1-2]",
        batch_host="n1",
        requeue=True,
        comment="",
        partition="low",
    )


def test_an_element_of_a_job_array_is_requeued_by_array_and_task() -> None:
    assert (job("scancel-array").id, job("scancel-array").name) == ("24", "24_3")


def test_a_comment_that_looks_like_fields_is_a_comment() -> None:
    assert job("scancel-array").comment == "lr=0.1 Reason=x JobState=NO"
    assert job("scancel-array").state == "COMPLETING"


def test_so_it_is_in_a_newer_slurm() -> None:
    array = parse_job(NEWER["scancel-array"]["said"])

    assert (array.name, array.comment) == ("11_3", "lr=0.1 Reason=x JobState=NO")


def test_a_name_that_looks_like_fields_is_a_name() -> None:
    said = JOBS["started"]["said"].replace(
        "JobName=low-leave", "JobName=a JobState=BAD ArrayTaskId=4 UserId=x Restarts=9"
    )

    assert parse_job(said) == job("started")


def test_times_are_read_in_slurms_own_format_too() -> None:
    said = JOBS["started"]["said"].replace("EndTime=1795891195", "EndTime=2026-11-28T18:39:55")
    later = said.replace("18:39:55", "18:40:05")

    assert parse_job(later).end == (parse_job(said).end or 0) + 10


def test_a_waiting_job_has_neither_hosts_nor_a_batch_host() -> None:
    assert (job("fail-batch").hosts, job("fail-batch").batch_host) == ("", None)


def test_one_that_may_not_be_requeued() -> None:
    assert not job("low-norequeue").requeue


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("slurm_load_jobs error: Invalid job id specified", "not what scontrol says of a job"),
        ("", "not what scontrol says of a job"),
        (re.sub("(Restarts|Reason)=", "No=", JOBS["started"]["said"]), "no Reason, Restarts in what"),
    ],
)
def test_what_is_missing_is_named(said: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_job(said)


# Why it ends


CAUSES = {
    "low-leave": Ends.PREEMPTED,
    "lowcancel-leave": Ends.PREEMPTED,
    "lowcancel-stay": Ends.PREEMPTED,
    "lowcancelnograce": Ends.PREEMPTED,
    "low-norequeue": Ends.PREEMPTED,
    "tick-cancel": Ends.PREEMPTED,  # its grace time was over at the 30 s tick
    "low-stay": Ends.REQUEUED,
    "low-stay, seconds later": Ends.REQUEUED,
    "lownograce": Ends.REQUEUED,
    "lownograce-leave": Ends.REQUEUED,
    "lownograce, seconds later": Ends.REQUEUED,
    "tick-requeue": Ends.REQUEUED,
    "requeue": Ends.REQUEUED,
    "requeuehold": Ends.REQUEUED,
    "fail": Ends.REQUEUED,
    "fail-batch": Ends.REQUEUED,
    "fail-norequeue": Ends.NODE_FAIL,
    "limit-leave": Ends.TIMEOUT,
    "limit-stay": Ends.TIMEOUT,
    "scancel": Ends.CANCELLED,
    "scancel-array": Ends.CANCELLED,
    "grace-scancel-cancel": Ends.CANCELLED,  # while it had to make way anyway
    "grace-scancel-requeue": Ends.CANCELLED,
    "batch-term": Ends.PREEMPTED,  # `scancel --batch --signal=TERM`: it was not cancelled, but somebody wants it off
}


@pytest.mark.parametrize(("case", "why"), CAUSES.items())
def test_each_cause_is_told_by_what_slurm_says(case: str, why: Ends) -> None:
    assert cause(case) == why


@pytest.mark.parametrize("case", NEWER)
def test_and_by_what_a_newer_one_says(case: str) -> None:
    assert cause(parse_job(NEWER[case]["said"]), now=NEWER[case]["now"]) == CAUSES[case]


@pytest.mark.parametrize(
    ("case", "state", "why"),
    [
        ("scancel", "CANCELLED", Ends.CANCELLED),
        ("limit-stay", "TIMEOUT", Ends.TIMEOUT),
        ("fail-norequeue", "NODE_FAIL", Ends.NODE_FAIL),
        ("lowcancelnograce", "PREEMPTED", Ends.PREEMPTED),
    ],
)
def test_and_once_it_has_ended(case: str, state: str, why: Ends) -> None:
    assert cause(replace(job(case), state=state)) == why


@pytest.mark.parametrize(
    ("ran_s", "lead_s", "why"),
    [
        (20, 600, Ends.GOES_ON),  # of the ten minutes that it has been left with
        (500, 600, Ends.TIMEOUT),
        (20, 500, Ends.PREEMPTED),  # the signal is not due yet: it was sent by somebody
        (100, 500, Ends.TIMEOUT),
    ],
)
def test_the_signal_of_a_job_that_has_less_time_than_its_lead_ends_nothing(ran_s: int, lead_s: int, why: Ends) -> None:
    assert cause(job("started"), now=1795890595 + ran_s, lead_s=lead_s) == why


def test_a_final_state_says_more_than_times_do() -> None:
    assert cause(replace(job("grace-scancel-cancel"), state="PREEMPTED")) == Ends.PREEMPTED


def test_a_job_that_waits_comes_back_whatever_its_restarts_say() -> None:
    assert cause(replace(job("requeue"), state="PENDING"), started_restarts=1) == Ends.REQUEUED


@pytest.mark.parametrize("case", ["started", "batch-term", "low-leave"])
def test_a_job_of_which_nobody_was_told_to_stop_goes_on(case: str) -> None:
    assert cause(case, stop=False) == Ends.GOES_ON


def test_one_that_started_again_goes_on_though_it_was_requeued_before() -> None:
    assert cause("low-stay, started again", started_restarts=1, stop=False) == Ends.GOES_ON
    assert cause("low-stay, started again", started_restarts=0, stop=False) == Ends.REQUEUED


def test_the_signal_before_the_time_limit_may_come_one_tick_of_slurms_early() -> None:
    running = job("started")
    assert running.end is not None

    assert cause(running, now=running.end - 120 - 30, lead_s=120) == Ends.TIMEOUT
    assert cause(running, now=running.end - 120 - 90, lead_s=120) == Ends.PREEMPTED


def test_in_its_grace_time_a_preempted_job_is_not_at_its_time_limit() -> None:
    preempted = job("low-leave")

    assert preempted.end is not None
    assert preempted.preempted is not None
    assert preempted.end - preempted.preempted == GRACE_S


# What srun says


@pytest.mark.parametrize(
    ("case", "exits"),
    [
        ("exit", {1: 3, 0: -15, 2: -15, 3: -15, 4: -15, 5: -15}),
        ("kill", {1: -9, 3: -15, 4: -15, 5: -15, 0: -15, 2: -15}),
        ("term", {1: -15, 3: -15, 4: -15, 5: -15, 0: -15, 2: -15}),
        ("segv", {1: -11, 3: -15, 4: -15, 5: -15, 0: -15, 2: -15}),
        ("abrt", {1: -6, 0: -15, 2: -15, 3: -15, 4: -15, 5: -15}),
        ("rt", {1: -40, 3: -15, 4: -15, 5: -15, 0: -15, 2: -15}),
        ("oom", {1: -9, 3: -15, 4: -15, 5: -15}),
        ("both", {3: 1, 4: 1, 5: 1, 0: 1, 1: 1, 2: 1}),
        ("polite", {1: -9}),  # the others left with 0 when they were told to
        ("poweroff", {0: -9, 1: -9}),
    ],
)
def test_ranks_are_named_with_their_exits_the_first_one_first(case: str, exits: dict[int, int]) -> None:
    assert list(exits_in(log(case)).items()) == list(exits.items())


def test_a_dumped_core_is_a_detail() -> None:
    assert exits_in("srun: error: n1: task 10: Segmentation fault (core dumped)\n") == {10: -11}


def test_of_a_rank_that_is_named_twice_the_first_counts() -> None:
    assert exits_in("srun: error: n1: task 0: Exited with exit code 1\nsrun: error: n1: task 0: Killed\n") == {0: 1}


def test_nothing_is_read_from_a_log_without_ends() -> None:
    assert exits_in(log("fail")) == exits_in(log("toomany")) == exits_in("") == {}


@pytest.mark.parametrize(
    ("case", "hosts"),
    [("fail", ("n14",)), ("fail-batch", ("n17",)), ("poweroff", ("n2",)), ("two", ("n15", "n16")), ("kill", ())],
)
def test_lost_hosts_are_named(case: str, hosts: tuple[str, ...]) -> None:
    assert lost_hosts(log(case)) == hosts


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("toomany", "srun: error: Unable to create step for job 50: More processors requested than permitted"),
        ("mem", "srun: error: Unable to create step for job 50: Memory required by task is not available"),
        ("outside", "srun: error: Unable to create step for job 50: Requested node configuration is not available"),
        ("badlog", "srun: error: task 0 launch failed: Slurmd could not connect IO"),  # and exits with 0
        ("gpus", "srun: error: Invalid generic resource (gres) specification"),
        ("noexe2", "slurmstepd-n2: error: execve(): /no/such/python: No such file or directory"),
        ("noopt", "srun: unrecognized option '--nope'"),
        ("badmem", "srun: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive."),
        (
            "deadslurmd",
            "srun: error: Task launch for StepId=51.0 failed on node n4: Communication connection failure",
        ),
    ],
)
def test_a_step_that_could_not_start_is_told_by_the_first_line_that_says_so(case: str, line: str) -> None:
    assert launch_failure(log(case)) == line


@pytest.mark.parametrize("case", ["exit", "kill", "oom", "poweroff", "fail", "nodir", "both"])
def test_one_that_started_is_not(case: str) -> None:
    assert launch_failure(log(case)) is None


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("gpu[08-10]-ib,login", ["gpu08-ib", "gpu09-ib", "gpu10-ib", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("", []),
    ],
)
def test_lists_of_hosts_are_expanded(written: str, hosts: list[str]) -> None:
    assert list(expand_hosts(written)) == hosts


# Commands, against programs that answer as Slurm's do


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of this folder are found, and no others."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines, ""]))
    path.chmod(0o755)


def test_an_element_of_an_array_is_found_among_all_of_them(programs: Path) -> None:
    others = [JOBS["scancel-array"]["said"].replace("JobId=24 ", f"JobId={raw} ") for raw in (25, 26)]
    said = "\n".join(one.replace("TaskId=3", f"TaskId={task}") for task, one in enumerate(others))
    (programs / "said").write_text(f"{said}\n{JOBS['scancel-array']['said']}\n")
    program(programs / "scontrol", f"cat {programs}/said")

    assert show_job("24") == show_job("24_3") == job("scancel-array")
    with pytest.raises(SlurmError, match="show job 27: no such job in what it said"):
        show_job("27")


def test_jobs_are_listed_whatever_their_names_and_comments_hold(programs: Path) -> None:
    program(
        programs / "squeue",
        r"printf '12_1\037a b\037x=1\ntwo|\037RUNNING\037None\0371795890602\036\n'",
        r"printf '13\037c\037(null)\037PENDING\037ReqNodeNotAvail, UnavailableNodes:n4\037N/A\036\n'",
    )

    reason = "ReqNodeNotAvail, UnavailableNodes:n4"
    assert queued("me") == [
        Queued(id="12_1", name="a b", comment="x=1\ntwo|", state="RUNNING", reason="None", start=1795890602.0),
        Queued(id="13", name="c", comment="", state="PENDING", reason=reason, start=None),
    ]


def test_steps_are_found_by_name_and_a_job_without_has_none(programs: Path) -> None:
    program(programs / "squeue", r"printf '59.0\037attempt-003\036\n59.batch\037batch\036\n'")
    assert steps("59") == {"attempt-003": "59.0", "batch": "59.batch"}

    program(programs / "squeue")
    assert steps("59") == {}


def test_the_environment_does_not_change_what_is_asked(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    said = "Job 26 to start at %s using 8 processors on nodes n[18-19] in partition main"
    program(
        programs / "sbatch",
        f'printf "sbatch: {said}" "${{SBATCH_PARTITION:-1795890669}}" >&2',
        "test $SLURM_TIME_FORMAT = %s",
    )

    assert start_estimate(["job.sh"]) == 1795890669.0


def test_an_error_names_the_command_and_carries_what_it_said(programs: Path) -> None:
    program(programs / "scancel", "echo 'scancel: error: Access/permission denied' >&2", "exit 1")

    with pytest.raises(
        SlurmError, match=r"^scancel 12: exit code 1, it said: scancel: error: Access/permission denied$"
    ):
        cancel("12")


def test_a_command_that_does_not_answer_is_given_up(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.backends.slurm.commands._TIMEOUT_S", 2.0)
    program(programs / "scancel", "echo trying the backup controller", "exec sleep 60")

    with pytest.raises(SlurmError, match=r"no answer within 2\.0 s; it said: trying the backup controller"):
        cancel("12")


def test_a_machine_without_slurm_is_told_so(programs: Path) -> None:
    with pytest.raises(SlurmError, match=r"scancel: not on PATH\. Is this a login node of a Slurm cluster\?"):
        cancel("12")
