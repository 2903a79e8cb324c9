"""PJRT_DEVICE=TPU, as far as it can be looked at where there is none: it has never run on a TPU."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from driven import Driven
from test_xla import toy

from launcher.run import failures

REPOSITORY = Path(__file__).parents[2]
JOIN = """
import json, os, sys
from launcher.node import xla, xla_ranks
from launcher.node.environment import Place
place = Place(
    run_dir=sys.argv[1], attempt=1, rank=9, world_size=16, local_rank=1, local_world_size=4, node_rank=2,
    accelerator="xla", main_address="a", main_port=29500,
)
try:
    xla.trainer_arguments(place)
except xla_ranks.NoTpu as error:
    print(json.dumps({"error": str(error), **os.environ}))
"""
AVERAGE = """
import json, sys
import torch, torch.distributed as dist
from launcher.node.xla_ranks import DEVICE, ByXla
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
parameters = [torch.nn.Parameter(torch.ones(2, device=DEVICE)) for _ in range(3)]
for number in (0, 2):
    parameters[number].grad = torch.full((2,), 4.0, device=DEVICE)
ByXla().average(parameters, 2)
print(json.dumps([None if one.grad is None else one.grad.tolist() for one in parameters]))
"""


def told(python: Path, code: str, folder: Path, **env: str) -> Any:
    """What it prints last, as JSON."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
    done = subprocess.run([python, "-c", code, folder], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_rank_takes_its_chip_and_finds_its_peers(xla_python: Path, tmp_path: Path) -> None:
    """The third of four hosts, which says so in variables, as on GKE, and not in metadata."""
    host = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_HOST_BOUNDS": "2,2,1",
        "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
        "TPU_WORKER_ID": "2",
        "TPU_WORKER_HOSTNAMES": "a,b,c,d",
    }

    seen = told(xla_python, JOIN, tmp_path, PJRT_DEVICE="TPU", **host)

    mine = {
        "TPU_VISIBLE_CHIPS": "1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "4,4,1",
        "CLOUD_TPU_TASK_ID": "9",
        "TPU_PROCESS_PORT": "8477",
        "TPU_PROCESS_ADDRESSES": ",".join(f"{host}:{port}" for host in "abcd" for port in range(8476, 8480)),
        "XLA_PERSISTENT_CACHE_PATH": f"{tmp_path}/compiled/rank-00009",
    }
    assert {name: seen[name] for name in mine} == mine
    assert "libtpu not found" in seen["error"]
    assert "'torch-xla[tpu]' installed there" in seen["error"]


def test_gradients_that_xla_sums_are_means_and_what_nobody_uses_has_none(xla_python: Path, tmp_path: Path) -> None:
    """Half a world: the CPU's client does reach this one rank."""
    averaged = told(xla_python, AVERAGE, tmp_path, PJRT_DEVICE="CPU", XLA_ALWAYS_ALLREDUCE="1")

    assert averaged == [[2.0, 2.0], None, [2.0, 2.0]]


def test_ranks_whom_xla_does_not_bring_together_do_not_train(there: Driven) -> None:
    """As on a TPU that is set up wrong, each would go on with its own gradients, and nobody would notice."""
    body = {**toy(), "model": {"class_path": "toys.ByXla"}, "resources": {"tasks_per_node": 2, "cpus_per_task": 1}}
    run = there.create(body)

    assert there.drive(run).state == "failed"
    kinds = {(one["kind"], one["type"]) for one in failures(run, 1)}
    assert kinds == {("spec", "WrongWorld")}
    assert "2 ranks were started, but by XLA gradients reach 1" in failures(run, 1)[0]["message"]
