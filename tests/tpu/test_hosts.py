"""Hosts of the fake Cloud TPU, by ssh."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import network, processes

from tpu.cloud import Cloud
from tpu.conftest import GRACE_S, SETTINGS
from tpu.slices import USER, ZONE, Slice, eventually

REPOSITORY = Path(__file__).parents[2]

# Waits for the end: of what it hears of, there is a line in the file.
WITNESS = """
nohup setsid sh -c '
trap "echo TERM >> heard; sleep 1; echo saved >> heard; exit" TERM
echo begins >> heard; while :; do sleep 0.1; done' > /dev/null 2>&1 < /dev/null &
"""
# Writes down whether it is preempted, and waits for a change of that.
WATCHER = """
import signal, urllib.request
signal.signal(signal.SIGTERM, signal.SIG_IGN)
etag = ""
with open("seen", "w", buffering=1) as seen:
    for wait in ("", "wait_for_change=true&last_etag="):
        url = f"http://metadata.google.internal/computeMetadata/v1/instance/preempted?{wait}{etag}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})) as answer:
            etag = answer.headers["ETag"]
            print(answer.read().decode(), file=seen)
"""
STUBBORN = "nohup setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' > /dev/null 2>&1 < /dev/null &"


@pytest.fixture(scope="module")
def steady(cloud: Cloud, key: Path) -> Iterator[Slice]:
    """Two hosts, to which nothing happens."""
    script = "echo 'from the startup script'; hostname > /var/log/its-name"
    one = Slice(cloud, "steady", key, **{"startup-script": script, "mine": "too"})
    yield one
    one.delete()


@pytest.fixture
def new(cloud: Cloud, key: Path) -> Iterator[Callable[..., Slice]]:
    """Makes slices of two hosts that a test may break."""
    made: list[Slice] = []

    def make(**options: Any) -> Slice:
        made.append(Slice(cloud, f"new-{time.monotonic_ns()}", key, **options))
        return made[-1]

    yield make
    for one in made:
        one.delete()


def in_tmp(host: Slice, worker: int) -> list[str]:
    """What is in a host's own /tmp; this checkout, whose Python it shares, may lie there."""
    shared = {Path(folder).parts[2] for folder in SETTINGS.shared if folder.startswith("/tmp/")}
    return [name for name in host.ssh(worker, "ls /tmp").split() if name not in shared]


def test_each_host_is_a_machine_of_its_own(steady: Slice) -> None:
    names = [steady.ssh(worker, "hostname").strip() for worker in (0, 1)]
    assert names == [f"t1v-n-{steady.node['id'][:8]}-w-{worker}" for worker in (0, 1)]

    steady.ssh(0, "echo mine > /tmp/mine")
    assert in_tmp(steady, 0) == ["mine"]
    assert in_tmp(steady, 1) == []
    assert steady.ssh(0, "id -un; pwd").split() == [USER, f"/home/{USER}"]
    assert "sshd" in steady.ssh(0, "ps -A -o comm")
    assert len(steady.ssh(0, "ps -A -o pid=").split()) < 20


def test_files_of_this_machine_are_not_there(steady: Slice) -> None:
    assert steady.run(0, f"ls {REPOSITORY}/pyproject.toml").returncode != 0
    assert steady.run(0, "touch /usr/mine", user=USER).returncode != 0
    assert "Read-only" in steady.root(0, "touch /usr/mine 2>&1 || true")
    assert steady.ssh(0, "ls /dev").count("accel") == 4


def test_what_is_shared_can_be_used_and_not_written_to(steady: Slice) -> None:
    assert steady.ssh(0, f"{sys.executable} -c 'import pytest; print(pytest.__name__)'") == "pytest\n"
    assert "Read-only" in steady.root(0, f"touch {sys.prefix}/mine 2>&1 || true")


