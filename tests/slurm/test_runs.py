"""Runs on a real cluster, and all that befalls them there. They go on at once, as many as there are nodes for."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from slurm.cluster import Cluster
from slurm.conftest import KILL_WAIT_S
from slurm.launches import SLOW_S, TRAINS, Launch, Nodes, launch

pytestmark = pytest.mark.slurm

Act = Callable[[Cluster, tuple[str, ...]], Launch]

_ACTS: dict[str, Act] = {}
_KILL_WAIT_AND_MORE_S = KILL_WAIT_S + 4.0
"""What Slurm was going to do after a cancel, it has done by then."""


def scenario(act: Act) -> Act:
    """What happens to one run, on nodes of its own, up to its end. Tests see it by its name."""
    _ACTS[act.__name__] = act
    return act


def of(*names: str) -> pytest.MarkDecorator:
    """The test looks at the runs of these scenarios."""
    return pytest.mark.parametrize("run", names, indirect=True)


@pytest.fixture(scope="module")
def played(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Launch]]]:
    """All scenarios that a selected test looks at, in the order of the tests."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    names = dict.fromkeys(item.callspec.params["run"] for item in tests if item.module == request.module)
    nodes = Nodes(cluster.settings.node_names, 2)

    def play(act: Act) -> Launch:
        with nodes.some() as mine:
            return act(cluster, mine)

    with ThreadPoolExecutor(nodes.groups) as pool:
        yield {name: pool.submit(play, _ACTS[name]) for name in names}


@pytest.fixture
def run(played: dict[str, Future[Launch]], request: pytest.FixtureRequest) -> Launch:
    """The run of a scenario that is over."""
    run = played[request.param].result()
    print(run.told())  # pytest shows it if the test fails
    return run


# -- nobody disturbs it


