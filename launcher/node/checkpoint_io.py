"""What Lightning and the user's own code save and load with; the launcher's checkpoints go through `Writer`."""

from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from launcher.address import split, storage_at
from launcher.node.checkpoint import load, write
from launcher.node.plain import plain


class DurableCheckpointIO(TorchCheckpointIO):
    """Plain values, written beside their target.

    (Lightning's own goes through TMPDIR, which on a cluster is another filesystem: the final move is a copy
    that a kill tears.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        folder, name = split(path)
        write(storage_at(folder), name, plain(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        loaded: dict[str, Any] = load(str(path))
        return loaded
