"""What is saved when, what is kept, and what becomes of a save that fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Training, last_checkpoint, log_of
from test_exact import curves, spec

from launcher.checkpoints import in_order, read_manifest
from launcher.kinds import Kind
from launcher.layout import progress_path
from launcher.policy import Cause
from launcher.run import Run, failures
from launcher.status import status


def saving(body: dict[str, Any], **rules: Any) -> dict[str, Any]:
    return {**body, "checkpoint": rules}


def kept(run: Run) -> list[int]:
    return [saved.step for saved in in_order(run.ledger.refresh())]


def validations(run: Run) -> list[float]:
    """val_loss after each epoch."""
    return [float(row["val_loss"]) for row in curves(run) if "val_loss" in row]


def blocked(**init_args: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": "toys.Blocked", "init_args": init_args}]}


class TestBest:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_the_best_is_saved_right_after_its_validation_and_kept(self, launch: Training, ranks: int) -> None:
        body = spec(ranks=ranks, max_epochs=5, num_sanity_val_steps=2)
        run = launch.run(saving(body, every=None, keep_last=1, monitor="val_loss", keep_best=1))

        losses = validations(run)
        best = losses.index(min(losses))
        assert kept(run) == sorted({12 * (best + 1), 60})
        manifest = read_manifest(run.storage, in_order(run.ledger.refresh())[0].path)
        assert manifest.monitored is not None
        assert (manifest.monitored["name"], manifest.monitored["mode"]) == ("val_loss", "min")
        assert manifest.monitored["value"] == pytest.approx(min(losses))

    def test_its_weights_are_those_that_were_validated(self, launch: Training) -> None:
        """The worst by the loss is the first, here; it is compared with a run of one epoch."""
        body = saving(spec(max_epochs=3), every=None, keep_last=1, monitor="val_loss", mode="max")
        run = launch.run(body)
        assert validations(run)[0] == max(validations(run)), "the toy learns"

        first = launch.run(saving(spec(max_epochs=1), every=None), name="one-epoch")

        saved = in_order(run.ledger.refresh())[0]
        weights = torch.load(f"{run.storage.root}/{saved.path}", weights_only=True)["state_dict"]
        expected = last_checkpoint(first)["state_dict"]
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    def test_a_metric_that_is_not_logged_is_named_with_those_that_are(self, launch: Training) -> None:
        run = launch.create(saving(spec(), monitor="val_los"))

        ended = launch.drive(run)

        assert ended.state == "failed"
        assert "checkpoint.monitor: the validation has not logged 'val_los'; logged are:" in ended.reason
        assert "val_loss" in ended.reason
        assert failures(run, 1)[0]["kind"] == Kind.SPEC


class TestWhen:
    def test_auto_saves_little_of_a_short_training_and_its_end(self, launch: Training) -> None:
        run = launch.run(saving(spec()))

        assert kept(run) == [36]

    def test_by_the_clock(self, launch: Training) -> None:
        run = launch.run(saving(spec(ranks=2), every="0.001s", keep_last=100))

        assert len(kept(run)) > 3

    def test_status_tells_the_interval_and_how_long_a_stop_takes(self, launch: Training) -> None:
        run = launch.run(saving(spec(), every_n_steps=10, every="9m"))

        told = status(run)["saving"]
        assert told["interval_s"] == 540.0
        assert 0.0 < told["drain_s"] < 60.0
        assert told["problem"] is None


class TestFailing:
    def test_training_goes_on_when_a_periodic_save_fails_and_the_next_one_works(self, launch: Training) -> None:
        body = spec(**blocked(begin=5, end=20, saved=3))
        run = launch.run(saving(body, every_n_steps=3, keep_last=100))

        assert len(run.ledger.refresh().attempts) == 1
        saved = kept(run)
        assert set(saved) & {6, 9, 12, 15} == set(), "18 may still be written when storage is back"
        assert set(saved) >= {3, 24, 27, 30, 33, 36}
        assert "the checkpoint could not be written" in log_of(run)
        assert "training goes on" in log_of(run)
        assert status(run)["saving"]["problem"] is None, "it is over"

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_final_save_that_fails_stops_the_attempt_and_the_run_resumes(self, launch: Training, ranks: int) -> None:
        body = spec(ranks=ranks, **blocked(begin=5, end=100, saved=3, stop_at=8))
        run = launch.create({**saving(body, every_n_steps=3), "retry": {"infra": 0}})

        ended = launch.drive(run)

        (attempt,) = run.ledger.refresh().attempts
        assert attempt.cause == Cause.INFRA, log_of(run)
        assert "NotSaved: the last checkpoint could not be written: [Errno" in ended.reason
        assert {record["rank"]: record["kind"] for record in failures(run, 1)}[0] == Kind.STORAGE
        progress = json.loads(run.storage.read(progress_path(1)))
        assert "left" not in progress, "nobody may believe that it was saved"
        folder = Path(run.storage.root, "checkpoints")
        folder.unlink()
        folder.with_name("aside").rename(folder)
        assert kept(run)[-1] == 3
