"""What happens to the storage when network or server fail: first what passes, then what somebody has to mend."""

import asyncio
import errno
import time
from collections.abc import Iterator
from types import SimpleNamespace

import faulty
import pytest

from launcher import gcs_client
from launcher.gcs import GcsStorage, NoBucket
from launcher.kinds import Kind, failure_kind
from launcher.storage import Unreachable

EVER = 10_000
BUSY = faulty.refuses(503, "Backend Error", "backendError")


@pytest.fixture
def network(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[faulty.Proxy]:
    proxy = faulty.Proxy(emulator)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    # The pauses between two tries, of gcsfs: half a minute together.
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0)))
    yield proxy
    proxy.close()


@pytest.fixture
def storage(place: str, network: faulty.Proxy) -> GcsStorage:
    return GcsStorage(place)


PASSING = {
    "503": BUSY,
    "500": faulty.refuses(500, "Backend Error", "backendError"),
    "502": faulty.refuses(502, "Bad Gateway"),
    "429": faulty.refuses(
        429, "The object exceeded the rate limit for object mutation operations", "rateLimitExceeded"
    ),
    "408": faulty.refuses(408, "Request Timeout"),
    "reset": faulty.resets,
    "lost": faulty.loses_the_answer,
    "half": faulty.breaks_off,
}


