"""The resolved spec to Lightning objects: model, data, and a Trainer in which the launcher has its places."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint

from launcher.node.checkpoint_io import DurableCheckpointIO
from launcher.node.environment import Place
from launcher.node.instantiate import CannotInstantiate, instantiate
from launcher.node.loggers import as_list, build_loggers
from launcher.node.precision import precision_arguments
from launcher.node.records import Records
from launcher.spec import JobSpec


class LauncherEnvironment(ClusterEnvironment):
    """Says to Lightning what the backend said to this rank; nothing is detected, nothing spawned."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._place.main_address

    @property
    def main_port(self) -> int:
        return self._place.main_port

    @staticmethod
    def detect() -> bool:
        return False  # passed explicitly, never found by itself

    def world_size(self) -> int:
        return self._place.world_size

    def set_world_size(self, size: int) -> None:
        if size != self._place.world_size:
            raise ValueError(f"the launcher started {self._place.world_size} ranks, the Trainer wants {size}")

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        if rank != self._place.rank:
            raise ValueError(f"this is rank {self._place.rank}, the Trainer takes it for {rank}")

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        return self._place.node_rank


def build_model_and_data(spec: JobSpec, *, resumes: bool = False) -> tuple[LightningModule, LightningDataModule | None]:
    """Seeds everything, then makes both.

    Args:
        resumes: a checkpoint will give the model its weights.

    Raises:
        CannotInstantiate: the spec does not fit the code it names.
    """
    seed_everything(spec.seed_everything, verbose=False)
    model = instantiate(spec.model.model_dump(exclude={"weights"}), "model")
    if not isinstance(model, LightningModule):
        raise CannotInstantiate(f"model.class_path: {spec.model.class_path} is no LightningModule")
    if spec.model.weights and not resumes:
        _load_weights(model, spec.model.weights)
    if spec.data is None:
        return model, None
    data = instantiate(spec.data.model_dump(), "data")
    if not isinstance(data, LightningDataModule):
        raise CannotInstantiate(f"data.class_path: {spec.data.class_path} is no LightningDataModule")
    return model, data


def _load_weights(model: LightningModule, path: str) -> None:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(loaded.get("state_dict", loaded))
    except FileNotFoundError:
        raise CannotInstantiate(f"model.weights: there is no file {Path(path).absolute()}") from None
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise CannotInstantiate(f"model.weights: {path} does not fit {type(model).__name__}: {error}") from error


def build_trainer(
    spec: JobSpec, place: Place, own: Sequence[Callback] = (), read: Mapping[str, Records] | None = None
) -> Trainer:
    """Make the Trainer of this rank.

    Args:
        own: the launcher's callbacks, which come before those of the spec.
        read: checkpoints that have been read already, by their addresses.

    Raises:
        CannotInstantiate: a callback, logger, strategy, profiler or plugin of the spec cannot be made.
        UnsupportedPrecision: the accelerator cannot compute in trainer.precision.
    """
    given: dict[str, Any] = spec.trainer.model_dump(exclude_unset=True)
    objects = {
        name: instantiate(given.pop(name, None), f"trainer.{name}")
        for name in ("callbacks", "strategy", "profiler", "plugins")
    }
    precision = precision_arguments(given.pop("precision", "32-true"), place.accelerator)
    callbacks = [*own, *as_list(objects["callbacks"])]
    plugins = [
        LauncherEnvironment(place),
        DurableCheckpointIO(read),
        *precision.pop("plugins", []),
        *as_list(objects["plugins"]),
    ]
    device = {"accelerator": place.accelerator, "strategy": objects["strategy"] or "auto"}
    if place.accelerator == "xla":
        device = _xla_arguments(place)
    logger = build_loggers(given.pop("logger", True), place.run_dir, place.files)
    try:
        return Trainer(
            **{"enable_progress_bar": False, **given, **device},
            **precision,
            devices=place.local_world_size,
            num_nodes=place.nodes,
            default_root_dir=place.files,
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),
            logger=logger,
            profiler=objects["profiler"],
            plugins=plugins,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise CannotInstantiate(f"trainer: {error}") from error


def _xla_arguments(place: Place) -> dict[str, Any]:
    try:
        from launcher.node import xla
    except ImportError as error:
        raise CannotInstantiate(
            f"trainer.strategy: xla needs torch-xla, and the PyTorch that it is made for: {error}; install "
            "'launcher[tpu]' into an environment of its own"
        ) from error
    return xla.trainer_arguments(place)
