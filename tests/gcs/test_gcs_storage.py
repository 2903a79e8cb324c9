"""The storage contract on an object store."""

import pytest
from storage_contract import Contract

from launcher.gcs import GcsStorage
from launcher.storage import Storage

HOSTILE = ["with space", 'it\'s "quoted"', "; rm -rf $HOME; `id` #", "naïve-日本語-🚀", "-rf", "%s{}*?[a]", "a?b=c&d#e"]


@pytest.fixture
def storage(place: str) -> GcsStorage:
    return GcsStorage(place)


class TestGcs(Contract):
    rounds = 5

    def everything(self, storage: Storage) -> list[str]:
        assert isinstance(storage, GcsStorage)
        return sorted(name for name, _ in storage._objects(""))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names_like_any_other(place: str, name: str) -> None:
    storage = GcsStorage(f"{place}/{name}")

    storage.create(f"{name}/{name}", b"created")
    storage.replace(f"{name}/replaced", b"replaced")
    with storage.writer(f"{name}/streamed {name}") as stream:
        stream.write(b"streamed")
    storage.move(f"{name}/replaced", f"{name}/moved {name}")

    assert storage.list(name) == sorted([name, f"moved {name}", f"streamed {name}"])
    assert storage.read(f"{name}/{name}") == b"created"
    assert GcsStorage(place).list("") == [name]


@pytest.mark.parametrize("data", [b"\n--==0==--\n", b"\r\n--x--\r\n", b"", b"\0" * 1000])
def test_no_content_is_taken_for_the_end_of_an_upload(storage: GcsStorage, data: bytes) -> None:
    storage.create("created", data)
    storage.replace("replaced", data)

    assert storage.read("created") == storage.read("replaced") == data


def test_a_stream_of_several_chunks_is_whole(storage: GcsStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.gcs._CHUNK", 1 << 18)
    content = bytes(range(251)) * 4000

    with storage.writer("large") as stream:
        for start in range(0, len(content), 100_000):
            stream.write(content[start : start + 100_000])
        assert storage.list("") == []

    with storage.open("large") as stream:
        parts = []
        while part := stream.read(70_000):
            parts.append(part)
    assert b"".join(parts) == content


def test_a_stream_of_several_chunks_that_fails_leaves_nothing(
    storage: GcsStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.gcs._CHUNK", 1 << 18)
    with pytest.raises(ZeroDivisionError), storage.writer("large") as stream:  # noqa: PT012 - the second raises
        stream.write(b"x" * 1_000_000)
        raise ZeroDivisionError

    assert storage.files("") == {}


def test_more_names_than_one_page_holds_are_all_listed(storage: GcsStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        storage.create(f"folder/{number}", b"")
    objects = storage._objects
    monkeypatch.setattr(storage, "_objects", lambda folder, **options: objects(folder, maxResults="2", **options))

    assert storage.list("folder") == ["0", "1", "2", "3", "4"]
    assert list(storage.files("")) == [f"folder/{number}" for number in range(5)]
