"""Entry point: find the verb's module, run it, turn errors into one message and an exit code."""

import os
import sys
from importlib import import_module

from launcher.cli.parser import build_parser, expanded
from launcher.errors import FAILED, FINISHED, INTERRUPTED, USAGE, LauncherError


def main(argv: list[str] | None = None) -> int:
    _open_closed_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except LauncherError as error:
        print(f"launcher: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has left, e.g. `| head`
        _leave_output_alone()
        return FINISHED
    except OSError as error:
        _leave_output_alone()
        where = f": {error.filename}" if error.filename else ""
        print(f"launcher: {error.strerror}{where}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("launcher: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(argv: list[str] | None) -> int:
    parser = build_parser()
    try:
        args = parser.parse_args(expanded(sys.argv[1:] if argv is None else argv))
    except SystemExit as exit_:  # argparse says 2; ours is EX_USAGE, as for a wrong spec
        return USAGE if exit_.code else FINISHED
    if args.version:
        from launcher import __version__

        print(__version__)
        return FINISHED
    if args.verb is None:
        parser.print_help()
        return USAGE
    module, _, function = args.handler.partition(":")
    code: int = getattr(import_module(f"launcher.cli.{module}"), function)(args)
    return code


def _open_closed_streams() -> None:
    """The caller may have closed them (`>&-`): what is written there then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _leave_output_alone() -> None:
    """What stdout still holds would fail once more when the interpreter ends."""
    from launcher.cli.terminal import discard

    discard(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
