"""What Lightning and the user's own code save and load with; the launcher's checkpoints go through `Writer`."""

from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from launcher.address import split, storage_at
from launcher.node.checkpoint import load, unpickled, write
from launcher.node.plain import plain
from launcher.node.records import Records


class DurableCheckpointIO(TorchCheckpointIO):
    """Plain values, written beside their target.

    (Lightning's own goes through TMPDIR, which on a cluster is another filesystem: the final move is a copy
    that a kill tears.)
    """

    def __init__(self, read: Mapping[str, Records] | None = None) -> None:
        """
        Args:
            read: checkpoints that have been read already, by their addresses. Once loaded, these are emptied: whoever
                else holds one does not keep it in memory while the run trains.
        """
        super().__init__()
        self._read = dict(read or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        folder, name = split(path)
        write(storage_at(folder), name, plain(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        records = self._read.pop(str(path), None)
        loaded: dict[str, Any] = load(str(path)) if records is None else unpickled(records)
        if records is not None:
            records.clear()
        return loaded
