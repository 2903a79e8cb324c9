"""The kernel's own count of what its out-of-memory killer has ended. Source: cgroup v1 and v2, kernel documentation."""

import re
from contextlib import suppress
from pathlib import Path


def oom_kills(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this process's cgroup the out-of-memory killer has ended so far; None if not readable."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":  # v1
                places = [cgroups / "memory" / path[1:] / "memory.oom_control", cgroups / "memory/memory.oom_control"]
            elif controllers == "":  # v2
                places = [cgroups / path[1:] / "memory.events", cgroups / "memory.events"]
            else:
                continue
            for place in places:  # in a container, its own cgroup may be mounted as the root
                with suppress(OSError):
                    if found := re.search(r"^oom_kill (\d+)$", place.read_text(), re.MULTILINE):
                        return int(found[1])
    return None


def oom_kills_since(before: int | None) -> int | None:
    """How many since `oom_kills` said `before`; None if it is not known."""
    now = oom_kills()
    return None if now is None or before is None else now - before
