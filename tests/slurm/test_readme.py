"""The README's commands for a SLURM cluster, in its order, on a real one."""

import os

import readme

from slurm.cluster import Cluster

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
    own = {"LAUNCHER_RUNS": str(cluster.work / "readme"), "XDG_CONFIG_HOME": str(cluster.work / "readme-config")}
    path = f"{readme.REPOSITORY / '.venv/bin'}:{os.environ['PATH']}"

    readme.each_says(SAYS, "On a SLURM cluster", {**os.environ, **cluster.env, **own, "PATH": path})
