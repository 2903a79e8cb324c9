"""Run directories and spec files for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.ledger import Event
from launcher.run import Record, Run, create_run

pytest.register_assert_rewrite("storage_contract")

REPOSITORY = Path(__file__).parent.parent
MODEL = {"class_path": "model.mnist.MNISTClassifier"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`scripts/test`), each suite stays in one: it brings up one cluster, and the README's
    commands follow one another. The suite that waits most goes first, beside all others.
    """
    suites = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    for item, suite in suites.items():
        item.add_marker(pytest.mark.xdist_group(suite))
    items.sort(key=lambda item: suites[item] != "slurm")


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
