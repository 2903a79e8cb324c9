"""MariaDB for slurmdbd. All its tables, as they are before the first job, are kept for the next cluster."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from machines.processes import until
from machines.shell import output

from slurm.cluster.configuration import DATABASE, DATABASE_USER
from slurm.cluster.errors import ClusterError
from slurm.cluster.layout import Layout
from slurm.cluster.machine import Machine
from slurm.cluster.packages import slurm_version

# A cluster for tests: what the last second before a power cut wrote may be lost.
_CARELESS = (
    *("--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"),
    "--innodb-log-file-size=8M",
)
# slurmdbd asks for both.
_ROOM = ("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900")


def cache_folder() -> Path:
    """Outside of any checkout."""
    return Path(os.environ.get("SLURM_CLUSTER_CACHE", "/var/cache/slurm-cluster"))


def start(layout: Layout, controller: Machine) -> None:
    """Does nothing when it runs."""
    if controller.daemon("mariadbd"):
        return
    socket = layout.run / "mariadb.socket"
    own = [f"--datadir={layout.database}", f"--socket={socket}", f"--log-error={layout.log}/mariadb.log"]
    own += ["--bind-address=127.0.0.1", f"--pid-file={layout.run}/mariadb.pid", "--skip-name-resolve", "--skip-log-bin"]
    controller.start("setsid", "--fork", "mariadbd", "--no-defaults", "--user=root", *own, *_CARELESS, *_ROOM)
    until(lambda: _answers(socket), 60, f"MariaDB (see {layout.log}/mariadb.log)")
    user = f"{DATABASE_USER}@'127.0.0.1'"
    _ask(
        socket,
        f"create database if not exists {DATABASE}; create user if not exists {user};"
        f"grant all on {DATABASE}.* to {user}",
    )


def stop(layout: Layout, controller: Machine, seconds: float = 20) -> None:
    """In order, so that all that was written is kept."""
    if controller.daemon("mariadbd"):
        _ask(layout.run / "mariadb.socket", "shutdown")
        until(lambda: not controller.daemon("mariadbd"), seconds, "the end of MariaDB")


def _ask(socket: Path, statements: str) -> str:
    return output(["mariadb", "--no-defaults", "--user=root", f"--socket={socket}", "--execute", statements])


def _answers(socket: Path) -> bool:
    try:
        _ask(socket, "select 1")
    except ClusterError:
        return False
    return True


def archive() -> Path:
    """Where the tables are kept, for these versions of MariaDB and Slurm."""
    mariadb = output(["mariadbd", "--version"]).split()[2]
    return cache_folder() / f"mariadb-{mariadb}-slurm-{'.'.join(map(str, slurm_version()))}.tar"


def initialise(folder: Path) -> None:
    """An empty database. All of it or nothing: what a crash leaves has another name, and is removed by the next one."""
    own = ["--user=root", "--skip-test-db", "--auth-root-authentication-method=normal"]
    with _whole(folder) as unfinished:
        output(["mariadb-install-db", "--no-defaults", f"--datadir={unfinished}", *own, *_CARELESS], seconds=300)


def restore(folder: Path, kept: Path) -> bool:
    """Whether there was a whole archive to take it from."""
    try:
        with _whole(folder) as unfinished, tarfile.open(kept) as archived:
            archived.extractall(unfinished)
    except (OSError, tarfile.TarError):
        return False
    return True


def keep(folder: Path, kept: Path) -> None:
    """For the next time, if this machine has a place for it. MariaDB must have stopped."""
    with suppress(OSError):  # it costs time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:
            with tarfile.open(Path(unfinished, "tar"), "w") as archived:
                archived.add(folder, arcname=".")
            Path(unfinished, "tar").rename(kept)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    unfinished.rename(folder)
