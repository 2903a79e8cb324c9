"""`python -m launcher.cli.drive RUN_DIR`: the background process of a detached run."""

import sys

from launcher.address import storage_at
from launcher.cli import place, sweep
from launcher.errors import LauncherError
from launcher.record import SWEEP

if __name__ == "__main__":
    try:
        of = sweep if SWEEP in storage_at(sys.argv[1]).list("") else place
        sys.exit(of.drive(sys.argv[1]))
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
