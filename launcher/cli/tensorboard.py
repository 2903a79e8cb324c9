"""tensorboard: hand over to TensorBoard itself."""

import argparse
import sys

from launcher import shell
from launcher.cli.common import wanted_run


def tensorboard(args: argparse.Namespace) -> int:
    run = wanted_run(args)
    folder = f"{run.storage.root}/tensorboard"
    # Without --host and --bind_all it listens on the loopback device alone.
    shell.replace_process([sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", str(args.port)])
    return 0
