"""The launcher itself, as it is brought to hosts: they run the same as the one who drives them."""

import base64
import io
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import launcher

_ELSEWHERE = ("cli/", "backends/slurm/")
"""Runs on no host."""


@cache
def packed() -> str:
    """This package's modules as a ZIP archive (base64), from which Python imports; the same bytes for the same texts.

    One file: to make a hundred takes a host as long as to start Python.
    """
    root, archive = Path(launcher.__file__).parent, io.BytesIO()
    with ZipFile(archive, "w") as zipped:
        for file in sorted(root.rglob("*.py")):
            name = file.relative_to(root).as_posix()
            if not name.startswith(_ELSEWHERE):
                zipped.writestr(ZipInfo(f"launcher/{name}"), file.read_bytes(), ZIP_DEFLATED)
    return base64.b64encode(archive.getvalue()).decode()
