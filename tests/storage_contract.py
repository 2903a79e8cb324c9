"""What every storage does, whoever races and whatever fails: files are whole or not there."""

import multiprocessing
import os
import time
from collections.abc import Iterable

import pytest

from launcher.storage import Storage

fork = multiprocessing.get_context("fork")


class Contract:
    """Tests of the protocol; a subclass has a fixture `storage`, which is empty."""

    rounds = 25
    """Of a race."""

    def everything(self, storage: Storage) -> Iterable[str]:
        """All files, those with a dot included."""
        raise NotImplementedError

    def test_what_was_created_is_read(self, storage: Storage) -> None:
        storage.create("deep/er/file", b"content")

        assert storage.read("deep/er/file") == b"content"
        assert self.everything(storage) == ["deep/er/file"]

    def test_create_refuses_a_name_that_is_taken(self, storage: Storage) -> None:
        storage.create("file", b"first")

        with pytest.raises(FileExistsError):
            storage.create("file", b"second")

        assert storage.read("file") == b"first"
        assert self.everything(storage) == ["file"]

    def test_of_many_processes_that_create_one_name_exactly_one_wins(self, storage: Storage) -> None:
        ready = fork.Barrier(8)

        def race() -> None:
            body = str(os.getpid()).encode() * 5000
            won = []
            for number in range(self.rounds):
                ready.wait()
                try:
                    storage.create(f"race/{number}", body)
                except FileExistsError:
                    # The loser must see the winner's file, whole.
                    winner = storage.read(f"race/{number}")
                    assert winner == winner[: len(winner) // 5000] * 5000
                else:
                    won.append(number)
            storage.create(f"won/{os.getpid()}", repr(won).encode())

        racers = [fork.Process(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()

        assert [racer.exitcode for racer in racers] == [0] * 8
        won = [number for name in storage.list("won") for number in eval(storage.read(f"won/{name}"))]
        assert sorted(won) == list(range(self.rounds))
        assert not [name for name in self.everything(storage) if "/." in name]

    def test_replace_writes_a_file_new_or_not(self, storage: Storage) -> None:
        storage.replace("file", b"old")
        storage.replace("file", b"new")

        assert storage.read("file") == b"new"
        assert self.everything(storage) == ["file"]

    def test_readers_of_a_replaced_file_never_see_a_mixture(self, storage: Storage) -> None:
        storage.replace("file", b"0" * 100_000)
        stop = fork.Event()

        def rewrite() -> None:
            for number in range(1, 100_000):
                storage.replace("file", str(number % 10).encode() * 100_000)
                if stop.is_set():
                    return

        writer = fork.Process(target=rewrite)
        writer.start()
        deadline = time.monotonic() + 60
        while storage.read("file")[:1] == b"0" and time.monotonic() < deadline:
            pass
        seen = [storage.read("file") for _ in range(400)]
        stop.set()
        writer.join()

        assert seen[-1][:1] != b"0", "the writer never got its turn"
        assert all(content == content[:1] * 100_000 for content in seen)

    def test_a_streamed_file_appears_at_the_end_and_whole(self, storage: Storage) -> None:
        with storage.writer("large") as stream:
            stream.write(b"a" * 1000)
            stream.flush()
            assert storage.list("") == []
            stream.write(b"b" * 1000)

        assert storage.read("large") == b"a" * 1000 + b"b" * 1000
        assert self.everything(storage) == ["large"]

    def test_a_stream_that_fails_leaves_nothing_behind(self, storage: Storage) -> None:
        with pytest.raises(ZeroDivisionError), storage.writer("large") as stream:  # noqa: PT012 - the second raises
            stream.write(b"half")
            raise ZeroDivisionError

        assert self.everything(storage) == []

    def test_a_stream_that_fails_leaves_the_old_file_intact(self, storage: Storage) -> None:
        storage.create("large", b"old")

        with pytest.raises(KeyboardInterrupt), storage.writer("large") as stream:  # noqa: PT012 - the second raises
            stream.write(b"half of the new")
            raise KeyboardInterrupt

        assert storage.read("large") == b"old"
        assert self.everything(storage) == ["large"]

    def test_list_is_sorted_and_hides_names_with_a_dot(self, storage: Storage) -> None:
        for name in ("b", "a", ".a.host.1.2", "c/d"):
            storage.create(f"folder/{name}", b"")

        assert storage.list("folder") == ["a", "b", "c"]

    def test_an_absent_folder_is_empty(self, storage: Storage) -> None:
        assert storage.list("nowhere") == []

    def test_an_absent_file_is_said_to_be_absent(self, storage: Storage) -> None:
        with pytest.raises(FileNotFoundError):
            storage.read("nowhere")
        with pytest.raises(FileNotFoundError):
            storage.open("nowhere")

    def test_a_folder_is_moved_with_all_it_holds(self, storage: Storage) -> None:
        storage.create("from/one", b"1")

        storage.move("from", "a/new/place")

        assert self.everything(storage) == ["a/new/place/one"]

    def test_delete_removes_files_and_folders_and_accepts_their_absence(self, storage: Storage) -> None:
        storage.create("file", b"")
        storage.create("folder/sub/file", b"")

        for path in ("file", "folder", "nowhere", "no/where"):
            storage.delete(path)

        assert self.everything(storage) == []

    def test_what_is_a_file_lists_as_nothing(self, storage: Storage) -> None:
        storage.create("folder/file", b"")

        assert storage.list("folder/file") == []

    def test_the_size_of_a_folder_is_that_of_all_its_files(self, storage: Storage) -> None:
        storage.create("deep/er/file", b"12345")
        storage.create("deep/.hidden", b"123")

        assert [storage.size(path) for path in ("deep", "deep/er/file", "absent")] == [8, 5, 0]

    def test_a_stream_fills_a_buffer(self, storage: Storage) -> None:
        storage.create("file", b"12345")
        buffer = memoryview(bytearray(3))

        with storage.open("file") as stream:
            parts = [bytes(buffer[: stream.readinto(buffer)]) for _ in range(3)]  # type: ignore[attr-defined]

        assert parts == [b"123", b"45", b""]

    def test_files_are_all_below_a_folder_with_size_and_time(self, storage: Storage) -> None:
        begun = time.time()
        for name in ("b/c", "a", "b/.hidden", ".away/d"):
            storage.create(f"folder/{name}", b"12345")
        storage.create("folders", b"")

        found = storage.files("folder")

        assert list(found) == ["a", "b/c"]
        assert {one.bytes for one in found.values()} == {5}
        assert all(begun - 2 < one.modified < time.time() + 2 for one in found.values())
        assert storage.modified("folder/a") == pytest.approx(found["a"].modified)

    def test_files_of_an_absent_folder_are_none_and_it_was_never_written(self, storage: Storage) -> None:
        assert storage.files("nowhere") == {}
        with pytest.raises(FileNotFoundError):
            storage.modified("nowhere")

    def test_a_file_is_moved(self, storage: Storage) -> None:
        storage.create("from", b"1")
        storage.create("from-another", b"2")

        storage.move("from", "to")

        assert list(self.everything(storage)) == ["from-another", "to"]
        assert storage.read("to") == b"1"

    def test_what_is_absent_cannot_be_moved(self, storage: Storage) -> None:
        with pytest.raises(FileNotFoundError):
            storage.move("nowhere", "to")

    def test_a_stream_is_read_in_parts_and_from_anywhere(self, storage: Storage) -> None:
        content = bytes(range(256)) * 1000
        storage.replace("large", content)

        with storage.open("large") as stream:
            assert stream.read(1000) == content[:1000]
            stream.seek(-10, os.SEEK_END)
            assert (stream.tell(), stream.read()) == (len(content) - 10, content[-10:])
