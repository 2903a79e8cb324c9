"""Sets of machines that a test session brings up: their names, their scripts, what they leave behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import pytest
from machines import network, processes
from machines.lab import Lab


class HasLab(Protocol):
    """A cluster, or a cloud."""

    @property
    def layout(self) -> Lab: ...

    def down(self, wipe: bool = False) -> None: ...


Any_ = TypeVar("Any_", bound=HasLab)


def impossible(reason: str) -> NoReturn:
    """What a test needs is not here: in CI it fails."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


def by_letter(kind: Callable[[str, Path], Any_], state: Path) -> Callable[[str], Any_]:
    """Makes those of this session. What a session that was killed has left is cleared away first."""
    for folder in state.glob("[abc]*"):
        if not Path(f"/proc/{int(folder.name[1:], 16)}").exists():
            kind(folder.name, state).down(wipe=True)
    return lambda letter: kind(f"{letter}{os.getpid():x}", state)


def left_behind(lab: Lab) -> list[str]:
    """Of what it is made of, but its folder."""
    found = [f"process {pid}" for pid in processes.marked(lab.mark())]
    found += [one["ifname"] for one in network.interfaces() if one["ifname"].startswith(lab.bridge)]
    return found + [line for line in Path("/proc/mounts").read_text().splitlines() if str(lab.folder) in line]


def command(script: Path, lab: Lab, *words: str) -> list[str]:
    return [sys.executable, str(script), "--name", lab.name, "--state", str(lab.folder.parent), *words]


def done(script: Path, lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, lab, *words), capture_output=True, text=True, check=False, timeout=120)
