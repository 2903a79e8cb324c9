"""Control groups: each node has a part of the machine's tree, and sees it as the whole."""

from contextlib import suppress
from pathlib import Path

from machines.processes import until

from slurm.cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
_V1_CONTROLLERS = ("freezer", "memory")
"""What Slurm tracks processes and limits memory with."""
_V2_CONTROLLERS = "+cpu +cpuset +memory"


def version() -> int:
    """1 or 2, as this machine has it. Raises ClusterError where it has neither."""
    if (ROOT / "cgroup.controllers").exists():
        return 2
    if all((ROOT / name).is_dir() for name in _V1_CONTROLLERS):
        return 1
    raise ClusterError(f"this machine has no control groups in {ROOT}; take --proctrack linuxproc")


def _trees() -> list[Path]:
    return [ROOT] if version() == 2 else [ROOT / name for name in _V1_CONTROLLERS]


def make(cluster: str, node: str) -> list[Path]:
    """A node's folders, one in each tree. Raises ClusterError where they cannot be made."""
    folders = [tree / cluster / node for tree in _trees()]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if version() == 2:
                for above in (folder.parent.parent, folder.parent):
                    (above / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
    except OSError as error:
        raise ClusterError(
            f"no control group for {node} ({error}); in a container it takes --privileged, else --proctrack linuxproc"
        ) from error
    return folders


def home(folders: list[Path]) -> list[Path]:
    """Where the processes of a node are that no job holds: under version 2 a group with children holds none itself."""
    return [folder / "init.scope" for folder in folders] if version() == 2 else folders


def settle(folders: list[Path]) -> None:
    """What has entered a node's group moves to its home, and jobs get theirs: without systemd Slurm makes neither."""
    if version() == 2:
        for folder, own in zip(folders, home(folders), strict=True):
            jobs = folder / "system.slice"
            for made in (own, jobs):
                made.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                (own / "cgroup.procs").write_text(pid)
            for above in (folder, jobs):
                (above / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)


def remove(cluster: str, seconds: float = 10) -> None:
    """All folders of a cluster. Raises ClusterError when processes stay in them for longer than that."""
    trees = [ROOT, *(ROOT / name for name in _V1_CONTROLLERS)]
    for base in (tree / cluster for tree in trees):
        until(lambda base=base: _removed(base), seconds, f"{base} to be empty")  # type: ignore[misc]


def _removed(base: Path) -> bool:
    # Deepest first; the kernel takes a moment to let go of processes that have ended.
    folders = sorted((path for path in base.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for folder in [*folders, base]:
        with suppress(OSError):
            folder.rmdir()
    return not base.exists()
