"""Run directories and spec files for tests; who runs beside whom."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labs
import pytest
from xdist.scheduler import LoadScopeScheduling

from launcher.events import Event
from launcher.record import Record
from launcher.run import Run, create_run

pytest.register_assert_rewrite("storage_contract")

REPOSITORY = Path(__file__).parent.parent
XLA = REPOSITORY / ".venv-xla"
MODEL = {"class_path": "model.mnist.MNISTClassifier"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


LONG = ("tpu/test_launcher.py", "tpu/test_mnist.py", "tpu/test_runs.py")
"""Minutes of waiting for machines and of training on them, for which CI has no room."""
collect_ignore = [] if "LAUNCHER_LONG_TESTS" in os.environ else [*LONG]


def pytest_report_header() -> str:
    left_out = ", ".join(f"tests/{file}" for file in collect_ignore)
    return f"NOT TESTED without LAUNCHER_LONG_TESTS=1: {left_out}" if left_out else "all tests, long ones too"


TURNS = ("slurm", "node", "cli", "tpu")
"""Suites in the order in which they begin: while one waits for its machines, another one trains beside it."""
TOGETHER = ("slurm", "tpu", "gcs", "xla")
"""Suites that share what is up for a session: one process has all of such a suite; of the others it has a file."""


class Suites(LoadScopeScheduling):
    """Deals out suites, where several run at a time, and files of those that have nothing up for a session."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        suite = suite_of(file)
        return suite if suite in TOGETHER else file


def suite_of(file: str) -> str:
    """`tests/SUITE/...`; a file of its own is a suite."""
    return Path(file).parts[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Suites:
    return Suites(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = {suite: turn for turn, suite in enumerate(TURNS)}
    items.sort(key=lambda item: turns.get(suite_of(item.nodeid), len(turns)))


@pytest.fixture(scope="session")
def xla_python() -> Path:
    """Of the environment that has torch_xla."""
    if not (XLA / "requirements.sha256").exists():
        labs.impossible("NOT TESTED: trainer.strategy: xla; scripts/setup-xla makes .venv-xla, which it needs")
    return XLA / "bin/python"


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_run(runs_root: Path) -> Callable[..., Run]:
    """Creates a run directory whose spec has these sections, and appends these events."""

    def make(run_id: str = "run", *events: Event, name: str = "test", created: float = 0.0, **sections: Any) -> Run:
        record = Record(
            id=run_id,
            name=name,
            created=created,
            target="local",
            spec={"name": name, "model": MODEL, **sections},
            spec_file="",
            spec_text="",
            import_path=(str(REPOSITORY),),
            workdir=str(runs_root.parent),
        )
        run = create_run(runs_root, record)
        for event in events:
            run.ledger.append(event, after=run.ledger.refresh().version)
        return run

    return make


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job spec with a name, a model and these sections; JSON is YAML."""

    def write(file: str = "job.yaml", **sections: Any) -> Path:
        path = tmp_path / file
        path.write_text(json.dumps({"name": "test", "model": MODEL, **sections}, indent=1))
        return path

    return write
