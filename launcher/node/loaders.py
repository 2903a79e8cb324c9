"""All loaders of a training: which of them each is, and where it is entered."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from launcher.node import loops
from launcher.node.data import ExactLoader, require_resumable
from launcher.node.elastic import VirtualRanks
from launcher.node.order import Deal, Position
from launcher.node.seeding import mix


def is_fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


class Loaders:
    """Makes the trainer's loaders exact as it asks for them."""

    def __init__(self, seed: int, rank: int, between_steps: Callable[[], None], virtual: VirtualRanks) -> None:
        self._seed, self._rank, self._between_steps, self._virtual = seed, rank, between_steps, virtual
        self._series: dict[str, _Series] = {}
        self._states: dict[str, Any] = {}
        self.training: list[object] = []
        """The user's own loaders, as Lightning has completed them."""

    def attach(self, trainer: Trainer) -> None:
        process = trainer.strategy.process_dataloader

        def process_dataloader(dataloader: object) -> object:
            return process(self._exact(trainer, dataloader))

        trainer.strategy.process_dataloader = process_dataloader  # type: ignore[method-assign]

    def resume(self, states: dict[str, Any]) -> None:
        """Have loaders that are asked for from now on begin with these states, as `states` has returned them."""
        self._states = dict(states)

    def states(self, trainer: Trainer, *, validation_due: bool) -> dict[str, Any]:
        """What goes into a checkpoint beside the loops' counters; taken during a validation, from before it."""
        states: dict[str, Any] = {}
        for stage in ("train", "validate"):
            for number, loader in enumerate(self._series[stage].loaders if stage in self._series else ()):
                if stage == "train":
                    state = loader.stream_state(loops.batches_done(trainer))
                else:
                    state = loader.entered_with if validation_due else loader.stream_state(0)
                states[f"{stage}.{number}"] = state
        return states

    def _exact(self, trainer: Trainer, dataloader: object) -> ExactLoader:
        stage = "train" if trainer.training else "validate" if is_fitting(trainer) else "test"
        series = self._series.setdefault(stage, _Series())
        number = series.next_number(_combined_loader(trainer, stage))

        def position() -> Position:
            training = stage == "train"
            order = mix(self._seed, stage, number, trainer.current_epoch if training else trainer.global_step)
            start = loops.batches_done(trainer) if training else 0
            return Position(order, mix(order, self._rank), trainer.current_epoch, start)

        if stage == "train":
            require_resumable(dataloader, "train_dataloader")
            self.training = [*self.training[:number], dataloader]
            share, limit = self._virtual.share, self._virtual.limit
            deal = Deal(share, limit) if share.is_changed else None
            loader = ExactLoader(dataloader, position, self._between_steps, deal)
            if deal:
                self._virtual.begin(trainer, loader.virtual_batches, number)
        else:
            loader = ExactLoader(dataloader, position)
        loader.resume_stream(self._states.pop(f"{stage}.{number}", None))
        series.loaders.append(loader)
        return loader


class _Series:
    """The loaders of one stage, numbered anew whenever Lightning asks for all of them again."""

    def __init__(self) -> None:
        self.loaders: list[ExactLoader] = []
        self._replaced: object = self

    def next_number(self, replaced: object) -> int:
        """`replaced`: the loaders that this one and its peers take the place of; None at the first time."""
        if replaced is not self._replaced:
            self._replaced, self.loaders = replaced, []
        return len(self.loaders)


def _combined_loader(trainer: Trainer, stage: str) -> object:
    if stage == "train":
        return trainer.fit_loop._combined_loader
    return (trainer.fit_loop.epoch_loop.val_loop if stage == "validate" else trainer.test_loop)._combined_loader
