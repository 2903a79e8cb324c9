"""The launcher's way to hosts: one key, host keys that are known, errors that name the host."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.tpu.api import Api
from launcher.backends.tpu.ssh import Key, Ssh, SshError, own_key
from tpu.cloud import Cloud
from tpu.slices import ZONE

PRINT = ("-c", "import json, os, sys; print(json.dumps([os.uname().nodename, sys.stdin.read()]))")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Key]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield own_key()


@pytest.fixture(scope="module")
def slice_(cloud: Cloud, key: Key) -> Iterator[tuple[list[str], list[list[tuple[str, str]]]]]:
    """Addresses and host keys of a node of two hosts."""
    client = Api("fake-project", cloud.url, token=lambda renew=False: cloud.new_token())
    body = {
        "acceleratorType": "v4-16",
        "runtimeVersion": "tpu-ubuntu2204-base",
        "networkConfig": {"enableExternalIps": True},
        "metadata": {"ssh-keys": key.public},
    }
    node = cloud.finish(cloud.call("POST", f"{ZONE}/nodes", body, nodeId="by-ssh"))
    yield [one["accessConfig"]["externalIp"] for one in node["networkEndpoints"]], client.host_keys(ZONE, "by-ssh")
    cloud.finish(cloud.call("DELETE", f"{ZONE}/nodes/by-ssh"))


Hosts = tuple[list[str], list[list[tuple[str, str]]]]


def test_the_key_is_made_once_and_nobody_else_reads_it(key: Key) -> None:
    assert own_key() == key
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.private.parent.stat().st_mode) == 0o700
    assert key.public.startswith("launcher:ssh-ed25519 ")


def test_each_host_is_told_its_own_and_answers(slice_: Hosts, key: Key) -> None:
    ssh = Ssh("by-ssh", *slice_, key)

    answers = [ssh.python(worker, PRINT, f"for {worker}; $(true) 'x'") for worker in (0, 1)]

    assert [(name.rpartition("-")[2], given) for name, given in answers] == [
        ("0", "for 0; $(true) 'x'"),
        ("1", "for 1; $(true) 'x'"),
    ]
    ssh.close()
    assert not ssh._folder.exists()


def test_a_host_with_another_key_is_not_talked_to(slice_: Hosts, key: Key) -> None:
    addresses, keys = slice_
    ssh = Ssh("exchanged", addresses, keys[::-1], key)

    with pytest.raises(SshError, match=rf"host 0 \({addresses[0]}\): .*[Hh]ost key"):
        ssh.python(0, PRINT)
    ssh.close()


def test_what_fails_there_is_told_with_what_it_said(slice_: Hosts, key: Key) -> None:
    ssh = Ssh("failing", *slice_, key)

    with pytest.raises(SshError, match=r"host 1 .*: the reason"):
        ssh.python(1, ("-c", "import sys; sys.exit('the reason')"))
    with pytest.raises(SshError, match="it said 'no JSON"):
        ssh.python(1, ("-c", "print('no JSON')"))
    ssh.close()


def test_who_has_no_key_is_let_in_nowhere(slice_: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ssh = Ssh("stranger", *slice_, own_key())

    with pytest.raises(SshError, match="Permission denied"):
        ssh.python(0, PRINT)
    ssh.close()
