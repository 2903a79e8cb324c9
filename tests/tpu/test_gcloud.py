"""The fake Cloud TPU as Google's own client finds it, which knows nothing of it but its address."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.backends.tpu.gcloud import Gcloud
from launcher.backends.tpu.ssh import own_key
from launcher.spec_tpu import Tpu
from tpu.cloud import Cloud
from tpu.slices import ZONE

pytestmark = pytest.mark.skipif(
    shutil.which("gcloud") is None, reason="NOT TESTED: the gcloud CLI, which is not installed"
)
QUIET = {
    "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
    "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
    "CLOUDSDK_COMPUTE_ZONE": ZONE,
}


@pytest.fixture
def gcloud(cloud: Cloud, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["gcloud", "compute", "tpus", *words],
            env={**os.environ, **cloud.env, **QUIET, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_create_enter_and_delete(gcloud: Callable[..., subprocess.CompletedProcess[str]], cloud: Cloud) -> None:
    what = ["--accelerator-type=v4-16", "--version=tpu-ubuntu2204-base", "--spot"]
    created = gcloud("tpu-vm", "create", "by-gcloud", *what)
    assert created.returncode == 0, created.stderr
    listed = gcloud("tpu-vm", "list", "--format=value(name,state)")
    assert listed.stdout.split()[-2:] == ["by-gcloud", "READY"]
    names = gcloud("tpu-vm", "ssh", "by-gcloud", "--worker=all", "--command=hostname")
    assert len([line for line in names.stdout.splitlines() if line.startswith("t1v-n-")]) == 2, names.stderr
    deleted = gcloud("tpu-vm", "delete", "by-gcloud", "--quiet")
    assert deleted.returncode == 0, deleted.stderr
    assert not [
        request for request in cloud.requests() if "gcloud" in request["user_agent"] and request["status"] == 400
    ]


def test_a_queued_resource(gcloud: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    what = ["--node-id=queued-node", "--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
    created = gcloud("queued-resources", "create", "queued", *what, "--valid-until-duration=1h")
    assert created.returncode == 0, created.stderr
    shown = gcloud("queued-resources", "describe", "queued", "--format=value(state.state)")
    assert shown.stdout.strip() in ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    deleted = gcloud("queued-resources", "delete", "queued", "--force", "--quiet")
    assert deleted.returncode == 0, deleted.stderr


def test_what_is_wrong_is_said(gcloud: Callable[..., subprocess.CompletedProcess[str]], cloud: Cloud) -> None:
    cloud.order("deny", permission="tpu.nodes.get")
    try:
        denied = gcloud("tpu-vm", "describe", "none")
    finally:
        cloud.order("allow")

    assert denied.returncode == 1
    assert "PERMISSION_DENIED" in denied.stderr


def test_the_launcher_enters_hosts_by_it(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the launcher's key, which is in the metadata: gcloud changes nothing there."""
    for name, value in {**cloud.env, **QUIET, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    key = own_key()
    body = {
        "acceleratorType": "v4-16",
        "runtimeVersion": "tpu-ubuntu2204-base",
        "networkConfig": {"enableExternalIps": True},
        "metadata": {"ssh-keys": key.public},
    }
    cloud.finish(cloud.call("POST", f"{ZONE}/nodes", body, nodeId="entered"))
    way = Gcloud("entered", ZONE, Tpu(project="fake-project", ssh="gcloud"), key)

    said = way.python(
        1, ("-c", "import json, os, sys; print(json.dumps([os.uname().nodename, sys.stdin.read()]))"), "x"
    )

    assert (said[0].rpartition("-")[2], said[1]) == ("1", "x")
    assert said[0].startswith("t1v-n-")
    changed = [one for one in cloud.requests() if one["method"] == "nodes.patch" and "entered" in one["path"]]
    assert changed == []
    cloud.finish(cloud.call("DELETE", f"{ZONE}/nodes/entered"))
