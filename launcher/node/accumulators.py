"""What a rank has accumulated within an epoch and Lightning's checkpoints leave out: logged values and metric states.

Each rank has its own; a checkpoint holds those of all ranks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

RankState = dict[str, Any]
"""Plain values and tensors on the CPU."""

_META = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch"),
    *("enable_graph", "add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
_LOGGED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def collect(trainer: Trainer) -> RankState:
    """This rank's state, copied. Between two steps or before a validation."""
    model = trainer.lightning_module
    return {
        "results": [_result(model, one) for one in trainer.fit_loop.epoch_loop._results.values() if not one.has_reset],
        "metrics": {name: _metric(one) for name, one in _metrics(model)},
        "seen": dict(trainer.fit_loop.epoch_loop.val_loop._seen_batches_per_dataloader),  # x of validation steps
        "logged": {name: _copied(getattr(trainer._logger_connector, name)) for name in _LOGGED},
    }


def shared_out(trainer: Trainer, ranks: list[RankState], rank: int, world_size: int) -> tuple[RankState, list[str]]:
    """What a rank goes on with, when there may be more or fewer of them than in the checkpoint.

    Args:
        ranks: the states of all ranks that wrote the checkpoint.
        rank, world_size: this rank, of those that go on.

    Returns:
        Its state, and the names of metrics that cannot be divided.
    """
    if len(ranks) == world_size:
        return ranks[rank], []
    mine = ranks[rank::world_size]
    results = [_merged_result(ranks, key, mine) for key in dict.fromkeys(_keys(ranks))]
    metrics, lost = {}, []
    for name, metric in _metrics(trainer.lightning_module):
        if any(name in state["metrics"] and state["metrics"][name]["updates"] for state in ranks):
            try:
                metrics[name] = _merged_metric(metric, [state["metrics"][name] for state in mine])
            except _Indivisible:
                lost.append(name)
    return {**ranks[min(rank, len(ranks) - 1)], "results": results, "metrics": metrics}, lost


def adopt_sync(trainer: Trainer) -> None:
    """Have values that were logged by a single rank be synchronized from now on, if they are logged with sync_dist.

    Whether they are is not known before: Lightning forgets sync_dist where there is nobody to synchronize with, and
    refuses a value that is logged with and without it.
    """
    results = trainer.fit_loop.epoch_loop._results
    log = results.log

    def adopting(fx: str, name: str, *args: Any, sync_dist: bool = False, **kwargs: Any) -> None:
        if (result := results.get(f"{fx}.{name}")) is not None:
            result.meta.sync.should = sync_dist
        log(fx, name, *args, sync_dist=sync_dist, **kwargs)

    results.log = adopting


def allow_fractions(trainer: Trainer) -> None:
    """Before means over ranks that have seen different numbers of samples.

    Lightning takes the mean of these numbers too, as an integer: it would be rounded off.
    """
    for result in trainer.fit_loop.epoch_loop._results.values():
        if result.is_tensor and result.meta.is_mean_reduction:
            result.cumulated_batch_size = result.cumulated_batch_size.to(torch.float32)


def forget(trainer: Trainer) -> None:
    """Whatever has been logged in this epoch."""
    trainer.fit_loop.epoch_loop._results.clear()


def restore(trainer: Trainer, state: RankState) -> None:
    """Put a rank's state back, once the trainer has moved the model and reset its own results."""
    model = trainer.lightning_module
    results = trainer.fit_loop.epoch_loop._results
    for saved in state["results"]:
        results[saved["key"]] = _as_result(trainer, saved)
    for name, metric in _metrics(model):
        if name in state["metrics"]:
            _restore_metric(metric, state["metrics"][name])
    trainer.fit_loop.epoch_loop.val_loop._seen_batches_per_dataloader.update(state["seen"])
    for name in _LOGGED:
        values = getattr(trainer._logger_connector, name)
        for key, value in state["logged"][name].items():
            values[key] = value.to(model.device) if isinstance(value, torch.Tensor) else value
    if state["results"]:
        # Not the first batch of an epoch: Lightning would reset the values at the first `self.log`.
        trainer._logger_connector._first_loop_iter = True


