"""Has training take a while without taking the machine."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback


class Pause(Callback):
    """After each step.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)
