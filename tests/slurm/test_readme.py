"""The README's commands for a SLURM cluster, in its order, on a real one."""

import os
import re
import subprocess
from pathlib import Path

from slurm.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SECTION = next(
    section
    for section in re.split(r"^(?=## )", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    if section.startswith("## On a SLURM cluster")
)
SAYS = {
    "launcher probe --on my-cluster": "lowcancel",
    "launcher plan jobs/quickstart.yaml --on my-cluster": "as Slurm estimates now",
    "launcher run jobs/quickstart.yaml --on my-cluster --name far": "submitted as job",
    "launcher status far": "far",
    "launcher cancel far --checkpoint": "far is cancelled",
    "launcher resume far": "submitted as job",
    "launcher logs far --follow": "far finished",
    "launcher reconcile": "nothing is amiss",
}


def test_commands(cluster: Cluster) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    assert block.splitlines() == list(SAYS)
    own = {"LAUNCHER_RUNS": str(cluster.work / "readme"), "XDG_CONFIG_HOME": str(cluster.work / "readme-config")}
    env = {**os.environ, **cluster.env, **own, "PATH": f"{REPOSITORY / '.venv/bin'}:{os.environ['PATH']}"}

    for command, said in SAYS.items():
        done = subprocess.run(
            ["bash", "-ec", command], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert said in done.stdout, f"{command}:\n{done.stdout[-2000:]}"
