"""The README's commands for Cloud TPU, in its order, on the fake one."""

import json
import os
import re
import sys
from pathlib import Path

import readme

from tpu.cloud import Cloud
from tpu.slices import ZONE

SECTION = "On Cloud TPU VMs"
SAYS = {
    "launcher plan jobs/quickstart.yaml --on my-tpu": '"acceleratorType": "v4-8"',
    "launcher run jobs/quickstart.yaml --on my-tpu --name spot --detach": "runs in the background",
    "launcher status spot": "spot",
    "launcher logs spot --follow": "spot finished",
    "launcher watch --once": "all runs that need a driver have one",
    "launcher gc --on my-tpu": "nothing of a launcher's in project fake-project",
}


def test_commands(cloud: Cloud, runs: str, tmp_path: Path) -> None:
    folder = tmp_path / "launcher/targets"
    folder.mkdir(parents=True)
    tpu = {"project": "fake-project", "zone": ZONE, "accelerator_type": "v4-8", "python": sys.executable}
    (folder / "my-tpu.yaml").write_text(json.dumps({"kind": "tpu", "tpu": tpu}))
    program = tmp_path / "launcher/launcher"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher.cli.main "$@"\n')
    program.chmod(0o755)
    own = {name: str(tmp_path) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "LAUNCHER_SCRATCH")}
    env = {**os.environ, **cloud.env, **own, "LAUNCHER_RUNS": f"{runs}/readme", "PYTHONPATH": str(readme.REPOSITORY)}
    env["PATH"] = f"{program.parent}:{env['PATH']}"

    readme.each_says(SAYS, SECTION, env)


def test_the_target_of_the_readme_is_one(tmp_path: Path) -> None:
    from launcher.target import load_target

    example = next(
        block
        for block in re.findall(r"^```\n(.*?)^```", readme.section(SECTION), re.DOTALL | re.MULTILINE)
        if "kind: tpu" in block
    )
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".launcher/targets").mkdir(parents=True)
    (tmp_path / ".launcher/targets/my-tpu.yaml").write_text(example)

    assert load_target("my-tpu", tmp_path).kind == "tpu"
