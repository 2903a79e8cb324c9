"""`python -m launcher.cli.drive RUN_DIR`: the background process of a detached run."""

import sys

from launcher.cli.place import drive
from launcher.errors import LauncherError

if __name__ == "__main__":
    try:
        sys.exit(drive(sys.argv[1]))
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
