"""The loggers of a spec, each in one place and under one identity for all attempts."""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from launcher.address import storage_at
from launcher.errors import UsageError
from launcher.node.instantiate import instantiate
from launcher.run import Run

TENSORBOARD = "tensorboard"
CSV = "csv"
IDENTITIES = "loggers.json"
"""In the run directory: the ids that tracking servers gave to this run."""


def identity(run: Run) -> str:
    """A name for the run among all runs of all runs-roots, the same in each attempt; fit for W&B and for a folder."""
    digest = hashlib.sha256(f"{run.id} {run.record.created!r}".encode()).hexdigest()
    return f"{run.id}-{digest[:8]}"


def build_loggers(described: Any, run_dir: str, folder: Path | None = None) -> list[Logger] | bool:
    """Make the loggers of a spec: TensorBoard unless it says otherwise, each in one place for all attempts.

    Args:
        described: trainer.logger of the resolved spec.
        run_dir: of the run; need not hold one, when a spec is only checked.
        folder: where files go unless init_args say otherwise; None: the run directory.

    Raises:
        CannotInstantiate: a logger of the spec cannot be made.
    """
    if described is False:
        return False
    if described in (True, None):
        described = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}
    run, many, seen = _run_in(run_dir), as_list(described), Counter[str]()
    loggers: list[Logger] = []
    for index, one in enumerate(many):
        key = "trainer.logger" if len(many) == 1 else f"trainer.logger.{index}"
        kinds = _kinds(one["class_path"])
        seen.update(kinds)
        more = _defaults(one.get("init_args", {}), kinds, seen, index, str(folder or run_dir), run)
        logger = instantiate(one, key, **more)
        if isinstance(logger, TensorBoardLogger | CSVLogger) and logger._version is None:
            logger._version = identity(run) if run else ""  # Lightning would count up, and start a new curve
        loggers.append(logger)
    return loggers


def as_list(value: Any) -> list[Any]:
    """None is no object, anything but a list is one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def remember_identities(loggers: Sequence[Logger], run: Run) -> None:
    """Write down the ids that servers have given, for the attempts to come. Of rank 0, with the spec's own order."""
    known = run.read_json(IDENTITIES) or {}
    new = {
        str(index): logger.run_id  # type: ignore[attr-defined]  # MLflow's own
        for index, logger in enumerate(loggers)
        if str(index) not in known and "MLFlowLogger" in _names(type(logger))
    }
    if new:
        run.write_json(IDENTITIES, {**known, **new})


def _run_in(run_dir: str) -> Run | None:
    try:
        return Run(storage_at(run_dir))
    except UsageError:
        return None


def _kinds(class_path: str) -> set[str]:
    """Names of the class and its bases; empty where there is none, which instantiate() explains."""
    module, _, name = class_path.rpartition(".")
    try:
        return _names(getattr(importlib.import_module(module), name))
    except Exception:
        return set()


def _names(cls: Any) -> set[str]:
    return {base.__name__ for base in getattr(cls, "__mro__", ())}


def _defaults(
    given: Mapping[str, Any], kinds: set[str], seen: Counter[str], index: int, folder: str, run: Run | None
) -> dict[str, Any]:
    """Arguments of a logger that hold where init_args say nothing."""
    for kind, name in (("TensorBoardLogger", TENSORBOARD), ("CSVLogger", CSV)):
        if kind in kinds and "save_dir" in given:
            return {}
        if kind in kinds:
            first = seen[kind] == 1
            return {"save_dir": f"{folder}/{name}", "name": "" if first else str(seen[kind]), "version": ""}
    if "WandbLogger" in kinds:
        known = {"version", "experiment"} & given.keys() or "WANDB_RUN_ID" in os.environ
        return {"save_dir": folder, **({} if known or not run else {"id": identity(run)})}
    if "MLFlowLogger" in kinds:
        ids = run.read_json(IDENTITIES) or {} if run else {}
        return {"save_dir": f"{folder}/mlruns", **({"run_id": ids[str(index)]} if str(index) in ids else {})}
    return {"save_dir": folder}
