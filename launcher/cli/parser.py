"""The grammar of the command line. Imports nothing of the launcher, so that `--help` answers at once."""

import argparse

_EPILOG = """\
exit codes:
    0  finished, or accepted when detached
    1  failed or cancelled; `launcher why` tells of what
   64  the spec or the call is wrong; nothing was started
   75  checkpointed and resumable, also after Ctrl-C
  130  stopped at once, without saving

A RUN is an id, a name or the unique beginning of an id; without one, the latest.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launcher",
        description="Launch, follow and resume distributed training runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--runs-root", metavar="DIR", help="where runs live (default: $LAUNCHER_RUNS, else ./runs)")
    json = argparse.ArgumentParser(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON for programs")
    change = argparse.ArgumentParser(add_help=False)
    change.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key of the spec"
    )
    unchecked = argparse.ArgumentParser(add_help=False)
    unchecked.add_argument("--no-check", action="store_true", help="do not instantiate model and data beforehand")
    spec = argparse.ArgumentParser(add_help=False, parents=[change])
    spec.add_argument("spec", metavar="SPEC", help="job spec, a YAML file")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("run", metavar="RUN", nargs="?", help="id, name or unique beginning; default: the latest")
    detach = argparse.ArgumentParser(add_help=False)
    detach.add_argument("-d", "--detach", action="store_true", help="return at once; the run goes on in the background")

    def verb(name: str, summary: str, *parents: argparse.ArgumentParser, aliases: tuple[str, ...] = ()) -> _Verb:
        return verbs.add_parser(
            name, parents=list(parents), aliases=list(aliases), help=summary, description=summary, allow_abbrev=False
        )

    one = verb("run", "run a job spec to its end", spec, root, json, detach, unchecked, aliases=("submit",))
    one.add_argument("--name", help="the run's id (default: the spec's name with date and time)")
    one.add_argument(
        "--from",
        dest="source",
        metavar="RUN[@STEP]",
        help="begin with another run's checkpoint (default: the newest)",
    )
    one.set_defaults(handler="run:run")
    again = verb(
        "resume",
        "carry a run on: stopped, failed or cancelled; with --set, a finished one too",
        *(run, change, root, json, detach, unchecked),
    )
    again.add_argument("--code", action="store_true", help="import from the code as it is now, not as it was at `run`")
    again.set_defaults(handler="resume:resume")
    verb("plan", "print exactly what `run` would execute", spec, root, json).set_defaults(handler="plan:plan")
    verb("check", "instantiate model, data and trainer in a separate process", spec, json).set_defaults(
        handler="check:check"
    )
    verb("list", "all runs", root, json, aliases=("ls",)).set_defaults(handler="views:list_runs")
    verb("status", "one run: state, progress, attempts", run, root, json).set_defaults(handler="views:status")
    logs = verb("logs", "what the ranks printed", run, root, aliases=("log",))
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends; Ctrl-C leaves it alone")
    logs.add_argument("--rank", type=int, default=0, help="default: 0")
    logs.add_argument("--attempt", type=int, help="default: the newest")
    logs.set_defaults(handler="logs:logs")
    why = verb("why", "the cause of the last failure and what to do next", run, root, json)
    why.add_argument("--attempt", type=int, help="default: the last that failed")
    why.set_defaults(handler="why:why")
    verb("events", "the ledger: all that happened", run, root, json).set_defaults(handler="views:events")
    verb("cancel", "end a run for good, without saving", run, root, json).set_defaults(handler="run:cancel")
    verb("checkpoints", "checkpoints that count, oldest first, each verified", run, root, json).set_defaults(
        handler="views:checkpoints"
    )
    board = verb("tensorboard", "show a run's curves in TensorBoard", run, root)
    board.add_argument("--port", type=int, default=6006, help="default: 6006")
    board.set_defaults(handler="tensorboard:tensorboard")
    verb("schema", "print the JSON Schema of a job spec, for editors").set_defaults(handler="check:schema")
    shell = verb("completion", 'print completion for a shell, e.g. eval "$(launcher completion bash)"')
    shell.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    shell.set_defaults(handler="completion:completion")
    return parser


_Verb = argparse.ArgumentParser