@scenario
def undisturbed(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    return launch(cluster, nodes, {"*": [["print", "hello"], ["train", 0.05, 5, 12]]}).end()


@of("undisturbed")
def test_a_run_that_nobody_disturbs_finishes(run: Launch) -> None:
    status = run.status
    assert status["state"] == "finished"
    assert status["step"] == 12
    assert str(status["job"]) == str(run.job)
    (attempt,) = status["attempts"]
    assert (attempt["cause"], attempt["first_step"], attempt["last_step"]) == ("finished", 0, 12)
    assert attempt["hosts"] == list(run.nodes)
    assert run.started() == [(1, rank) for rank in range(4)]
    assert run.disorder() == []


@of("undisturbed")
def test_its_job_has_succeeded_and_is_called_after_it(run: Launch) -> None:
    job = run.cluster.job(run.job)
    assert job["JobState"] == "COMPLETED"
    assert run.run.id in job["JobName"]


@of("undisturbed")
def test_each_rank_knows_its_place(run: Launch) -> None:
    told = [run.run.read_json(f"attempts/001/environment-{rank}.json") for rank in range(4)]
    assert [one["SLURMD_NODENAME"] for one in told] == [run.nodes[0], run.nodes[0], run.nodes[1], run.nodes[1]]
    assert {one["WORLD_SIZE"] for one in told} == {"4"}
    assert {one["LOCAL_WORLD_SIZE"] for one in told} == {"2"}
    assert {one["MASTER_ADDR"] for one in told} == {run.nodes[0]}
    assert len({one["MASTER_PORT"] for one in told}) == 1


@of("undisturbed")
def test_what_a_rank_prints_is_in_its_own_log(run: Launch) -> None:
    assert [run.launcher("logs", f"--rank={rank}").out for rank in range(4)] == ["hello\n"] * 4


@scenario
def finished_and_requeued(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, {"*": [["train", 0.05, 5, 12]]}).end()
    cluster.scontrol("requeue", str(run.job))
    cluster.wait(run.job, "PENDING", "RUNNING")
    run.until(lambda: not run.in_queue(), "the job that is not needed to leave")
    return run


@of("finished_and_requeued")
def test_a_run_that_has_finished_is_never_started_again(run: Launch) -> None:
    assert run.status["state"] == "finished"
    assert run.causes == ["finished"]
    assert run.started() == [(1, rank) for rank in range(4)]


# -- its nodes are wanted, its time is over


def preempted(partition: str, cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, slurm={"partition": partition})
    run.until(run.trains, "it to train")
    run.preempt()
    return run.finish(attempt=2)


_PREEMPTED = {f"preempted in {name}": name for name in ("low", "lowcancel", "lownograce", "lowcancelnograce")}
_ACTS |= {name: partial(preempted, partition) for name, partition in _PREEMPTED.items()}


@of(*_PREEMPTED)
def test_a_preempted_run_comes_back_and_finishes(run: Launch) -> None:
    status = run.status
    assert status["state"] == "finished"
    assert [one["cause"] for one in status["attempts"]] == ["preempted", "finished"]
    assert run.disorder() == []


@of(*[name for name in _PREEMPTED if "nograce" not in name])
def test_with_grace_no_step_is_lost_to_a_preemption(run: Launch) -> None:
    first, second = run.status["attempts"]
    assert second["first_step"] == first["last_step"]
    assert run.lost == 0


@of(*[name for name in _PREEMPTED if "nograce" in name])
def test_without_grace_no_more_is_lost_than_since_the_last_checkpoint(run: Launch) -> None:
    assert run.lost <= 5


@scenario
def preempted_twice(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, slurm={"partition": "low"})
    for attempt in (1, 2):
        run.until(partial(run.trains, attempt), f"attempt {attempt} to train", SLOW_S)
        run.preempt()
    return run.finish(attempt=3)


@of("preempted_twice")
def test_a_run_is_preempted_as_often_as_it_takes(run: Launch) -> None:
    assert run.causes == ["preempted", "preempted", "finished"]
    assert run.lost == 0
    assert run.disorder() == []


@scenario
def out_of_time(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    run.run_out_of_time()
    return run.finish(attempt=2)


@of("out_of_time")
def test_a_run_whose_time_is_over_goes_on_in_the_next_allocation(run: Launch) -> None:
    assert run.status["state"] == "finished"
    assert run.causes == ["timeout", "finished"]
    assert run.lost == 0
    assert run.disorder() == []


@scenario
def shortened(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    """An administrator leaves the job less time than its signal is sent ahead: Slurm sends it at once.

    Maybe no rank hears it yet; hence once more.
    """
    longer = {"signal_delay": "10m", "additional_parameters": {"hold": True}}
    run = launch(cluster, nodes, slurm=longer, resources={"time": "60m"})
    cluster.scontrol("update", f"jobid={run.job}", "timelimit=6")
    cluster.scontrol("release", str(run.job))
    run.until(run.trains, "it to train", SLOW_S)
    cluster.scancel("--signal=USR2", str(run.job))
    run.until(lambda: run.causes and run.causes[0], "the signal's effect", SLOW_S)
    return run.finish(attempt=2)


@of("shortened")
def test_a_job_whose_time_is_shortened_goes_on_in_what_it_has(run: Launch) -> None:
    *before, last = run.causes
    assert ({*before}, last) == ({"preempted"}, "finished")
    assert len(run.jobs) == 1
    assert run.cluster.job(run.job)["Restarts"] == "0"
    assert run.lost == 0
    assert run.disorder() == []


@scenario
def requeued(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    cluster.scontrol("requeue", str(run.job))
    return run.finish(attempt=2)


@of("requeued")
def test_a_run_that_an_administrator_requeues_comes_back(run: Launch) -> None:
    assert run.causes == ["preempted", "finished"]
    assert len(run.jobs) == 1
    assert run.lost == 0
    assert run.disorder() == []


def on_either(cluster: Cluster, nodes: tuple[str, ...], script: dict[str, Any] = TRAINS) -> Launch:
    """It needs one node, and may have either."""
    others = [name for name in cluster.settings.node_names if name not in nodes]
    return launch(cluster, nodes, script, slurm={"nodelist": [], "exclude": others}, resources={"nodes": 1})


@scenario
def drained(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    """Its node is to be repaired, and an administrator has the job leave it."""
    run = on_either(cluster, nodes)
    run.until(run.trains, "it to train")
    (node,) = run.hosts
    cluster.drain(node)
    cluster.scontrol("requeue", str(run.job))
    run.finish(attempt=2)
    cluster.resume(node)
    return run


@of("drained")
def test_a_run_leaves_a_drained_node_for_another(run: Launch) -> None:
    first, second = run.status["attempts"]
    assert (first["cause"], second["cause"]) == ("preempted", "finished")
    assert first["hosts"] != second["hosts"]
    assert run.lost == 0
    assert run.disorder() == []


@scenario
def never_requeued(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, slurm={"partition": "low"})
    run.until(run.trains, "it to train")
    cluster.scontrol("update", f"jobid={run.job}", "requeue=0")
    run.preempt()
    return run.finish(attempt=2)


@of("never_requeued")
def test_a_job_that_may_not_be_requeued_is_submitted_again_for_the_same_run(run: Launch) -> None:
    assert run.status["state"] == "finished"
    assert run.causes == ["preempted", "finished"]
    assert len(set(run.jobs)) == 2
    assert run.lost == 0
    assert run.disorder() == []


# -- something breaks


def lost_node(which: int, how: str, cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    node = nodes[which]
    if how == "fails":
        cluster.fail(node)
    else:
        cluster.power_off(node)
    cluster.wait(run.job, "PENDING", seconds=90)
    if how == "fails":
        cluster.resume(node)
    else:
        cluster.power_on(node)
    return run.finish(attempt=2)


_LOST = {
    "the other node fails": (1, "fails"),
    "the node of the supervisor fails": (0, "fails"),
    "the other node loses its power": (1, "loses its power"),
    "the node of the supervisor loses its power": (0, "loses its power"),
}
_ACTS |= {name: partial(lost_node, *how) for name, how in _LOST.items()}


@of(*_LOST)
def test_a_run_survives_the_loss_of_a_node(run: Launch, request: pytest.FixtureRequest) -> None:
    status = run.status
    # A node that is only said to have failed lives on, and its ranks may leave in time.
    saved = {"preempted"} if _LOST[request.node.callspec.params["run"]][1] == "fails" else set()
    assert status["state"] == "finished"
    assert [one["cause"] for one in status["attempts"]][-1] == "finished"
    assert {one["cause"] for one in status["attempts"][:-1]} <= {"infra"} | saved
    assert run.lost <= 5 * (len(status["attempts"]) - 1)
    assert run.disorder() == []


@scenario
def lost_for_good(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    """Slurm does not bring the job back, and its supervisor died with its node."""
    run = launch(cluster, nodes, slurm={"additional_parameters": {"hold": True}})
    cluster.scontrol("update", f"jobid={run.job}", "requeue=0")
    cluster.scontrol("release", str(run.job))
    run.until(run.trains, "it to train")
    cluster.power_off(nodes[0])
    cluster.wait(run.job, "NODE_FAIL", seconds=90)
    cluster.power_on(nodes[0])
    run.age()
    return run


@of("lost_for_good")
def test_a_run_that_is_lost_with_its_job_is_brought_back_by_whoever_looks(run: Launch) -> None:
    (lost,) = run.jobs
    done = run.launcher("reconcile")
    assert f"job {lost} ended as NODE_FAIL; submitted as job {run.job}" in done.out
    assert run.job != lost
    assert run.status["state"] == "queued"
    assert run.in_queue() == [run.job]
    assert run.launcher("cancel").code == 0


@scenario
def rank_killed(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    run.kill(rank=2)
    return run.finish(attempt=2)


@of("rank_killed")
def test_a_killed_rank_is_started_again_in_the_same_allocation(run: Launch) -> None:
    assert run.causes == ["infra", "finished"]
    assert len(run.jobs) == 1
    assert run.cluster.job(run.job)["Restarts"] == "0"
    assert run.started() == [(attempt, rank) for attempt in (1, 2) for rank in range(4)]
    assert run.disorder() == []


@of("rank_killed")
def test_it_is_said_which_rank_was_killed_and_where(run: Launch) -> None:
    assert "rank 2 was killed by SIGKILL" in run.status["attempts"][0]["reason"]
    why = run.launcher("why", "--attempt=1", "--json").answer
    assert (why["cause"], why["kind"], why["rank"], why["host"]) == ("infra", "killed", 2, run.nodes[1])


@scenario
def killed_on_one_host(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    script = {"1.1": [["sleep", 0.5], ["die", 9]], "2.1": [["sleep", 0.5], ["die", 9]], **TRAINS}
    return on_either(cluster, nodes, script).finish(attempt=3)


@of("killed_on_one_host")
def test_a_host_where_ranks_are_killed_twice_in_a_row_is_left_for_another(run: Launch) -> None:
    attempts = run.status["attempts"]
    assert [one["cause"] for one in attempts] == ["infra", "infra", "finished"]
    (first,), (second,), (third,) = (one["hosts"] for one in attempts)
    assert first == second != third
    assert run.run.ledger.refresh().excluded == (first,)
    assert run.cluster.job(run.job)["Restarts"] == "1"


@scenario
def users_error(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    script = {**TRAINS, "1.2": [["sleep", 1], ["fail", "error", "KeyError", "'label'"]]}
    return launch(cluster, nodes, script).end()


@of("users_error")
def test_a_users_error_is_not_tried_again(run: Launch) -> None:
    status = run.status
    assert (status["state"], status["reason"]) == ("failed", "attempt 1: rank 2: KeyError: 'label'")
    assert run.causes == ["error"]
    assert len(run.jobs) == 1
    assert run.cluster.job(run.job)["JobState"] in ("FAILED", "COMPLETED")


@of("users_error")
def test_why_shows_the_traceback_the_rank_and_its_host(run: Launch) -> None:
    why = run.launcher("why", "--json").answer
    assert (why["rank"], why["host"]) == (2, run.nodes[1])
    assert "Traceback" in why["traceback"]
    assert f"rank 2 on {run.nodes[1]} raised an exception" in run.launcher("why").out


@scenario
def no_progress(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    script = {"*": [["sleep", 0.2], ["die", 9]]}
    return launch(cluster, nodes, script, retry={"infra": 10, "max_no_progress": 3}).end()


@of("no_progress")
def test_a_run_that_makes_no_progress_stops(run: Launch) -> None:
    assert run.status["state"] == "failed"
    assert "retry.max_no_progress" in run.status["reason"]
    assert run.causes == ["infra"] * 3
    assert run.cluster.job(run.job)["Restarts"] == "0"


# -- the user has had enough


@scenario
def scancelled(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    cluster.scancel(str(run.job))
    run.end()
    time.sleep(_KILL_WAIT_AND_MORE_S)
    return run


@of("scancelled")
def test_scancel_is_for_good(run: Launch) -> None:
    assert run.status["state"] == "cancelled"
    assert run.causes == ["cancelled"]
    assert run.cluster.job(run.job)["JobState"] == "CANCELLED"
    assert run.in_queue() == []
    assert len(run.jobs) == 1


@scenario
def scancelled_while_it_waits(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, slurm={"additional_parameters": {"hold": True}})
    cluster.scancel(str(run.job))
    cluster.wait(run.job, "CANCELLED")
    run.age()
    return run


@of("scancelled_while_it_waits")
def test_scancel_of_a_job_that_waits_is_seen_and_not_undone(run: Launch) -> None:
    waiting = run.status
    assert (waiting["state"], waiting["scheduler"]["state"]) == ("queued", "GONE")
    assert run.launcher("reconcile").code == 0
    ended = run.status
    assert (ended["state"], ended["reason"]) == ("cancelled", f"job {run.job} was cancelled (scancel)")
    assert run.in_queue() == []


@scenario
def cancelled(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    done = run.launcher("cancel", "--json")
    assert done.code == 0, f"{done.err}\n{run.told()}"
    assert done.answer["state"] == "cancelled"
    run.end()
    time.sleep(_KILL_WAIT_AND_MORE_S)
    return run


@of("cancelled")
def test_a_run_is_cancelled_for_good(run: Launch) -> None:
    assert run.status["state"] == "cancelled"
    assert run.causes == ["cancelled"]
    assert run.in_queue() == []
    assert [pid for rank in range(4) for pid in run.processes(rank)] == []


@scenario
def cancelled_while_it_waits(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes, slurm={"additional_parameters": {"hold": True}})
    assert run.status["state"] == "queued"
    done = run.launcher("cancel")
    assert done.code == 0, f"{done.err}\n{run.told()}"
    return run.end()


@of("cancelled_while_it_waits")
def test_a_run_that_waits_is_cancelled_and_its_job_with_it(run: Launch) -> None:
    assert run.status["state"] == "cancelled"
    assert run.cluster.job(run.job)["JobState"] == "CANCELLED"
    assert run.started() == []


@scenario
def cancelled_with_a_checkpoint(cluster: Cluster, nodes: tuple[str, ...]) -> Launch:
    run = launch(cluster, nodes)
    run.until(run.trains, "it to train")
    done = run.launcher("cancel", "--checkpoint")
    assert done.code == 0, f"{done.err}\n{run.told()}"
    run.end()
    time.sleep(_KILL_WAIT_AND_MORE_S)
    return run


@of("cancelled_with_a_checkpoint")
def test_a_run_that_is_cancelled_with_a_checkpoint_has_lost_nothing(run: Launch) -> None:
    status = run.status
    assert status["state"] == "cancelled"
    assert [one["cause"] for one in status["attempts"]] == ["cancelled"]
    assert run.saved == max(step for _, step in run.noted())
    assert run.in_queue() == []


# -- a site that does otherwise


def test_a_site_without_signals_of_choice_without_requeueing_and_without_accounting(other: Cluster) -> None:
    run = launch(other, ("n1",), slurm={"partition": "low"})
    run.until(run.trains, "it to train")
    run.preempt()
    run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes == ["preempted", "finished"]
    assert run.lost == 0
    assert run.disorder() == []


def test_there_a_run_survives_the_loss_of_its_only_node(other: Cluster) -> None:
    """Slurm brings the job back, though the site does so only for those who ask for it."""
    run = launch(other, ("n1",))
    run.until(run.trains, "it to train")
    other.fail("n1")
    other.wait(run.job, "PENDING")
    other.resume("n1")
    run.finish(attempt=2)
    print(run.told())

    assert run.status["state"] == "finished"
    assert run.causes[-1] == "finished"
    assert set(run.causes[:-1]) <= {"infra", "preempted"}
    assert run.disorder() == []