class TestWhatPasses:
    @pytest.mark.parametrize("what", PASSING)
    def test_is_tried_again_whatever_is_done(
        self, storage: GcsStorage, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        monkeypatch.setattr("launcher.gcs._CHUNK", 1 << 18)
        large = bytes(range(251)) * 3000
        for method in ("GET", "POST", "DELETE"):
            network.fault(PASSING[what], method=method, times=2)

        storage.create("created", b"1")
        network.fault(PASSING[what], method="POST", times=2)
        storage.replace("replaced", b"2")
        if what not in ("lost", "half"):  # the emulator, unlike the real thing, stores a part twice that is sent twice
            network.fault(PASSING[what], url="upload_id=", times=3)
        with storage.writer("streamed") as stream:
            stream.write(large)
        network.fault(PASSING[what], url="alt=media", times=2)
        with storage.open("streamed") as stream:
            assert stream.read() == large
        network.fault(PASSING[what], times=2)
        storage.move("replaced", "moved")
        storage.delete("created")

        assert storage.list("") == ["moved", "streamed"]
        assert storage.read("moved") == b"2"

    def test_a_creation_whose_answer_is_lost_is_ours_all_the_same(
        self, storage: GcsStorage, network: faulty.Proxy
    ) -> None:
        network.fault(faulty.loses_the_answer, method="POST", times=2)

        storage.create("event", b"ours")

        assert storage.read("event") == b"ours"
        assert sum(one.method == "POST" for one in network.seen) == 3

    def test_a_creation_that_somebody_else_has_won_meanwhile_is_theirs_though_the_content_is_the_same(
        self, storage: GcsStorage, network: faulty.Proxy, emulator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network.fault(faulty.resets, method="POST")
        storage.create("event", b"same")

        network.fault(BUSY, method="POST")
        with pytest.raises(FileExistsError):
            storage.create("event", b"same")

    def test_a_stream_that_is_not_stored_as_it_was_sent_is_an_error_and_leaves_nothing(
        self, storage: GcsStorage, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("launcher.gcs._CHUNK", 1 << 18)
        network.fault(faulty.loses_the_answer, url="upload_id=")

        with pytest.raises(Unreachable, match="bytes of 600000 were stored"), storage.writer("streamed") as stream:
            stream.write(b"x" * 600_000)

        assert storage.list("") == []

    def test_a_server_that_says_nothing_is_asked_again(
        self, place: str, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gcs_client, "_made", {**gcs_client._made})
        gcs_client._made.clear()
        monkeypatch.setattr(gcs_client, "_SILENCE_S", 0.3)
        network.fault(faulty.hangs(30), method="POST")

        begun = time.monotonic()
        GcsStorage(place).create("file", b"")

        assert time.monotonic() - begun < 10

    def test_is_waited_for_longer_than_gcsfs_does(self, storage: GcsStorage, network: faulty.Proxy) -> None:
        network.fault(BUSY, method="POST", times=20)

        storage.create("file", b"")

        assert len([one for one in network.seen if one.method == "POST"]) == 21

    def test_is_an_error_after_a_time_and_no_fault_of_the_user(
        self, storage: GcsStorage, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gcs_client, "PATIENCE_S", 0.5)
        network.fault(BUSY, times=EVER)

        with pytest.raises(Unreachable, match=r"cannot create gs://.*/file: no good answer for 0\.5 s") as raised:
            storage.create("file", b"")

        assert raised.value.errno == errno.ETIMEDOUT
        assert "Backend Error" in str(raised.value.strerror)
        assert failure_kind(raised.value) == Kind.STORAGE

    def test_is_an_error_too_where_nobody_listens(
        self, storage: GcsStorage, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gcs_client, "PATIENCE_S", 0.2)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")

        with pytest.raises(Unreachable, match=r"cannot read .*Cannot connect to host 127\.0\.0\.1"):
            storage.read("file")


class TestWhatSomebodyHasToMend:
    @pytest.mark.parametrize("status", [401, 403])
    def test_a_permission_is_named_with_how_to_get_it(
        self, storage: GcsStorage, network: faulty.Proxy, status: int
    ) -> None:
        denied = "worker@example.iam.gserviceaccount.com does not have storage.objects.create access"
        network.fault(faulty.refuses(status, denied, "forbidden"), times=EVER)

        for doing, call in {
            "create": lambda: storage.create("file", b""),
            "write": lambda: storage.replace("file", b""),
            "read": lambda: storage.read("file"),
            "list": lambda: storage.list(""),
            "delete": lambda: storage.delete("file"),
        }.items():
            before = len(network.seen)
            with pytest.raises(
                PermissionError, match=r"permission denied \(worker@.*objectUser on the bucket"
            ) as raised:
                call()
            assert str(raised.value.strerror).startswith(
                f"cannot {'list' if doing == 'delete' else doing} {storage.root}"
            )
            assert raised.value.errno == errno.EACCES
            assert len(network.seen) == before + 1, "tried again in vain"

    @pytest.mark.parametrize("status", [403, 429])
    def test_a_quota_is_named(
        self, storage: GcsStorage, network: faulty.Proxy, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        monkeypatch.setattr(gcs_client, "PATIENCE_S", 0.0)
        network.fault(faulty.refuses(status, "Quota exceeded for storage.bytes", "quotaExceeded"), times=EVER)

        with pytest.raises(OSError, match=r"cannot write .*a quota is used up \(Quota exceeded") as raised:
            storage.replace("file", b"")

        assert raised.value.errno == errno.EDQUOT
        assert failure_kind(raised.value) == Kind.DISK

    def test_a_bucket_that_is_not_there_is_named(self, network: faulty.Proxy) -> None:
        storage = GcsStorage("gs://no-such-bucket/runs")

        for call in (lambda: storage.create("a", b""), lambda: storage.replace("a", b""), lambda: storage.list("")):
            with pytest.raises(NoBucket, match=r"there is no bucket no-such-bucket.*gcloud storage buckets create"):
                call()
        with pytest.raises(FileNotFoundError):
            storage.read("a")

    def test_a_stream_that_is_refused_says_so(self, storage: GcsStorage, network: faulty.Proxy) -> None:
        network.fault(faulty.refuses(403, "no access", "forbidden"), method="POST", times=EVER)

        with (
            pytest.raises(PermissionError, match=r"cannot write gs://.*/file: permission denied \(no access"),
            storage.writer("file") as stream,
        ):
            stream.write(b"x")

    def test_what_the_user_s_own_code_raises_while_a_stream_is_written_stays_what_it_is(
        self, storage: GcsStorage
    ) -> None:
        with pytest.raises(ZeroDivisionError), storage.writer("file"):
            raise ZeroDivisionError
