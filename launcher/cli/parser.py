"""The grammar of the command line. Imports nothing of the launcher, so that `--help` answers at once."""

import argparse

_ACTIONS = ("list", "verify", "export", "prune", "diff")
"""What `checkpoints` can do."""

_EPILOG = """\
exit codes:
    0  finished, or accepted when detached
    1  failed or cancelled; `launcher why` tells of what
   64  the spec or the call is wrong; nothing was started
   75  checkpointed and resumable, also after Ctrl-C
  130  stopped at once, without saving

A RUN is an id, a name or the unique beginning of an id; without one, the latest. SWEEP.3 is a run of a sweep;
status, resume and cancel take the sweep as a whole, too.
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
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--on", metavar="TARGET", default="local", help="local (default), slurm, or a target's name")
    detach = argparse.ArgumentParser(add_help=False)
    detach.add_argument("-d", "--detach", action="store_true", help="return at once; the run goes on in the background")

    def verb(
        name: str,
        summary: str,
        *parents: argparse.ArgumentParser,
        aliases: tuple[str, ...] = (),
        of: "argparse._SubParsersAction[_Verb]" = verbs,
    ) -> _Verb:
        return of.add_parser(
            name, parents=list(parents), aliases=list(aliases), help=summary, description=summary, allow_abbrev=False
        )

    one = verb("run", "run a job spec to its end", spec, place, root, json, detach, unchecked, aliases=("submit",))
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
        "carry a run on: stopped, failed or cancelled; with --set, a finished one too; with --on, elsewhere",
        *(run, change, root, json, detach, unchecked),
    )
    again.add_argument("--on", metavar="TARGET", help="go on there: local, slurm, or a target's name (default: as now)")
    again.add_argument(
        "--to", metavar="DIR", help="bring the run directory into this folder of runs, and go on there (gs://... too)"
    )
    again.add_argument("--code", action="store_true", help="import from the code as it is now, not as it was at `run`")
    again.add_argument("--failed", action="store_true", help="of a sweep, start the runs again that failed, too")
    again.set_defaults(handler="resume:resume")
    verb("plan", "print exactly what `run` would execute", spec, place, root, json).set_defaults(handler="plan:plan")
    verb("check", "instantiate model, data and trainer in a separate process", spec, place, json).set_defaults(
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
    cancel = verb("cancel", "end a run for good, without saving", run, root, json)
    cancel.add_argument("--checkpoint", action="store_true", help="save before")
    cancel.set_defaults(handler="cancel:cancel")
    verb(
        "reconcile",
        "hold the runs against Slurm's queue: adopt jobs that no run names, bring back runs whose job is gone",
        *(run, root, json),
    ).set_defaults(handler="reconcile:reconcile")
    watch = verb("watch", "carry on runs on Cloud TPU whose driver is gone, in the background of this machine", root)
    watch.add_argument("--once", action="store_true", help="look once, for cron; default: for ever")
    watch.add_argument("--every", type=_seconds, default=30.0, metavar="SECONDS", help="pause between looks (30)")
    watch.set_defaults(handler="watch:watch")
    collect = verb("gc", "delete machines on Cloud TPU that no run wants any more", json)
    collect.add_argument("--on", metavar="TARGET", required=True, help="a target of kind tpu: its project is looked at")
    collect.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    collect.set_defaults(handler="gc:gc")
    checkpoints = verb("checkpoints", "a run's checkpoints: list, verify, export, prune, diff")
    checkpoints.epilog = "`launcher checkpoints [RUN]` is short for `launcher checkpoints list [RUN]`."
    actions = checkpoints.add_subparsers(dest="action", metavar="ACTION", required=True)
    verb("list", "those that count, oldest first; none is read", run, root, json, of=actions).set_defaults(
        handler="checkpoints:list_checkpoints"
    )
    whole = verb("verify", "read them in full: are they what was written", root, json, of=actions)
    whole.add_argument("checkpoint", metavar="RUN[@STEP]", nargs="?", help="default: all of the latest run")
    whole.set_defaults(handler="checkpoints:verify_checkpoints")
    export = verb("export", "write the weights alone, for model.weights or torch.load", root, of=actions)
    export.add_argument("checkpoint", metavar="RUN[@STEP]", help="default: the newest that is whole")
    export.add_argument("-o", "--output", metavar="FILE", required=True, help="where to")
    export.add_argument("--force", action="store_true", help="overwrite FILE")
    export.set_defaults(handler="checkpoints:export")
    prune = verb(
        "prune",
        "delete what no rule of the spec keeps, and what interrupted saves have left",
        run,
        root,
        json,
        of=actions,
    )
    prune.add_argument("--keep-last", type=_count, metavar="N", help="keep the newest N (default: as the spec says)")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    prune.set_defaults(handler="checkpoints:prune")
    diff = verb("diff", "do two hold the same weights, to the bit; exit 1 if not", root, json, of=actions)
    for name in ("a", "b"):
        diff.add_argument(name, metavar=name.upper(), help="RUN[@STEP], or a file: a checkpoint, or weights")
    diff.set_defaults(handler="checkpoints:diff")
    board = verb("tensorboard", "show a run's curves in TensorBoard", run, root)
    board.add_argument("--port", type=int, default=6006, help="default: 6006")
    board.set_defaults(handler="tensorboard:tensorboard")
    probe = verb("probe", "learn about the Slurm cluster of this machine: a target for `--on`, limits to check", json)
    probe.add_argument("--on", metavar="NAME", help="what to call the target (default: the cluster's own name)")
    probe.add_argument(
        "--try", action="store_true", dest="try_node", help="see in a short job whether nodes can requeue their jobs"
    )
    probe.set_defaults(handler="probe:probe")
    verb("schema", "print the JSON Schema of a job spec, for editors").set_defaults(handler="check:schema")
    shell = verb("completion", 'print completion for a shell, e.g. eval "$(launcher completion bash)"')
    shell.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    shell.set_defaults(handler="completion:completion")
    return parser


def expanded(argv: list[str]) -> list[str]:
    """With the action that `checkpoints [RUN]` means; a run that is called like an action needs it in full."""
    if argv[:1] == ["checkpoints"] and not {*argv[1:2]} & {*_ACTIONS, "-h", "--help"}:
        return ["checkpoints", "list", *argv[1:]]
    return argv


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds above 0")
    return seconds


_Verb = argparse.ArgumentParser
