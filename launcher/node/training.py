"""One attempt on one rank: build, fit from where the ledger says, test, and write down that it is finished."""

import time

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from launcher.checkpoints import read_manifest
from launcher.elastic import check_size, global_batch
from launcher.events import FORMAT
from launcher.layout import finished_path, spec_path
from launcher.node.elastic import VirtualRanks
from launcher.node.environment import Place
from launcher.node.precision import computed_type
from launcher.node.provenance import check_provenance
from launcher.node.randomness import Randomness
from launcher.node.records import Records
from launcher.node.room import check_room
from launcher.node.session import Session
from launcher.node.shares import Share
from launcher.node.start import await_start, read_start
from launcher.node.stop import StopFlag
from launcher.node.sums import TreeSums
from launcher.node.trainer import build_model_and_data, build_trainer
from launcher.run import Run
from launcher.spec import JobSpec


def train(run: Run, place: Place, flag: StopFlag, records: Records) -> None:
    """Carry the run from its newest checkpoint to its end.

    Args:
        records: what rank 0 has read of that; the other ranks have nothing yet.

    Raises:
        Stopped: all ranks agreed to stop; the checkpoint is written.
        Fenced: a newer attempt has begun.
        UsageError: the run cannot go on with this number of ranks.
        CannotInstantiate, UnsupportedPrecision: the spec is at fault.
        NoRoom: the next checkpoint would not fit.
        ForeignModule, Drift: the code or the packages are not those that they should be.
    """
    spec = JobSpec.model_validate(run.read_json(spec_path(place.attempt)))
    attempt = await_start(run, place.attempt)
    check_size(spec, run.record.ranks, place.world_size, place.accelerator)
    if place.rank == 0:
        check_room(run, spec.checkpoint.keep_last)
    virtual = VirtualRanks(Share(global_batch(spec, run.record.ranks, place.world_size), place.world_size, place.rank))
    session = Session(run, place, spec, flag, attempt, virtual)
    sums = TreeSums(virtual) if spec.exact == "world-size" else None
    own = [session, Randomness(spec.seed_everything, place.rank, virtual), virtual, *([sums] if sums else [])]
    try:
        model, data = build_model_and_data(spec, resumes=attempt.resumes_from is not None)
        path, read = None, {}
        if attempt.resumes_from:
            path = f"{run.storage.root}/{attempt.resumes_from}"
            read[path] = records or read_start(run, attempt.resumes_from)
        trainer = build_trainer(_accumulating(spec, virtual.share.accumulate), place, own, read)
        check_provenance(run, place, spec.code.drift)
        curves = read_manifest(run.storage, attempt.resumes_from).curves if attempt.resumes_from else None
        virtual.attach(trainer, model)
        if sums:
            sums.attach(trainer, model)
        session.attach(trainer, computed_type(trainer), curves)
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        session.save(trainer, complete=True)
        session.drain(trainer)  # whatever happens in the test, nothing is trained again
        session.reports.metrics(trainer)  # before the test clears them
        if _can_test(model, data):
            trainer.test(model, datamodule=data, verbose=False)
        if place.rank == 0:
            session.store_curves()
            _write_finished(run, place, trainer, session.reports.metrics(trainer))
    finally:
        session.close()


def _accumulating(spec: JobSpec, batches: int) -> JobSpec:
    """The spec with as many batches of a rank in a step as this number of ranks takes."""
    if batches == spec.trainer.accumulate_grad_batches:
        return spec
    return spec.model_copy(
        update={"trainer": spec.trainer.model_copy(update={"accumulate_grad_batches": batches})},
    )


def _can_test(model: LightningModule, data: LightningDataModule | None) -> bool:
    source = data if data is not None and is_overridden("test_dataloader", data) else model
    return is_overridden("test_step", model) and is_overridden("test_dataloader", source)


def _write_finished(run: Run, place: Place, trainer: Trainer, metrics: dict[str, float | None]) -> None:
    run.write_json(
        finished_path(place.attempt),
        {
            "format": FORMAT,
            "attempt": place.attempt,
            "target": run.now.target,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "precision": str(trainer.precision),
            "metrics": metrics,
            "time": time.time(),
        },
    )
