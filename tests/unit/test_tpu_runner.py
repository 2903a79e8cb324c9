"""What runs on a host, on this machine: started once, looked at, stopped; environments are made whole or not at all."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.tpu import runner
from launcher.backends.tpu.hosts import _BEGIN
from launcher.backends.tpu.library import packed

OBEYS = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('on', flush=True); time.sleep(60)"


class Host:
    """A host that is a folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "attempts/001"

    def order(self, code: str, *, ranks: int = 1, **more: Any) -> dict[str, Any]:
        ranks_ = [
            {"rank": n, "env": {"RANK": str(n)}, "log": f"attempts/001/logs/rank-{n:05d}.log"} for n in range(ranks)
        ]
        return {
            "library": str(self.home / "launcher.zip"),
            "setup": [],
            "python": sys.executable,
            "packages": [],
            "environment": str(self.home / "environments/abc"),
            "archive": None,
            "workdir": str(self.home / "work"),
            "env": {"MINE": "yes"},
            "argv": [sys.executable, "-c", code],
            "ranks": ranks_,
            **more,
        }

    def begin(self, order: dict[str, Any]) -> Any:
        source = Path(runner.__file__).read_text()
        message = {"folder": str(self.folder), "runner": source, "library": packed(), "order": order}
        return self._ask(*_BEGIN, given=json.dumps(message))

    def look(self, stop: bool = False, **offsets: int) -> Any:
        known = {name.removeprefix("rank"): offset for name, offset in offsets.items()}
        word = json.dumps({"offsets": known, "stop": stop})
        return self._ask(str(self.folder / "runner.py"), "look", str(self.folder), word)

    def until(self, phase: str) -> Any:
        deadline = time.monotonic() + 120
        while (seen := self.look())["state"]["phase"] != phase:
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        return seen

    def leaves(self) -> None:
        deadline = time.monotonic() + 120
        while self.look()["alive"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def setup_log(self) -> str:
        return (self.folder / "setup.log").read_text()

    def pids(self) -> list[int]:
        """Of the runner and its ranks."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                inside = str(self.home).encode() in (process / "environ").read_bytes()
                if process.name.isdigit() and (inside or str(self.folder).encode() in words):
                    found.append(int(process.name))
        return found

    def _ask(self, *words: str, given: str = "") -> Any:
        env = {**os.environ, "HOST_HOME": str(self.home)}
        done = subprocess.run(
            [sys.executable, *words], env=env, input=given, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    one = Host(tmp_path)
    yield one
    for pid in one.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def printed(answer: Any, rank: int = 0) -> str:
    return base64.b64decode(answer["logs"][str(rank)]).decode()


def test_ranks_are_started_and_how_they_end_is_told(host: Host) -> None:
    code = (
        "import os, sys; print(os.environ['RANK'], os.environ['MINE'], os.getcwd()); sys.exit(int(os.environ['RANK']))"
    )
    assert host.begin(host.order(code, ranks=2)) == {"begun": True}

    assert host.until("ended")["state"]["codes"] == {"0": 0, "1": 1}
    seen = host.look(rank0=0, rank1=2)
    assert printed(seen) == f"0 yes {host.home}/work\n"
    assert printed(seen, 1) == f"yes {host.home}/work\n"
    host.leaves()


def test_however_often_it_is_begun_it_runs_once(host: Host) -> None:
    order = host.order("print('once')")
    assert [host.begin(order) for _ in range(3)] == [{"begun": True}] * 3
    host.until("ended")
    host.begin(order)

    assert printed(host.look(rank0=0)) == "once\n"


def test_the_launcher_is_brought_in_place_of_another_one(host: Host) -> None:
    (host.home / "launcher.zip").write_bytes(b"an older one")
    library = str(host.home / "launcher.zip")

    host.begin(host.order("import launcher; print(launcher.__file__)", env={"PYTHONPATH": library}))
    host.until("ended")

    assert printed(host.look(rank0=0)) == f"{library}/launcher/__init__.py\n"


def test_it_does_not_hang_on_who_started_it(host: Host) -> None:
    host.begin(host.order(OBEYS))
    host.until("ranks")

    assert host.look()["alive"]
    for pid in host.pids():
        assert os.getsid(pid) != os.getsid(0)


def test_a_stop_reaches_all_ranks_and_they_leave_in_peace(host: Host) -> None:
    host.begin(host.order(OBEYS, ranks=2))
    host.until("ranks")
    deadline = time.monotonic() + 120
    while b"" in [base64.b64decode(log) for log in host.look(rank0=0, rank1=0)["logs"].values()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    host.look(stop=True)

    assert host.until("ended")["state"]["codes"] == {"0": 0, "1": 0}


def test_sigterm_to_the_runner_is_one_to_its_ranks(host: Host) -> None:
    host.begin(host.order("import time; time.sleep(60)", env={"LAUNCHER_RUN_DIR": str(host.home / "run")}))
    host.until("ranks")

    for pid in host.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    assert host.until("ended")["state"]["codes"] == {"0": -signal.SIGTERM}


def test_what_ranks_print_at_last_is_stored_by_the_host_itself(host: Host) -> None:
    code = OBEYS.replace("sys.exit(0)", "(print('last words', flush=True), sys.exit(0))")
    env = {"LAUNCHER_RUN_DIR": str(host.home / "run"), "PYTHONPATH": str(host.home / "launcher.zip")}
    host.begin(host.order(code, env=env))
    host.until("ranks")
    deadline = time.monotonic() + 120
    while printed(host.look(rank0=0)) != "on\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)

    running = host.look()["state"]["pid"]
    os.kill(running, signal.SIGTERM)
    host.until("ended")

    stored = host.home / "run/attempts/001/logs/rank-00000.log/000000000000"
    assert stored.read_text() == "on\nlast words\n"


def test_a_runner_that_is_killed_takes_its_ranks_along_and_is_not_started_again(host: Host) -> None:
    tied = "import os, time; from launcher.node.environment import die_with_parent"
    code = f"{tied}; die_with_parent(int(os.environ['LAUNCHER_PARENT'])); time.sleep(60)"
    order = host.order(code, env={"PYTHONPATH": str(host.home / "launcher.zip")})
    host.begin(order)
    host.until("ranks")
    running = host.look()["state"]["pid"]
    time.sleep(1.0)

    os.kill(running, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while host.pids():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    host.begin(order)
    seen = host.look()
    assert (seen["alive"], seen["state"]["phase"]) == (False, "ranks")


def test_setup_runs_first_and_its_failure_is_told_with_its_last_lines(host: Host) -> None:
    host.begin(host.order("print('never')", setup=["echo one", "echo the reason >&2; exit 3", "echo two"]))

    state = host.until("failed")["state"]
    assert (state["said"], state["cause"]) == ("tpu.setup: exit code 3: one | the reason", "error")
    assert "two" not in host.setup_log()


def test_a_python_that_is_not_there_or_too_old_is_told(host: Host) -> None:
    host.begin(host.order("print('never')", python="python-that-is-not-there"))
    assert "tpu.python: python-that-is-not-there: [Errno 2]" in host.until("failed")["state"]["said"]


def test_an_old_python_is_refused(host: Host, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\necho '3.10.4 is older than 3.11' >&2\nexit 1\n")
    old.chmod(0o755)

    host.begin(host.order("print('never')", python=str(old)))

    assert host.until("failed")["state"]["said"].endswith("exit code 1: 3.10.4 is older than 3.11")


def wheel(folder: Path) -> Path:
    """A package that is installed without a network."""
    import zipfile

    path = folder / "tiny-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "SAID = 'tiny'\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", about)
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return path


def test_packages_are_installed_into_an_environment_that_is_kept(host: Host, tmp_path: Path) -> None:
    packages = ["--no-index", str(wheel(tmp_path))]
    target = tmp_path / "environments/abc"
    argv = [str(target / "bin/python"), "-c", "import tiny; print(tiny.SAID)"]

    host.begin(host.order("", packages=packages, argv=argv))

    assert host.until("ended")["state"]["codes"] == {"0": 0}
    assert printed(host.look(rank0=0)) == "tiny\n"
    made = (target / "bin/python").lstat().st_mtime_ns
    again = Host(tmp_path)
    again.folder = tmp_path / "attempts/002"
    again.begin(again.order("", packages=packages, argv=argv))
    again.until("ended")
    assert (target / "bin/python").lstat().st_mtime_ns == made


def test_packages_that_cannot_be_installed_leave_nothing_half_made(host: Host, tmp_path: Path) -> None:
    host.begin(host.order("", packages=["--no-index", "there-is-no-such-package"]))

    said = host.until("failed")["state"]["said"]
    assert said.startswith("tpu.packages: exit code 1: ")
    assert "there-is-no-such-package" in said
    assert not (tmp_path / "environments/abc/.whole").exists()


def test_the_code_is_unpacked_by_the_ranks_own_python(host: Host, tmp_path: Path) -> None:
    (tmp_path / "run/code").mkdir(parents=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("project/mine.py")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"x=1\n"))
    (tmp_path / "run/code/12ab.tar").write_bytes(buffer.getvalue())
    env = {"PYTHONPATH": str(tmp_path / "launcher.zip"), "LAUNCHER_RUN_DIR": str(tmp_path / "run")}

    host.begin(host.order("print('runs')", archive=f"{tmp_path}/run/code/12ab.tar", env=env))
    host.until("ended")

    assert (tmp_path / "run/code/12ab/project/mine.py").read_text() == "x=1\n"
    host.folder = tmp_path / "attempts/002"
    host.begin(host.order("print('runs')", archive=f"{tmp_path}/run/code/none.tar", env=env))
    state = host.until("failed")["state"]
    assert "the code cannot be brought here: exit code 1" in state["said"]
    assert state["cause"] == "infra"


def test_a_stop_before_the_ranks_keeps_them_from_starting(host: Host) -> None:
    host.begin(host.order("print('never')", setup=["sleep 60"]))
    host.look(stop=True)

    state = host.until("failed")["state"]
    assert (state["said"], state["cause"]) == ("stopped before the ranks were started", "stopped")


def test_who_holds_the_chips_is_ended_and_then_the_lock_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chip, lock = tmp_path / "accel0", tmp_path / "libtpu_lockfile"
    chip.touch()
    lock.touch()
    monkeypatch.setattr(runner, "CHIPS", (str(tmp_path / "accel"),))
    monkeypatch.setattr(runner, "LOCK_FILE", lock)
    monkeypatch.setattr(runner, "CHIPS_S", 0.5)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN)"
    code = f"{stubborn}; f = open({str(chip)!r}); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        runner.free_chips()
        assert holder.wait() == -signal.SIGKILL

    assert not lock.exists()
