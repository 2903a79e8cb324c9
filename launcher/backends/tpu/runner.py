"""What runs on a host: brings the environment and the code, starts the host's ranks, writes down how they end.

A program of its own for the Python that a host has (3.8 or newer), without anything of the launcher. It is brought by
ssh and does not hang on it: the connection may end, and the session with it, and nothing happens to the ranks.
What takes long to import is imported where it is used: ranks wait for this.

    python3 -c ... < message              `begin`: writes the files of an attempt, and leaves a process that runs it:
                                          once, however often it is begun, for there is a lock, and a state
    python3 runner.py look FOLDER WORD    what has become of it, as JSON; WORD is JSON, too
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

TYPE_CHECKING = False  # typing takes a sixth of all that is imported here
if TYPE_CHECKING:
    from typing import IO, Any, NoReturn

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/"
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
"""What the metadata server says when the host is about to be taken away; it may be seen some seconds before SIGTERM.
Source: https://cloud.google.com/compute/docs/instances/create-use-spot#handle-preemption and
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice.
"""
CHIPS = ("/dev/accel", "/dev/vfio/")
LOCK_FILE = Path("/tmp/libtpu_lockfile")
CHIPS_S = 10.0
"""For so long a holder of the chips may end by itself. Killed outright, it leaves them unusable."""
MOST = 1 << 20
"""Bytes of a log in one answer."""
BEGINS_S = 20.0
LISTENS_S = 1.0
"""A notice is not listened for before: on a small machine that would be in the way of its ranks' start."""
NOT_ALLOWED = 77
"""Exit code of arrival.py (EX_NOPERM), whose last line says what somebody has to give this host's account."""
OLDEST = (3, 11)
"""Python of the ranks."""
SHIP = """
import sys
from pathlib import Path
from launcher.address import storage_at
from launcher.output import Shipper
Shipper(storage_at(sys.argv[1]), Path(sys.argv[2])).ship(now=True)
"""

# What comes by ssh


def begin(message: dict[str, Any]) -> None:
    folder, order = Path(message["folder"]), message["order"]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    bring(message["library"], Path(order["library"]))
    write(folder / "runner.py", message["runner"])
    write(folder / "order.json", json.dumps(order))
    if os.fork() == 0:  # a new Python would take as long again to start
        stay(folder)
    deadline = time.monotonic() + BEGINS_S
    while read_state(folder) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    print(json.dumps({"begun": read_state(folder) is not None}))


def stay(folder: Path) -> NoReturn:
    """Become the process that does not hang on the connection any more."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(str(folder / "runner.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, of in ((0, nothing), (1, log), (2, log)):
            os.dup2(of, number)
        os.chdir("/")
        run(folder)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def look(folder: Path, word: dict[str, Any]) -> None:
    """`offsets`: how much is known of each rank's log; `stop`: have the ranks save and leave."""
    if word["stop"]:
        (folder / "stop").touch()
    alive, state = lives(folder), read_state(folder)  # in this order: it may end in between
    logs = {}
    for rank, offset in word["offsets"].items():
        with suppress(FileNotFoundError), log_of(folder, int(rank)).open("rb") as file:
            file.seek(offset)
            logs[rank] = base64.b64encode(file.read(MOST)).decode()
    print(json.dumps({"alive": alive, "state": state, "logs": logs}))


def bring(library: str, target: Path) -> None:
    """The launcher's own modules: an archive that is there as a whole or not at all, and no other one than this."""
    whole = base64.b64decode(library)
    with suppress(FileNotFoundError):
        if target.read_bytes() == whole:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    beside.write_bytes(whole)
    beside.replace(target)


# The one that stays


class Ended(Exception):
    """The ranks are not to be started."""

    def __init__(self, said: str, cause: str) -> None:
        """
        Args:
            cause: "stopped"; "error", to be mended by somebody; "infra", which may go better elsewhere.
        """
        super().__init__(said)
        self.cause = cause


