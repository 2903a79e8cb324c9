"""A Slurm cluster, a fake Cloud TPU and an object store at the same time, each as small as can be."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import labs
import object_store
import pytest
from slurm.cluster import Cluster
from slurm.cluster.packages import obstacle
from slurm.conftest import OTHER
from slurm.conftest import STATE as OF_CLUSTERS
from tpu.cloud import Cloud
from tpu.cloud.packages import NEEDED
from tpu.conftest import SETTINGS
from tpu.conftest import STATE as OF_CLOUDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for mark in ("slurm", "tpu", "gcs", "xla"):
                item.add_marker(mark)


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    if reason := obstacle() or NEEDED.obstacle():
        labs.impossible(f"NOT TESTED: moves between targets; {reason}")


@pytest.fixture(scope="module")
def cluster(possible: None) -> Iterator[Cluster]:
    cluster = Cluster(f"c{os.getpid():x}", OF_CLUSTERS)
    try:
        cluster.up(replace(OTHER, shared=tuple(one for one in OTHER.shared if Path(one).exists())))
        yield cluster
    finally:
        cluster.down(wipe=True)


@pytest.fixture(scope="module")
def cloud(possible: None) -> Iterator[Cloud]:
    one = Cloud(f"c{os.getpid():x}", OF_CLOUDS)
    try:
        one.up(replace(SETTINGS, shared=tuple(one for one in SETTINGS.shared if Path(one).exists())))
        yield one
    finally:
        one.down(wipe=True)


@pytest.fixture(scope="module")
def bucket(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a folder of runs that all hosts reach, and this machine."""
    with object_store.emulator(tmp_path_factory.mktemp("emulator"), cloud.address):
        from launcher.gcs_client import connection

        connection().mkdir("across", acl=None, default_acl=None)
        yield "gs://across/runs"