def _result(model: LightningModule, result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    key = f"{meta.fx}.{meta.name}"  # a training loop has no dataloader_idx
    saved: dict[str, Any] = {name: getattr(meta, name) for name in _META}
    saved |= {"key": key, "reduce_fx": meta.reduce_fx.__name__, "is_tensor": result.is_tensor}
    saved |= {"sync": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    saved["updates"] = result._update_count
    if result.is_tensor:
        saved["value"] = _copied(result.value)
        if meta.is_mean_reduction:
            saved["cumulated_batch_size"] = _copied(result.cumulated_batch_size)
    return saved


def _keys(ranks: list[RankState]) -> Iterator[str]:
    return (result["key"] for state in ranks for result in state["results"])


_NEUTRAL = {"mean": 0.0, "sum": 0.0, "max": float("-inf"), "min": float("inf")}
_MERGE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def _merged_result(ranks: list[RankState], key: str, mine: list[RankState]) -> dict[str, Any]:
    """A logged value of `mine`; with nothing in it if they have none: all ranks compute it together."""
    of_key = [result for state in ranks for result in state["results"] if result["key"] == key]
    merged: dict[str, Any] = {**of_key[0]}
    if "value" not in merged:  # a metric, which has its own state
        return merged
    how = merged["reduce_fx"]
    parts = [result for state in mine for result in state["results"] if result["key"] == key]
    for name, neutral in (("value", _NEUTRAL[how]), ("cumulated_batch_size", 0)):
        if name in merged:
            whole = name == "cumulated_batch_size"
            total = torch.full_like(merged[name], neutral, dtype=torch.float32 if whole else None)
            for part in parts:
                total = _MERGE[how](total, part[name])
            merged[name] = total
    return merged


class _Indivisible(Exception):
    """Nobody but the metric knows how two of its states become one."""


def _merged_metric(metric: Metric, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The states of several ranks as one; none at all: as it begins."""
    states = {}
    for name, default in metric._defaults.items():
        values = [_copied(default), *(part["states"][name] for part in parts)]
        reduce = metric._reductions[name]
        if isinstance(default, list) and reduce in (dim_zero_cat, None):
            states[name] = [one for value in values for one in value]
        elif reduce in _REDUCED:
            merged = values[0]
            for value in values[1:]:
                merged = _REDUCED[reduce](merged, value)
            states[name] = merged
        else:
            raise _Indivisible
    return {"updates": sum(part["updates"] for part in parts), "states": states}


_REDUCED: dict[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    dim_zero_sum: torch.add,
    dim_zero_max: torch.maximum,
    dim_zero_min: torch.minimum,
}


def _as_result(trainer: Trainer, saved: dict[str, Any]) -> _ResultMetric:
    meta = _Metadata(**{name: saved[name] for name in _META}, reduce_fx=getattr(torch, saved["reduce_fx"]))
    # As LightningModule.log makes it: at the next call Lightning compares the two.
    meta.sync = _Sync(
        _should=saved["sync"] and _is_distributed(trainer),
        fn=trainer.strategy.reduce,
        _group=None,
        rank_zero_only=saved["rank_zero_only"],
    )
    result = _ResultMetric(meta, saved["is_tensor"])
    if saved["is_tensor"]:
        result.value = saved["value"]
        if meta.is_mean_reduction:
            result.cumulated_batch_size = saved["cumulated_batch_size"]
        result.to(trainer.lightning_module.device)
    elif saved["metric_attribute"]:
        result.value = trainer.lightning_module.get_submodule(saved["metric_attribute"])
    result._update_count = saved["updates"]
    return result


def _is_distributed(trainer: Trainer) -> bool:
    return bool(trainer._accelerator_connector.is_distributed)


def _metrics(model: LightningModule) -> list[tuple[str, Metric]]:
    modules = list(model.named_modules())
    for _, module in modules:
        if isinstance(module, MetricCollection):
            module.values(copy_state=True)  # metrics that share a state have it only while they are looked at
    return [(name, module) for name, module in modules if isinstance(module, Metric)]


def _metric(metric: Metric) -> dict[str, Any]:
    states = {name: _copied(getattr(metric, name)) for name in metric._defaults}
    return {"updates": metric._update_count, "states": states}


def _restore_metric(metric: Metric, saved: dict[str, Any]) -> None:
    for name, value in saved["states"].items():
        moved = [one.to(metric.device) for one in value] if isinstance(value, list) else value.to(metric.device)
        setattr(metric, name, moved)
    metric._update_count = saved["updates"]
    metric._computed = None


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