class Runner:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order: dict[str, Any] = json.loads((folder / "order.json").read_text())
        self.state: dict[str, Any] = {"phase": "begun", "codes": {}, "notice": "", "said": "", "pid": os.getpid()}
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.told = threading.Event()

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, self.on_signal)
        self.enter("begun")
        for name in NOTICES:
            threading.Thread(target=self.listen, args=(name,), daemon=True).start()
        try:
            self.prepare()
            self.start()
        except Ended as ended:
            self.enter("failed", said=str(ended), cause=ended.cause)
            return
        self.watch()
        if self.told.is_set():
            self.ship()
        self.enter("ended")

    def on_signal(self, number: int, frame: object) -> None:
        """When the host goes down SIGTERM comes to all; the ranks' own may be lost while they begin."""
        if number == signal.SIGTERM:
            self.told.set()

    def enter(self, phase: str, **more: Any) -> None:
        self.state = {**self.state, "phase": phase, **more}
        write(self.folder / "state.json", json.dumps(self.state))

    def listen(self, name: str) -> None:
        """Wait for the metadata server to say the word."""
        time.sleep(LISTENS_S)
        import urllib.request

        etag = "0"
        while not self.told.is_set():
            url = f"{METADATA}{name}?wait_for_change=true&timeout_sec=60&last_etag={etag}"
            try:
                request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
                with urllib.request.urlopen(request, timeout=90) as answer:
                    etag, said = answer.headers.get("ETag", "0"), answer.read().decode().strip()
            except (OSError, ValueError):
                time.sleep(5)
                continue
            if said == NOTICES[name]:
                self.state["notice"] = name
                self.told.set()

    def stops(self) -> bool:
        return self.told.is_set() or (self.folder / "stop").exists()

    # Before the ranks

    def prepare(self) -> None:
        order = self.order
        if order["setup"] or order["packages"]:
            self.enter("setup")
        if order["setup"]:
            self.call("tpu.setup", ["bash", "--norc", "-ec", "\n".join(order["setup"])])
        if order["packages"]:
            self.make_environment(Path(order["environment"]))
        least = ".".join(map(str, OLDEST))
        check = (
            f"import sys; sys.version_info < {OLDEST} and sys.exit(sys.version.split()[0] + ' is older than {least}')"
        )
        self.call(f"tpu.python: {order['python']}", [order["python"], "-I", "-S", "-c", check])
        if order["archive"]:
            self.enter("code")
            bring = ["-m", "launcher.backends.tpu.arrival", order["env"]["LAUNCHER_RUN_DIR"], order["archive"]]
            self.call("the code cannot be brought here", [order["argv"][0], *bring], cause="infra")

    def make_environment(self, target: Path) -> None:
        """These packages in a virtual environment of their own; made anew unless it was made as a whole."""
        whole = target / ".whole"
        if whole.exists():
            return
        import shutil

        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        python = self.order["python"]
        self.call(f"tpu.python: {python} -m venv", [python, "-m", "venv", str(target)])
        install = [str(target / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]
        self.call("tpu.packages", [*install, *self.order["packages"]])
        whole.touch()

    def call(self, what: str, argv: list[str], cause: str = "error") -> None:
        """Run a program to its end. Raises Ended: it has failed, for this cause, or a stop is asked for."""
        file = self.folder / "setup.log"
        with file.open("ab") as log:
            log.write(f"# {what}\n".encode())
            log.flush()
            began = log.tell()
            env = {**os.environ, **self.order["env"]}
            try:
                child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:
                raise Ended(f"{what}: {error}", "error") from None
            while child.returncode is None:
                if self.stops():
                    child.terminate()
                    raise Ended("stopped before the ranks were started", "stopped")
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.1)
        if child.returncode:
            said = file.read_bytes()[began:][-4000:].decode(errors="replace").strip().splitlines()
            if child.returncode == NOT_ALLOWED:
                raise Ended(f"{what}: {said[-1]}", "error")
            raise Ended(f"{what}: exit code {child.returncode}: {' | '.join(said[-5:])}", cause)

    # The ranks

    def start(self) -> None:
        free_chips()
        if self.stops():
            raise Ended("stopped before the ranks were started", "stopped")
        order = self.order
        Path(order["workdir"]).mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **order["env"], "LAUNCHER_PARENT": str(os.getpid())}
        for rank in order["ranks"]:
            with log_of(self.folder, rank["rank"]).open("ab") as log:
                self.children[rank["rank"]] = subprocess.Popen(
                    order["argv"],
                    env={**env, **rank["env"]},
                    cwd=order["workdir"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self.enter("ranks", codes={str(rank): None for rank in self.children})

    def watch(self) -> None:
        signalled = False
        while None in self.state["codes"].values():
            time.sleep(0.05)
            codes = {str(rank): child.poll() for rank, child in self.children.items()}
            if codes != self.state["codes"]:
                self.enter("ranks", codes=codes)
            if self.stops() and not signalled:
                signalled = True
                self.enter("ranks")
                for child in self.children.values():
                    child.send_signal(signal.SIGTERM)
        for child in self.children.values():  # what they may have left behind
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)

    def ship(self) -> None:
        """Store what the ranks printed last: nobody else can, on a host that goes down its sshd was the first to go."""
        order = self.order
        argv = [order["argv"][0], "-c", SHIP, order["env"]["LAUNCHER_RUN_DIR"], str(self.folder.parents[1])]
        with (self.folder / "setup.log").open("ab") as log, suppress(OSError):
            env = {**os.environ, **order["env"]}
            subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log).wait()


def free_chips() -> None:
    """End what holds the chips, then remove the lock file of libtpu; not while anybody holds them."""
    deadline, number = time.monotonic() + CHIPS_S, signal.SIGTERM
    while holders := [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and holds_chips(one)]:
        for pid in holders:
            with suppress(OSError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            if number == signal.SIGKILL:
                return
            deadline, number = time.monotonic() + CHIPS_S, signal.SIGKILL
        time.sleep(0.2)
    with suppress(OSError):
        LOCK_FILE.unlink()


def holds_chips(process: Path) -> bool:
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(str(link)).startswith(CHIPS):  # noqa: PTH115 - Path has it from 3.9 on
                    return True
    return False


# Files


def log_of(folder: Path, rank: int) -> Path:
    return folder / f"logs/rank-{rank:05d}.log"


def write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.touch(mode=0o600)  # there may be secrets in the ranks' environment
    beside.write_text(text)
    beside.replace(path)


def read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    return state


def locked(folder: Path) -> IO[str] | None:
    """The lock, held as long as it is open; None where another process has it."""
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def lives(folder: Path) -> bool:
    lock = locked(folder)
    if lock:
        lock.close()
    return lock is None


def run(folder: Path) -> None:
    """Once: not beside another one, nor after it."""
    lock = locked(folder)
    for _ in range(50):  # somebody may just be looking whether it is held
        if lock or read_state(folder):
            break
        time.sleep(0.02)
        lock = locked(folder)
    if lock and read_state(folder) is None:
        Runner(folder).run()


if __name__ == "__main__":
    look(Path(sys.argv[2]), json.loads(sys.argv[3]))
elif __name__ == "begin":
    begin(globals()["message"])  # it came with this text