def test_files_are_copied_by_sftp(steady: Slice, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("copied")
    command = ["scp", *steady.command(0, "")[2:-2], str(tmp_path / "file"), f"{USER}@{steady.address(0)}:"]

    subprocess.run(command, check=True, timeout=180)
    assert steady.ssh(0, "cat file") == "copied"


def test_the_way_a_command_ends_is_the_way_ssh_ends(steady: Slice) -> None:
    assert steady.run(1, "exit 7").returncode == 7


def test_nobody_gets_in_without_his_key(steady: Slice) -> None:
    refused = steady.run(0, "true", user="root")

    assert (refused.returncode, "Permission denied" in refused.stderr) == (255, True)


def test_hosts_reach_each_other_and_this_machine_and_nobody_else(steady: Slice, cloud: Cloud) -> None:
    other = steady.node["networkEndpoints"][1]["ipAddress"]
    reach = 'python3 -c "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"'

    steady.ssh(0, f"{reach} {other} 22")
    steady.ssh(0, f"{reach} t1v-n-{steady.node['id'][:8]}-w-1 22")
    steady.ssh(0, f"{reach} {cloud.address} 8080")
    assert "default" not in steady.ssh(0, "ip route")


def test_a_host_knows_its_place_by_its_metadata(steady: Slice) -> None:
    attributes = json.loads(steady.metadata(1, "instance/attributes/?recursive=true"))

    assert (attributes["agent-worker-number"], attributes["mine"]) == ("1", "too")
    assert "ACCELERATOR_TYPE: 'v4-16'\n" in attributes["tpu-env"]
    assert steady.metadata(0, "instance/preempted") == "FALSE"
    assert (
        "403"
        in steady.run(0, "python3 -c \"import urllib.request as u; u.urlopen('http://169.254.169.254/x/')\"").stderr
    )


def test_what_a_host_writes_about_itself_the_api_shows(steady: Slice, cloud: Cloud) -> None:
    steady.metadata(0, "instance/guest-attributes/test/answer", ", data=b'42', method='PUT'")

    path = f"{ZONE}/nodes/steady:getGuestAttributes"
    shown = cloud.call("POST", path, {"queryPath": "test/", "workerIds": ["0"]})["guestAttributes"]
    assert shown[0]["queryValue"]["items"] == [{"namespace": "test", "key": "answer", "value": "42"}]


def test_a_host_has_a_token_for_the_api(steady: Slice, cloud: Cloud) -> None:
    token = json.loads(steady.metadata(0, "instance/service-accounts/default/token"))["access_token"]

    headers = {"Authorization": f"Bearer {token}"}
    assert cloud.send("GET", "/v2/projects/fake-project/locations/-/nodes", headers=headers)["nodes"]


def test_its_user_may_do_all_by_sudo(steady: Slice) -> None:
    assert steady.ssh(0, "sudo -n id -un") == "root\n"


def test_the_startup_script_runs_at_each_boot(new: Callable[..., Slice]) -> None:
    one = new(accelerator="v4-8", **{"startup-script": "echo again >> /var/log/boots"})
    eventually(lambda: one.root(0, "cat /var/log/boots || true").split() == ["again"], "the script")
    one.ssh(0, "echo kept > kept; echo lost > /tmp/lost")

    one.order("lose_host", worker=0)
    one.order("boot_host", worker=0)
    eventually(lambda: one.run(0, "true").returncode == 0, "the host to come back, with the same key")
    eventually(lambda: one.root(0, "cat /var/log/boots || true").split() == ["again"] * 2, "the script to run again")
    assert one.ssh(0, "cat kept").split() == ["kept"]
    assert in_tmp(one, 0) == []


def test_a_new_key_lets_its_user_in(new: Callable[..., Slice], cloud: Cloud, key: Path) -> None:
    one = new(accelerator="v4-8")
    public = key.with_suffix(".pub").read_text().strip()
    assert one.run(0, "true", user="guest").returncode == 255

    body = {"metadata": {"ssh-keys": f"guest:{public}"}}
    cloud.finish(cloud.call("PATCH", f"{ZONE}/nodes/{one.name}", body, updateMask="metadata"))
    eventually(lambda: one.run(0, "true", user="guest").returncode == 0, "the key to be there")
    assert one.run(0, "true").returncode == 255


def test_preemption_is_announced_and_then_the_power_goes(new: Callable[..., Slice], cloud: Cloud) -> None:
    one = new()
    one.ssh(0, WITNESS)
    one.ssh(1, STUBBORN)
    home = cloud.layout.disk(machine(one, 0)) / f"home/{USER}"
    (home / "watch.py").write_text(WATCHER)
    one.ssh(0, "nohup setsid python3 watch.py > /dev/null 2>&1 < /dev/null &")
    eventually(lambda: one.run(0, "cat seen").stdout == "FALSE\n", "the question")

    began = time.monotonic()
    one.order("preempt")
    eventually(lambda: (home / "seen").read_text() == "FALSE\nTRUE\n", "the notice", GRACE_S)
    assert one.state == "PREEMPTED"
    eventually(lambda: "saved" in (home / "heard").read_text(), "the save", GRACE_S)
    eventually(lambda: not any(host["up"] for host in hosts(one)), "the end of the power")
    assert time.monotonic() - began >= GRACE_S
    assert one.run(1, "true").returncode == 255
    assert one.state == "PREEMPTED"


def test_without_notice_nobody_hears_of_it(new: Callable[..., Slice], cloud: Cloud) -> None:
    one = new(accelerator="v4-8")
    one.ssh(0, WITNESS)
    heard = cloud.layout.disk(machine(one, 0)) / f"home/{USER}/heard"
    eventually(heard.exists, "the witness")

    one.order("preempt", grace=0)
    eventually(lambda: not hosts(one)[0]["up"], "the end of the power")
    eventually(lambda: one.run(0, "true").returncode == 255, "the host to be gone")
    assert heard.read_text() == "begins\n"


def test_a_lost_host_says_no_goodbye(new: Callable[..., Slice]) -> None:
    one = new()
    with subprocess.Popen(one.command(1, "sleep 60"), stderr=subprocess.PIPE) as session:
        eventually(lambda: "sleep" in one.root(1, "ps -A -o args | grep '^sleep 60' || true"), "the session")
        began = time.monotonic()
        one.order("lose_host", worker=1)
        assert session.wait(30) == 255
        assert time.monotonic() - began > 1.5, "it was not its client that gave it up"
    assert one.state == "READY"
    assert one.ssh(0, "echo here") == "here\n"


def test_a_host_that_is_cut_off_goes_on(new: Callable[..., Slice]) -> None:
    one = new(accelerator="v4-8")
    one.ssh(0, WITNESS)

    one.order("cut_host", worker=0)
    eventually(lambda: one.run(0, "true").returncode == 255, "the cut")
    one.order("restore_host", worker=0)
    eventually(lambda: one.run(0, "true").returncode == 0, "the host to be reached again")
    assert one.ssh(0, "cat heard") == "begins\n"


def test_maintenance_reboots_all_hosts(new: Callable[..., Slice]) -> None:
    one = new(**{"shutdown-script": "echo $(hostname) goes > /root/last-words"})
    before = one.ssh(0, "cat /proc/1/stat").split()[21]

    one.order("maintain")
    eventually(lambda: one.state == "REPAIRING", "maintenance")
    eventually(lambda: one.state == "READY", "its end")
    assert one.ssh(0, "cat /proc/1/stat").split()[21] != before
    assert one.root(0, "cat /root/last-words") == f"t1v-n-{one.node['id'][:8]}-w-0 goes\n"


def test_a_node_that_is_deleted_leaves_nothing(new: Callable[..., Slice], cloud: Cloud) -> None:
    one = new()
    numbers = [machine(one, worker) for worker in (0, 1)]
    one.ssh(0, STUBBORN)

    one.delete()
    for number in numbers:
        eventually(lambda number=number: left_of(cloud, number) == [], f"{number} to be gone")


def hosts(one: Slice) -> list[dict[str, Any]]:
    return [host for host in one.cloud.status()["hosts"] if host["node"] == one.name]


def machine(one: Slice, worker: int) -> str:
    found: str = hosts(one)[worker]["machine"]
    return found


def left_of(cloud: Cloud, name: str) -> list[str]:
    layout = cloud.layout
    found = [f"process {pid}" for pid in processes.marked(layout.mark(name) + "\0")]
    found += [one["ifname"] for one in network.interfaces() if one["ifname"] == layout.interface(name)]
    return found + [str(path) for path in [layout.disk(name)] if path.exists()]
