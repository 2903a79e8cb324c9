"""Entry point: find the verb's module, run it, turn errors into one message and an exit code."""

import sys
from importlib import import_module

from launcher.cli.parser import build_parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as exit_:  # argparse says 2; ours is EX_USAGE, as for a wrong spec
        return 64 if exit_.code else 0
    if args.version:
        from launcher import __version__

        print(__version__)
        return 0
    if args.verb is None:
        parser.print_help()
        return 64
    module, _, function = args.handler.partition(":")
    from launcher.errors import LauncherError

    try:
        code: int = getattr(import_module(f"launcher.cli.{module}"), function)(args)
        sys.stdout.flush()
        return code
    except LauncherError as error:
        print(f"launcher: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has left, e.g. `| head`
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
