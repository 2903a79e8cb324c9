"""The README's commands, as a reader finds and types them."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SECTIONS = re.split(r"^(?=## )", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)


def section(title: str) -> str:
    """Raises StopIteration where there is none."""
    return next(one for one in SECTIONS if one.startswith(f"## {title}\n"))


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def typed(command: str, environment: Mapping[str, str]) -> str:
    """What it prints, in this checkout; it succeeds."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def each_says(says: Mapping[str, str], title: str, environment: Mapping[str, str]) -> None:
    """These are the section's commands, and each prints these words."""
    assert commands(section(title)) == list(says)
    for command, words in says.items():
        output = typed(command, environment)
        assert words in output, f"{command}:\n{output[-2000:]}"
