"""What would not work on Cloud TPU: told in one message, by whom, and before anything is created."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import object_store
import pytest
from gcs import faulty

import launcher.cli.main
from launcher.backends.tpu import arrival
from launcher.backends.tpu.runner import NOT_ALLOWED
from launcher.runs import run_ids
from tpu.cloud import Cloud
from tpu.conftest import ALONE
from tpu.slices import ZONE

REPOSITORY = Path(__file__).parents[2]
EVER = 1_000_000
REFUSED = faulty.refuses(403, "me@fake does not have storage.objects.create access", "forbidden")


class Here(NamedTuple):
    """A machine of somebody who has the gcloud CLI and a target that is called `cloud`."""

    cloud: Cloud
    store: faulty.Proxy
    gcloud: Path

    def has_token(self, token: str) -> None:
        """gcloud gives this one, though it be good for nothing; "": it has none."""
        self.gcloud.write_text(f"#!/bin/sh\necho {token}\n" if token else "#!/bin/sh\necho none >&2\nexit 1\n")
        self.gcloud.chmod(0o755)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, str]]:
    """A cloud without hosts, and the URL of an object store."""
    cloud = Cloud("api", tmp_path_factory.mktemp("cloud"))
    with object_store.emulator(tmp_path_factory.mktemp("emulator")) as url:
        from launcher.gcs_client import connection

        connection().mkdir("runs", acl=None, default_acl=None)
        try:
            cloud.up(ALONE)
            yield cloud, url
        finally:
            cloud.down(wipe=True)


@pytest.fixture
def here(there: tuple[Cloud, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    cloud, url = there
    store = faulty.Proxy(url)
    (tmp_path / "bin").mkdir()
    targets = tmp_path / "launcher/targets"
    targets.mkdir(parents=True)
    (targets / "cloud.yaml").write_text(json.dumps({"kind": "tpu", "tpu": {"project": "fake-project", "zone": ZONE}}))
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "LAUNCHER_SCRATCH", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU", cloud.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(launcher.cli.main, "_leave_output_alone", lambda: None)  # this process goes on
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCHER_RUNS", "gs://runs/here")
    with monkeypatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", store.url)
        from launcher import gcs_client

        gcs_client._made.clear()
        one = Here(cloud, store, tmp_path / "bin/gcloud")
        one.has_token(cloud.new_token())
        yield one
        gcs_client._made.clear()
    store.close()
    cloud.order("allow")


def no_credentials(here: Here) -> None:
    here.has_token("")


def expired(here: Here) -> None:
    here.cloud.order("expire_tokens")


def may_not_look(here: Here) -> None:
    here.cloud.order("deny", permission="tpu.acceleratorTypes.get")


def may_not_write(here: Here) -> None:
    here.store.fault(REFUSED, method="POST", times=EVER)


def may_not_delete(here: Here) -> None:
    here.store.fault(
        faulty.refuses(403, "me@fake does not have storage.objects.delete access", "forbidden"),
        method="DELETE",
        times=EVER,
    )


def nothing(here: Here) -> None: ...


@pytest.mark.parametrize(
    ("prepare", "words", "said"),
    [
        (nothing, ("--runs-root", "runs"), "--runs-root gs://BUCKET/FOLDER"),
        (nothing, ("--runs-root", "gs://no-such-bucket/runs"), "there is no bucket no-such-bucket"),
        (nothing, ("--set", "tpu.project=another"), "denied on 'projects/another/"),
        (nothing, ("--set", "tpu.zone=nowhere-a"), "Location nowhere-a is not found"),
        (nothing, ("--set", "tpu.zone=us-west4-a"), "zone us-west4-a has no accelerator type v4-16"),
        (nothing, ("--set", "tpu.runtime_version=tpu-vm-x"), "has no runtime version tpu-vm-x"),
        (nothing, ("--set", "tpu.accelerator_type=v4-x"), "tpu.accelerator_type: v4-x is none"),
        (may_not_look, (), "roles/tpu.admin"),
        (no_credentials, (), "there are no credentials for Google Cloud here"),
        (expired, (), "log in: gcloud auth application-default login"),
        (may_not_write, (), "storage.objects.create access); log in"),
        (may_not_delete, (), "the role roles/storage.objectUser on the bucket"),
    ],
)
def test_what_would_not_work_is_told_before_anything_is_created(
    here: Here, capsys: pytest.CaptureFixture[str], prepare: object, words: tuple[str, ...], said: str
) -> None:
    assert callable(prepare)
    prepare(here)
    on_cloud = ("--on", "cloud", "--set", "tpu.accelerator_type=v4-16", "--no-check")

    code = launcher.cli.main.main(["run", str(REPOSITORY / "jobs/quickstart.yaml"), *on_cloud, *words])

    printed = capsys.readouterr().err
    assert code in (1, 64), printed
    assert said in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 1
    assert not [one for one in here.cloud.requests() if one["verb"] == "POST"]
    assert run_ids(os.environ["LAUNCHER_RUNS"]) == []


def arrived(here: Here, run_dir: str = "gs://runs/run") -> subprocess.CompletedProcess[str]:
    """On a host, whose metadata server knows its account."""
    env = {**os.environ, "GCE_METADATA_HOST": here.cloud.url.removeprefix("http://"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", arrival.__name__, run_dir, f"{run_dir}/code/12ab.tar"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)


def test_what_the_hosts_account_lacks_is_named_with_the_command_that_gives_it(here: Here) -> None:
    may_not_write(here)

    done = arrived(here)

    assert done.returncode == NOT_ALLOWED, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot create gs://runs/run/.trial-" in done.stderr
    assert "log in" not in done.stderr, "nobody can, there"
    assert (
        "gcloud storage buckets add-iam-policy-binding gs://runs --member=serviceAccount:tester@fake "
        "--role=roles/storage.objectUser"
    ) in done.stderr


def test_hosts_without_an_account_are_told_to_have_one() -> None:
    said = arrival.explained("cannot create gs://b/x: permission denied (why); log in", "gs://b/run", "")

    assert said.startswith("cannot create gs://b/x: permission denied (why); hosts have no service account")
    assert "tpu.service_account" in said


def test_where_the_account_may_only_the_code_can_be_missing(here: Here) -> None:
    done = arrived(here)

    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
