"""Who drives a run, and whether that process still lives.

On the same machine the kernel says it; from elsewhere the lease does: a file that the driver renews.
"""

import json
import os
import time
from functools import cache
from pathlib import Path

from launcher.events import Driver
from launcher.storage import Storage

RENEW_S = 10.0
LAPSE_S = 60.0
LEASE = "lease.json"


def this_process(job: str = "") -> Driver:
    """This process as a driver; `job` as in Driver."""
    pid = os.getpid()
    return Driver(host=os.uname().nodename, machine=this_machine(), pid=pid, started=start_ticks(pid) or 0, job=job)


@cache
def this_machine() -> str:
    """Boot and pid namespace: two processes with the same value see the same pids. "" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None if it is gone or a zombie.

    Source: proc(5), /proc/pid/stat: field 3 is the state, field 22 the start time; field 2 (the name) may
    hold spaces and parentheses, so that fields are counted after its last parenthesis.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(driver: Driver, storage: Storage) -> bool:
    if driver.machine and driver.machine == this_machine():
        return start_ticks(driver.pid) == driver.started
    return time.time() - _renewed_at(storage, driver) < LAPSE_S


def renew_lease(storage: Storage, driver: Driver) -> None:
    lease = {"pid": driver.pid, "machine": driver.machine, "renewed": time.time()}
    storage.replace(LEASE, json.dumps(lease).encode())


def _renewed_at(storage: Storage, driver: Driver) -> float:
    try:
        lease = json.loads(storage.read(LEASE))
    except FileNotFoundError:
        return 0.0
    ours = (lease["pid"], lease["machine"]) == (driver.pid, driver.machine)
    return float(lease["renewed"]) if ours else 0.0
