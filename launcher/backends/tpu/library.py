"""The launcher itself, as it is brought to hosts: they run the same as the one who drives them."""

import base64
import json
import zlib
from functools import cache
from pathlib import Path

import launcher

_ELSEWHERE = ("cli/", "backends/slurm/")
"""Runs on no host."""


@cache
def packed() -> str:
    """Names and texts of this package's modules (JSON, zlib, base64)."""
    root = Path(launcher.__file__).parent
    names = (file.relative_to(root).as_posix() for file in sorted(root.rglob("*.py")))
    files = {f"launcher/{name}": (root / name).read_text() for name in names if not name.startswith(_ELSEWHERE)}
    return base64.b64encode(zlib.compress(json.dumps(files).encode())).decode()
