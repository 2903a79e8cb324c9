"""What a change does is said, and a change that does nothing is not."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.exactness import Layout, consequences, guarantee, of_moving

OLD: dict[str, Any] = {
    "name": "x",
    "model": {"class_path": "a.B", "init_args": {"lr": 0.1, "sizes": [1, 2]}},
    "trainer": {"max_epochs": 3, "logger": False},
    "resources": {"tasks_per_node": 2, "time": "1h"},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**OLD, section: {**OLD.get(section, {}), **values}}


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        changed("resources", time="2h"),
        changed("resources", mem="16G"),
        changed("checkpoint", every_n_steps=5),
        changed("retry", error=1),
        changed("trainer", logger=True),
        changed("slurm", partition="gpu"),
    ],
)
def test_what_changes_nothing_about_the_result_is_not_mentioned(new: dict[str, Any]) -> None:
    assert consequences(OLD, new) == []


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (changed("trainer", max_epochs=20), "trainer.max_epochs: 3 -> 20: as if it had been so from the beginning"),
        (
            changed("resources", tasks_per_node=1),
            "resources.tasks_per_node: 2 -> 1: the same samples in each step; sums",
        ),
        (
            {**changed("resources", tasks_per_node=1), "exact": "world-size"},
            "exact: its default -> world-size: from here",
        ),
        (changed("resources", cpus_per_task=4), "resources.cpus_per_task: its default -> 4: sums over other threads"),
        (changed("trainer", precision="bf16-mixed"), "trainer.precision: its default -> bf16-mixed: from here on"),
        (changed("model", init_args={"lr": 0.2, "sizes": [1, 2]}), "model.init_args.lr: 0.1 -> 0.2: from here on"),
        (changed("model", init_args={"lr": 0.1, "sizes": [1, 3]}), "model.init_args.sizes.1: 2 -> 3: from here on"),
        (
            changed("trainer", strategy="xla"),
            "trainer.strategy: its default -> xla: the same samples in each step; sums",
        ),
        (changed("trainer", strategy="ddp"), "trainer.strategy: its default -> ddp: from here on"),
        ({**OLD, "seed_everything": 1}, "seed_everything: its default -> 1: from here on"),
    ],
)
def test_what_may_change_the_result_is_said(new: dict[str, Any], said: str) -> None:
    sentence, *_ = consequences(OLD, new)

    assert sentence.startswith(said)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (("cpu", 3, False, "resume"), "the same bits, while the number of ranks"),
        (("xla", 2, False, "resume"), "the same bits, while the number of ranks"),
        (("tpu", 2, False, "resume"), "whether a TPU gives the same bits, nobody has tried"),
        (("gpu", 1, False, "resume"), "trainer.deterministic: true"),
        (("gpu", 1, True, "resume"), "the same bits, on GPUs of the same kind"),
        (("gpu", 8, True, "resume"), "NCCL_ALGO"),
        (("cpu", 4, False, "world-size"), "to the bit, on any power of two; metrics up to rounding"),
        (("gpu", 4, False, "world-size"), "trainer.deterministic: true"),
        (("gpu", 4, True, "world-size"), "on any power of two of GPUs of the same kind"),
    ],
)
def test_the_guarantee_depends_on_where_it_runs(where: tuple[str, int, bool, str], said: str) -> None:
    accelerator, ranks, deterministic, exact = where

    assert said in guarantee(accelerator, ranks, deterministic=deterministic, exact=exact)


def test_with_the_exact_mode_another_number_of_ranks_changes_no_bits() -> None:
    old = {**OLD, "exact": "world-size"}

    (sentence,) = consequences(old, {**old, "resources": {"tasks_per_node": 1, "time": "1h"}})

    assert sentence.endswith("2 -> 1: the same samples in each step, and the same bits in weights and optimizer states")


HERE = Layout(accelerator="cpu", ranks=2, threads=1)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (HERE, "the same bits, on processors of the same kind"),
        (
            replace(HERE, ranks=4),
            "ranks: 2 -> 4: of the 4 batches of a step each has 1, not 2; the same samples in each step; sums",
        ),
        (replace(HERE, threads=None), "threads of a rank: 1 -> all that there are: sums over other threads"),
        (
            replace(HERE, accelerator="xla", threads=None),
            "accelerator: cpu -> xla: the same samples in each step; sums",
        ),
    ],
)
def test_what_another_target_computes_on_is_said_once(there: Layout, said: str) -> None:
    (sentence,) = of_moving(HERE, there, 4, exact="samples")

    assert said in sentence


def test_ranks_and_threads_do_not_matter_to_a_run_that_is_exact_on_any_number_of_ranks() -> None:
    (sentence,) = of_moving(HERE, replace(HERE, ranks=4, threads=2), 4, exact="world-size")

    assert "the same bits in weights and optimizer states" in sentence


def test_what_a_run_is_asked_to_run_on_is_left_to_what_it_runs_on() -> None:
    moved = changed("resources", tasks_per_node=1, cpus_per_task=2)
    moved["trainer"] = {**moved["trainer"], "strategy": "xla", "precision": "bf16-mixed"}

    assert [one.partition(":")[0] for one in consequences(OLD, moved, moving=True)] == ["trainer.precision"]
