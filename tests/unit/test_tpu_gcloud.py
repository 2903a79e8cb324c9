"""The gcloud CLI as the way to hosts. What is called so here is a FAKE: a script that says what it was called with, and
runs on this machine what was meant for a host. tests/tpu/test_gcloud.py has the real one, where it is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.tpu import gcloud
from launcher.backends.tpu.gcloud import Gcloud
from launcher.backends.tpu.ssh import Key, SshError
from launcher.spec_tpu import Tpu

FAKE = f"""#!{sys.executable}
# A fake gcloud, of tests.
import json, subprocess, sys
with open({{called!r}}, "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
remote = sys.argv[-1].removeprefix("--command=")
print("fake gcloud: no host", file=sys.stderr)
sys.exit(subprocess.run(["sh", "-c", remote]).returncode)
"""
PRINT = ("-c", "import json, os, sys; print(json.dumps([sys.stdin.read(), os.path.isdir(sys.argv[1])]))")


class Fake:
    """A gcloud on PATH."""

    def __init__(self, folder: Path) -> None:
        self._called, self.home = folder / "called", folder / "home"
        program = folder / "gcloud"
        program.write_text(FAKE.format(called=str(self._called)))
        program.chmod(0o755)
        sudo = folder / "sudo"
        sudo.write_text('#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n')
        sudo.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._called.read_text().splitlines()]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    one = Fake(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    own_home = gcloud._OWN_HOME.replace(gcloud.HOME, str(one.home))
    monkeypatch.setattr(gcloud, "_OWN_HOME", own_home)
    return one


def way(**tpu: Any) -> Gcloud:
    return Gcloud("run-1", "us-west4-a", Tpu(project="mine", **tpu), Key(Path("/keys/id"), "launcher:ssh-ed25519 A"))


@pytest.mark.parametrize(
    ("tpu", "before", "after"),
    [
        ({"ssh": "gcloud"}, [], []),
        ({"ssh": "gcloud", "internal_ips": True}, [], ["--internal-ip"]),
        ({"ssh": "iap"}, ["alpha"], ["--tunnel-through-iap"]),
        ({"ssh": "iap", "internal_ips": True}, ["alpha"], ["--tunnel-through-iap"]),
    ],
)
def test_it_is_called_for_one_host_at_a_time(
    fake: Fake, tpu: dict[str, Any], before: list[str], after: list[str]
) -> None:
    assert way(**tpu).python(3, (*PRINT, str(fake.home)), "given") == ["given", True]

    *words, command = fake.calls[0]
    assert words == [
        *before,
        *("compute", "tpus", "tpu-vm", "ssh", "launcher@run-1", "--zone=us-west4-a", "--project=mine"),
        *("--ssh-key-file=/keys/id", "--quiet"),
        *after,
        "--worker=3",
    ]
    assert command.startswith("--command=[ -w ")
    assert len(fake.calls) == 1


def test_what_fails_there_is_told_with_the_host(fake: Fake) -> None:
    with pytest.raises(SshError, match=r"host 1, by gcloud: fake gcloud: no host the reason"):
        way(ssh="gcloud").python(1, ("-c", "import sys; sys.exit('the reason')"))
    with pytest.raises(SshError, match="host 1, by gcloud: it said 'no JSON"):
        way(ssh="gcloud").python(1, ("-c", "print('no JSON')"))


def test_where_there_is_no_gcloud_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SshError, match="gcloud is not on PATH"):
        way(ssh="gcloud").python(0, PRINT)
