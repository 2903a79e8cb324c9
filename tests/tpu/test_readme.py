"""The README's commands for Cloud TPU, in its order, on the fake one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tpu.cloud import Cloud
from tpu.slices import ZONE

REPOSITORY = Path(__file__).parents[2]
SECTION = next(
    section
    for section in re.split(r"^(?=## )", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    if section.startswith("## On Cloud TPU VMs")
)
SAYS = {
    "launcher plan jobs/quickstart.yaml --on my-tpu": '"acceleratorType": "v4-8"',
    "launcher run jobs/quickstart.yaml --on my-tpu --name spot --detach": "runs in the background",
    "launcher status spot": "spot",
    "launcher logs spot --follow": "spot finished",
    "launcher watch --once": "all runs that need a driver have one",
    "launcher gc --on my-tpu": "nothing of a launcher's in project fake-project",
}


def test_commands(cloud: Cloud, runs: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    assert block.splitlines() == list(SAYS)
    folder = tmp_path / "launcher/targets"
    folder.mkdir(parents=True)
    tpu = {"project": "fake-project", "zone": ZONE, "accelerator_type": "v4-8", "python": sys.executable}
    (folder / "my-tpu.yaml").write_text(json.dumps({"kind": "tpu", "tpu": tpu}))
    program = tmp_path / "launcher/launcher"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher.cli.main "$@"\n')
    program.chmod(0o755)
    own = {name: str(tmp_path) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "LAUNCHER_SCRATCH")}
    env = {**os.environ, **cloud.env, **own, "LAUNCHER_RUNS": f"{runs}/readme", "PYTHONPATH": str(REPOSITORY)}
    env["PATH"] = f"{program.parent}:{env['PATH']}"

    for command, said in SAYS.items():
        done = subprocess.run(
            ["bash", "-ec", command], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert said in done.stdout, f"{command}:\n{done.stdout[-2000:]}"


def test_the_target_of_the_readme_is_one(tmp_path: Path) -> None:
    from launcher.target import load_target

    example = next(
        block for block in re.findall(r"^```\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE) if "kind: tpu" in block
    )
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".launcher/targets").mkdir(parents=True)
    (tmp_path / ".launcher/targets/my-tpu.yaml").write_text(example)

    assert load_target("my-tpu", tmp_path).kind == "tpu"
