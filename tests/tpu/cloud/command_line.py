"""scripts/tpu-cloud: words in, calls of Cloud out."""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args, get_type_hints

from machines import command_line
from machines.errors import MachineError as CloudError
from machines.settings import chosen

from tpu.cloud.client import Json
from tpu.cloud.cloud import Cloud, state_folder
from tpu.cloud.gate import How
from tpu.cloud.layout import FAKE
from tpu.cloud.settings import Settings
from tpu.cloud.status import CODES
from tpu.cloud.world import ORDERS

DESCRIPTION = f"""\
A FAKE Cloud TPU on this machine, to test on: the REST API v2 with nodes, queued resources and long-running operations,
and behind each node real hosts with an sshd, a metadata server and a startup script. Each host has namespaces of its
own (network, processes, files, hostname); it sees /usr and /etc of this machine and nothing else, unless it is shared.
It takes root and Debian's packages, which `up` installs when they are missing; `up --hosts none` takes neither, and has
the API alone. There is no TPU, and nothing here is Google's: timing and the order of states are made up.

    scripts/tpu-cloud up --grace-seconds 5
    eval "$(scripts/tpu-cloud env)"; gcloud compute tpus tpu-vm list --zone us-central2-b
    scripts/tpu-cloud preempt my-node; scripts/tpu-cloud sell-out us-central2-b
    scripts/tpu-cloud down --wipe

Clouds with different names do not meet. State: --state, or TPU_CLOUD_STATE, or {state_folder()}.
"""

_ORDERS = {
    "preempt": "notice and SIGTERM, then no power; --grace 0: no notice; --vanish: the node is gone after that",
    "maintain": "announce maintenance, then reboot all hosts",
    "lose-host": "the power of one host fails, and nobody says so",
    "boot-host": "boot it again; its startup script runs again",
    "cut-host": "it goes on, and reaches nobody",
    "restore-host": "it reaches the others again",
    "sell-out": "a zone, or a type in one (us-central2-b/v4-32), has no stock",
    "restock": "it has; without a word, everything has",
    "quota": "chips that the project may have in a zone; 0: no limit",
    "rate": "calls of the API per minute; 0: no limit",
    "deny": "the caller lacks a permission (tpu.nodes.create)",
    "allow": "it has it; without a word, all",
    "expire-tokens": "all that were given out until now",
    "inject": "an error for the next calls of a method (nodes.create), or a lost answer",
    "force": "the state of a node or a queued resource",
}
_CHOICES: dict[str, tuple[str, ...]] = {"how": get_args(How), "code": CODES}


def parser() -> argparse.ArgumentParser:
    top, verbs = command_line.parser(
        "tpu-cloud", "cloud", DESCRIPTION, state_folder(), Settings, _MEANING, kept="requests"
    )
    verbs.add_parser("status", help="nodes, queued resources, hosts")
    verbs.add_parser("token", help="print a new access token for the API")
    execute = verbs.add_parser("exec", help="run a command on a host, as root: exec my-node 0 ps ax")
    execute.add_argument("node")
    execute.add_argument("worker", type=int)
    execute.add_argument("command", nargs=argparse.REMAINDER)
    for verb, does in _ORDERS.items():
        _add_order(verbs.add_parser(verb, help=does), verb.replace("-", "_"))
    return top


def _add_order(parser: argparse.ArgumentParser, order: str) -> None:
    """What it takes, as words; what it has a default for, as options."""
    hints = get_type_hints(ORDERS[order])
    for name, parameter in list(inspect.signature(ORDERS[order]).parameters.items())[1:]:
        options: dict[str, Any] = {"choices": _CHOICES.get(name)}
        if hints[name] is bool:
            options = {"action": "store_true"}
        elif int in (hints[name], *get_args(hints[name])):
            options["type"] = int
        elif float in (hints[name], *get_args(hints[name])):
            options["type"] = float
        elif name == "details":
            options["type"] = json.loads
        if parameter.default is parameter.empty:
            parser.add_argument(name, **options)
        elif parameter.default == "" and name in ("what", "permission", "health"):
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, **options)
        else:
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **options)


_MEANING = {
    "hosts": "what is behind a node: machines, or nothing",
    "project": "the one that there is",
    "create_seconds": "from the creation of a node to the boot of its hosts",
    "queue_seconds": "for so long does a queued resource wait at least",
    "delete_seconds": "of a node, or a queued resource",
    "operation_seconds": "of what takes little",
    "grace_seconds": "from the notice of preemption, or the power button, to the end of the power",
    "preempted_at_notice": "a node is PREEMPTED at the notice, else at the end of its power",
    "quota_chips": "that the project may have in a zone; 0: no limit",
    "reserved_chips": "that are reserved for it in each zone",
    "rate_per_minute": "calls of the API; 0: no limit",
    "token_seconds": "for so long is a token good",
    "shared": "a folder that hosts see and cannot write to (may be repeated)",
}


def settings_of(arguments: argparse.Namespace) -> Settings | None:
    """None when nothing was chosen."""
    return chosen(arguments, Settings)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        _do(Cloud(arguments.name, arguments.state), arguments)
    except CloudError as error:
        print(f"tpu-cloud: {error}", file=sys.stderr)
        return 1
    return 0


def _do(cloud: Cloud, arguments: argparse.Namespace) -> None:
    match arguments.verb:
        case "up":
            command_line.bring_up("tpu-cloud", arguments.name, partial(cloud.up, settings_of(arguments)))
            print(f"{cloud.url} is {FAKE}")
        case "down":
            cloud.down(arguments.wipe)
        case "status":
            print(_shown(cloud.status()), end="")
        case "env":
            command_line.export(cloud.env)
        case "token":
            print(cloud.new_token())
        case "exec":
            command = cloud.inside(arguments.node, arguments.worker, arguments.command or ["bash"])
            os.execvp(command[0], command)
        case verb:
            given = {name: value for name, value in vars(arguments).items() if name not in ("name", "state", "verb")}
            cloud.order(verb.replace("-", "_"), **given)


def _shown(status: Json) -> str:
    lines = [
        f"{kind:16s} {one['name'].rpartition('/')[2]:24s} {one['name'].split('/')[3]:16s} {_state(one)}"
        for kind, several in (("queued resource", status["queuedResources"]), ("node", status["nodes"]))
        for one in several
    ]
    lines += [
        f"{'host':16s} {one['node']:24s} {one['worker']:<16d} {'up' if one['up'] else 'off'}" for one in status["hosts"]
    ]
    return "".join(f"{line}\n" for line in lines) or "nothing\n"


def _state(one: Json) -> str:
    state = one["state"]
    return str(state["state"] if isinstance(state, dict) else state)
