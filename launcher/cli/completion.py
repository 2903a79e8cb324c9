"""completion: a script for the shell, generated from the grammar."""

import argparse

import shtab

from launcher.cli.parser import build_parser


def completion(args: argparse.Namespace) -> int:
    print(shtab.complete(build_parser(), shell=args.shell))
    return 0
