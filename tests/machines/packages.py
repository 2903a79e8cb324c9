"""What is needed of Debian."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from machines.errors import MachineError
from machines.shell import output


@dataclass(frozen=True)
class Packages:
    """Those that hold what is needed, and the programs by which one sees whether it is there."""

    needed_by: str
    """As a sentence begins: "a cluster"."""
    listed: Path
    """A file with the packages' names, one a line: .ci/run reads it too."""
    programs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return self.listed.read_text().split()

    def missing(self) -> list[str]:
        """Programs that are not installed."""
        return [program for program in self.programs if shutil.which(program) is None]

    def obstacle(self) -> str | None:
        """Why this machine cannot have it; None when it can, be it after an installation."""
        if os.geteuid() != 0:
            return f"{self.needed_by} takes root: it makes namespaces and network interfaces"
        if (missing := self.missing()) and shutil.which("apt-get") is None:
            names = " ".join(self.names)
            return f"{self.needed_by} takes Debian's packages ({names}); this machine lacks {', '.join(missing)}"
        return None

    def install(self) -> None:
        """What is missing. Raises MachineError where that cannot be."""
        if reason := self.obstacle():
            raise MachineError(reason)
        if self.missing():
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            output(["apt-get", "-qq", "-o", "Acquire::Retries=5", "update"], 300, quiet)
            options = ["-qq", "-y", "--no-install-recommends", "-o", "Acquire::Retries=5"]
            output(["apt-get", "install", *options, *self.names], 900, quiet)
