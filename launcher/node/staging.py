"""Host memory into which a checkpoint is copied, so that training can go on while it is written."""

import mmap
from typing import Any

import torch

from launcher.node.plain import plain

_ALIGNMENT = 64  # bytes; of any type, and of a cache line


class Staging:
    """One block of memory, used again for each checkpoint: only the first one pays for getting it.

    Pinned where there is CUDA, so that devices copy to it at full speed.
    """

    def __init__(self) -> None:
        self._block: Any = b""

    def copy(self, checkpoint: Any) -> Any:
        """The checkpoint as plain values, its tensors copied. Overwrites the copy before.

        Tensors that share memory do so in the copy: it is copied once, and written once.

        Raises:
            NotRepresentable: a value cannot be written.
        """
        storages: dict[int, torch.UntypedStorage] = {}

        def collect(tensor: torch.Tensor) -> None:
            if _is_plain(tensor):
                storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

        plain(checkpoint, tensor=collect)
        self._make_room(sum(map(_room, storages.values())))
        staged: dict[int, torch.UntypedStorage] = {}
        offset = 0
        for key, storage in storages.items():
            staged[key] = self._place(storage, offset)
            offset += _room(storage)
        if any(storage.device.type == "cuda" for storage in storages.values()):
            torch.cuda.current_stream().synchronize()
        return plain(checkpoint, tensor=lambda tensor: _on(staged, tensor))

    def _make_room(self, size: int) -> None:
        if len(self._block) >= size:
            return
        self._block = b""  # first give back what there is
        if torch.cuda.is_available():
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            return
        # Private: memory that is shared gets no huge pages, with which copying to it is some times faster.
        self._block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A page that a forked DataLoader worker shares would be copied when it is written to.
        self._block.madvise(mmap.MADV_DONTFORK)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._block.madvise(mmap.MADV_HUGEPAGE)

    def _place(self, storage: torch.UntypedStorage, offset: int) -> torch.UntypedStorage:
        """A copy that is a storage of its own: a view of the block would be written with all of the block."""
        size = storage.nbytes()
        if size == 0:
            return torch.empty(0).untyped_storage()
        given = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        taken = torch.frombuffer(self._block, dtype=torch.uint8, count=size, offset=offset)
        taken.copy_(given, non_blocking=True)
        return taken.untyped_storage()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of bytes of its own device's memory, and nothing more."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def _on(staged: dict[int, torch.UntypedStorage], tensor: torch.Tensor) -> torch.Tensor:
    if not _is_plain(tensor):
        return tensor.detach().to("cpu", copy=True)
    copied = torch.empty(0, dtype=tensor.dtype).set_(
        staged[tensor.untyped_storage()._cdata], tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    return copied.requires_grad_(tensor.requires_grad)


def _room(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
