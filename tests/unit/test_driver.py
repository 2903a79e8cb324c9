"""Whether the process that drives a run still lives."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import shell
from launcher.driver import LAPSE_S, is_alive, renew_lease, start_ticks, this_machine, this_process
from launcher.events import Driver
from launcher.storage import PosixStorage

ELSEWHERE = Driver(host="there", machine="other-boot/pid:[1]", pid=os.getpid(), started=1)


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[shell.Process]:
    argv = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    started = shell.spawn(argv, env=os.environ, cwd=tmp_path, log=tmp_path / "log")
    yield started
    started.kill_all()
    while started.poll() is None:
        time.sleep(0.01)


def driver_of(child: shell.Process) -> Driver:
    return replace(this_process(), pid=child.pid, started=child.started)


def test_this_process_lives(storage: PosixStorage) -> None:
    me = this_process()

    assert me.machine
    assert me.pid == os.getpid()
    assert is_alive(me, storage)


def test_a_killed_process_is_dead_even_before_it_is_reaped(storage: PosixStorage, child: shell.Process) -> None:
    driver = driver_of(child)
    assert is_alive(driver, storage)

    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now

    assert Path(f"/proc/{child.pid}").exists()
    assert not is_alive(driver, storage)
    assert child.poll() == -signal.SIGKILL
    assert not is_alive(driver, storage)


def test_a_fresh_lease_does_not_revive_a_dead_process_of_this_machine(
    storage: PosixStorage, child: shell.Process
) -> None:
    driver = driver_of(child)
    renew_lease(storage, driver)
    child.kill_all()
    while child.poll() is None:
        time.sleep(0.01)

    assert not is_alive(driver, storage)


def test_another_process_with_the_same_pid_is_not_the_driver(storage: PosixStorage, child: shell.Process) -> None:
    before_pids_were_reused = replace(driver_of(child), started=child.started - 1)

    assert not is_alive(before_pids_were_reused, storage)


def test_a_process_whose_name_looks_like_proc_stat_is_read_right(tmp_path: Path) -> None:
    # PR_SET_NAME (15): any program may give itself any name.
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'x) Z 1 (y'); print('!', flush=True); time.sleep(60)"
    child = shell.spawn([sys.executable, "-S", "-c", code], env=os.environ, cwd=tmp_path, log=tmp_path / "log")
    while "!" not in (tmp_path / "log").read_text():
        time.sleep(0.01)

    ticks = start_ticks(child.pid)
    child.kill_all()
    while child.poll() is None:
        time.sleep(0.01)

    assert ticks == child.started > 0


def test_a_later_process_started_later(child: shell.Process) -> None:
    mine = start_ticks(os.getpid())

    assert mine is not None
    assert child.started >= mine
    assert start_ticks(2**22 + 1) is None  # above the kernel's largest pid


class TestElsewhere:
    def test_a_driver_without_a_lease_is_taken_for_dead(self, storage: PosixStorage) -> None:
        assert not is_alive(ELSEWHERE, storage)

    def test_a_driver_with_a_fresh_lease_lives(self, storage: PosixStorage) -> None:
        renew_lease(storage, ELSEWHERE)

        assert is_alive(ELSEWHERE, storage)

    @pytest.mark.parametrize(("age", "alive"), [(LAPSE_S - 5, True), (LAPSE_S + 5, False)])
    def test_a_lease_lapses(self, storage: PosixStorage, age: float, alive: bool) -> None:
        renew_lease(storage, ELSEWHERE)
        lease = json.loads(storage.read("lease.json"))
        storage.replace("lease.json", json.dumps(lease | {"renewed": time.time() - age}).encode())

        assert is_alive(ELSEWHERE, storage) is alive

    def test_a_renewed_lease_lives_again(self, storage: PosixStorage) -> None:
        storage.replace("lease.json", json.dumps({"pid": 1, "machine": "m", "renewed": 0.0}).encode())
        renew_lease(storage, ELSEWHERE)

        assert is_alive(ELSEWHERE, storage)

    @pytest.mark.parametrize("other", [{"pid": 1}, {"machine": "third/pid:[1]"}])
    def test_the_lease_of_another_driver_says_nothing(self, storage: PosixStorage, other: dict[str, object]) -> None:
        renew_lease(storage, replace(ELSEWHERE, **other))

        assert not is_alive(ELSEWHERE, storage)

    def test_a_machine_that_cannot_be_told_is_judged_by_its_lease(self, storage: PosixStorage) -> None:
        nameless = replace(this_process(), machine="")
        assert not is_alive(nameless, storage)

        renew_lease(storage, nameless)

        assert is_alive(nameless, storage)


def test_the_machine_is_the_same_for_a_child(tmp_path: Path) -> None:
    code, output = shell.run(
        [sys.executable, "-c", "from launcher.driver import this_machine; print(this_machine())"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        given="",
    )

    assert code == 0
    assert output.strip() == this_machine() != ""
