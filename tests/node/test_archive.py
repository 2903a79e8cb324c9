"""The container of checkpoint files, held against torch.save's own."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.node.archive import Archive


def state() -> dict[str, Any]:
    weights = torch.rand(1000)
    return {
        "step": 5,
        "text": "é" * 1000,
        "weights": weights,
        "view": weights[3:7],
        "half": torch.rand(3, 5).bfloat16(),
        "nothing": torch.empty(0),
        "large": torch.rand(300_000),  # several parts, and a rest
    }


def saved(checkpoint: Any) -> bytes:
    stream = io.BytesIO()
    archive = Archive(stream.write)
    torch.serialization._save(checkpoint, archive, pickle, torch.serialization.DEFAULT_PROTOCOL, False)
    archive.close()
    return stream.getvalue()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a | b)


def test_it_is_what_torch_writes_up_to_the_id_that_it_adds() -> None:
    checkpoint, stream = state(), io.BytesIO()
    torch.save(checkpoint, stream)
    end = zipfile.ZipFile(stream).getinfo("archive/.data/serialization_id").header_offset

    assert saved(checkpoint)[:end] == stream.getvalue()[:end]


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 1000, 1], ids=["short", "some long", "all long"])
def test_zip_and_torch_read_it(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.node.archive._LIMIT", limit)  # else it would take gigabytes
    checkpoint, file = state(), tmp_path / "state.ckpt"

    file.write_bytes(saved(checkpoint))

    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
    assert same(torch.load(file, weights_only=True), checkpoint)
    assert same(torch.load(file, weights_only=True, mmap=True), checkpoint)
