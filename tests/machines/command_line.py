"""What command lines of labs have in common: a name, settings, up, down, env."""

import argparse
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from machines.settings import Chosen, add_options

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser(
    program: str, lab: str, description: str, state: Path, settings: type[Chosen], meaning: Mapping[str, str], kept: str
) -> tuple[argparse.ArgumentParser, Verbs]:
    """And its verbs, to which others may be added. `kept`: what `down` keeps."""
    top = argparse.ArgumentParser(program, description=description, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--name", default="lab", help=f"of the {lab}, up to 7 letters and digits (default: lab)")
    top.add_argument("--state", type=Path, default=state, help=f"folder above the {lab}'s own")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="bring up what is missing; with what it was up with, where nothing is said")
    add_options(up, settings, meaning)
    down = verbs.add_parser("down", help=f"end all of it, be it whole or not; {kept} are kept")
    down.add_argument("--wipe", action="store_true", help="keep nothing")
    verbs.add_parser("env", help=f'what a shell has to export: eval "$(scripts/{program} env)"')
    return top, verbs


def bring_up(program: str, name: str, up: Callable[[Callable[[str], None]], None]) -> None:
    """`up` is given what says which part is up."""
    started = time.monotonic()
    up(lambda part: print(f"{time.monotonic() - started:6.1f} s  {part}", flush=True))
    named = "" if name == "lab" else f" --name {name}"
    print(f'eval "$(scripts/{program}{named} env)" lets this shell use it')


def export(env: Mapping[str, str]) -> None:
    for key, value in env.items():
        print(f"export {key}={shlex.quote(value)}")
