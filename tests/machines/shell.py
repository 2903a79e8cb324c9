"""Programs: their output, or an error that names them."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from machines.errors import MachineError


def output(
    argv: Sequence[str | Path],
    seconds: float = 30,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    cwd: Path | None = None,
) -> str:
    """What a program prints. `env` is added to this process's.

    Raises MachineError when it fails, is not there, or takes longer than that: with nodes down some wait for ever.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise MachineError(f"{words[0]} is not installed; `up` installs what is missing") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"no answer after {seconds:.0f} s: {shlex.join(words)}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise MachineError(f"exit code {done.returncode} of {shlex.join(words)}: {said}")
    return done.stdout
