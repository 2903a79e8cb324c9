"""Every command of the README does what a reader expects of it; in the README's order, in this checkout."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import readme

README = "".join(readme.SECTIONS)
_ELSEWHERE = [readme.section(title) for title in ("On a SLURM cluster", "On Cloud TPU VMs", "From place to place")]
"""These commands need more: tests/slurm/test_readme.py, tests/tpu/test_readme.py and tests/across run them."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As a reader has it who has sourced the environment's `activate`; runs go into a folder of the test."""
    runs = tmp_path_factory.mktemp("runs")
    path = f"{readme.REPOSITORY / '.venv/bin'}:{os.environ['PATH']}"
    return {**os.environ, "LAUNCHER_RUNS": str(runs), "PATH": path}


def bash(command: str, environment: dict[str, str]) -> str:
    return readme.typed(
        command.replace(" runs/", f" {environment['LAUNCHER_RUNS']}/"), environment
    )  # a reader's are there


def accuracy_of(output: str) -> float:
    found = re.search(r"test_acc (\S+)", output)
    assert found, output[-2000:]
    return float(found[1])


def quickstart(environment: dict[str, str]) -> None:
    assert accuracy_of(bash("scripts/quickstart", environment)) > 0.95


def the_tests(environment: dict[str, str]) -> None:
    """They run just now: to start them here would never end. CI starts them by the same command."""
    assert (readme.REPOSITORY / ".ci/run").read_text().splitlines()[-1] == "exec scripts/test"


def mnist(environment: dict[str, str]) -> None:
    folder = Path(environment.get("LAUNCHER_DATA", readme.REPOSITORY / "data")) / "MNIST/raw"
    if not folder.exists() and "CI" not in environment:
        pytest.skip(f"no MNIST in {folder}; set LAUNCHER_DATA to the folder above MNIST/raw")
    assert accuracy_of(bash("launcher run jobs/mnist.yaml", environment)) >= 0.975


def tensorboard(environment: dict[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["launcher", "tensorboard", "tour", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=readme.REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert "train_loss" in fetched(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", "train_loss")
        finally:
            server.send_signal(signal.SIGINT)


def fetched(url: str, awaited: str) -> str:
    """The page, once it holds what is awaited: TensorBoard reads its files after it has begun to answer."""
    text = ""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            text = "no answer"
        if awaited in text:
            break
        time.sleep(0.1)
    return text


SPECIAL: dict[str, Callable[[dict[str, str]], None]] = {
    "scripts/quickstart": quickstart,
    "scripts/test": the_tests,
    "launcher run jobs/mnist.yaml": mnist,
    "launcher tensorboard tour": tensorboard,
}
SAYS = {
    "launcher check jobs/mnist.yaml": "model, data and trainer can be made",
    "launcher plan jobs/mnist.yaml": "-m launcher.node.worker",
    "launcher run jobs/quickstart.yaml --name tour --detach": "launcher logs -f tour",
    "launcher cancel tour": "cancelled",
    "launcher resume tour": "tour finished",
    "launcher list": "tour",
    "launcher logs tour --follow": "tour finished",
    "launcher status tour": "tour",
    "launcher checkpoints tour": "complete",
    "launcher checkpoints verify tour": "verified",
    "launcher checkpoints export tour -o runs/tour.pt": "tensors of tour",
    "launcher checkpoints diff tour runs/tour.pt": "the same to the bit",
    "launcher checkpoints prune tour --keep-last 2 --dry-run": "would free",
    "launcher events tour": "ResumeRequested",
    "launcher why tour": "cancelled by the user",
    "launcher --help": "exit codes:",
    "launcher schema": '"class_path"',
    "launcher completion bash": "complete",
    "source .venv/bin/activate": "",
    "launcher run jobs/quickstart.yaml --name swept --set "
    "'sweep={metric: test_acc, mode: max, grid: {trainer.max_epochs: [1, 2]}}'": "swept finished: 2 of 2 finished",
    "launcher status swept": "best        swept.000",
    "launcher logs swept.1": "starting from the beginning",
    "launcher resume swept --failed": "swept finished",
    "launcher resume tour --set trainer.max_epochs=42": "change: trainer.max_epochs: 40 -> 42",
    "launcher run jobs/quickstart.yaml --name branch --from tour --set trainer.max_epochs=43": "begins with step 840",
}


@pytest.mark.parametrize("command", readme.commands("".join(one for one in readme.SECTIONS if one not in _ELSEWHERE)))
def test_command(command: str, environment: dict[str, str]) -> None:
    if command in SPECIAL:
        SPECIAL[command](environment)
    else:
        assert SAYS[command] in bash(command, environment)


@pytest.mark.parametrize("spec", re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
def test_spec(spec: str, environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(spec)

    assert "can be made" in bash(f"launcher check '{file}'", environment)


def test_the_exit_codes_are_those_of_the_help(environment: dict[str, str]) -> None:
    table = re.findall(r"^\| (\d+) \| (.*) \|$", README, re.MULTILINE)
    in_help = re.findall(r"^ +(\d+)  (.*)$", bash("launcher --help", environment), re.MULTILINE)

    assert table == in_help


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((\w[^):]*)\)", README):
        assert (readme.REPOSITORY / target).exists(), target
