"""probe: learn about the cluster that this machine submits to, and say what has changed since the last time."""

import argparse

from launcher.backends.slurm.probe import changes, learn, reaches_controller, shown
from launcher.cli.common import print_json
from launcher.cli.terminal import Terminal
from launcher.facts import Facts, Partition
from launcher.spec_slurm import Slurm
from launcher.target import load_target, read_facts, target_names, write_facts


def probe(args: argparse.Namespace) -> int:
    facts = learn()
    name = args.on or facts.cluster
    before = read_facts(name)
    if args.try_node:
        facts = facts.model_copy(update={"compute_nodes_can_requeue": reaches_controller(_defaults(name))})
    elif before:
        facts = facts.model_copy(update={"compute_nodes_can_requeue": before.compute_nodes_can_requeue})
    written = write_facts(name, facts)
    changed = list(changes(before, facts)) if before else []
    if args.json:
        print_json(
            {
                "target": name,
                "facts": facts.model_dump(mode="json"),
                "first": before is None,
                "changes": changed,
                "written": [str(file) for file in written],
            }
        )
        return 0
    terminal = Terminal()
    _show(terminal, facts)
    if before:
        terminal.line(f"since {before.probed}: {'' if changed else 'no changes'}".rstrip())
        for line in changed:
            terminal.line(f"  {terminal.colour(line, 'yellow')}")
    for file in written:
        terminal.line(f"written: {file}")
    terminal.line(f"to use it: launcher run SPEC --on {name}")
    return 0


def _defaults(name: str) -> Slurm | None:
    return load_target(name).slurm if name in target_names() else None


def _show(terminal: Terminal, facts: Facts) -> None:
    terminal.line(f"{terminal.colour(facts.cluster, 'bold')}  Slurm {facts.version}")
    for label, text in (
        ("accounts", shown(facts.accounts) if facts.accounts else "accounting does not tell"),
        ("qos", shown(facts.qos) if facts.qos else "accounting does not tell"),
        ("requeue", "by default" if facts.job_requeue else "only of jobs that ask for it"),
        ("preemption", f"sends {'the signal of --signal' if facts.user_signal else 'SIGTERM alone'}"),
        ("sacct", "answers" if facts.accounting else "does not answer"),
        ("scontrol on nodes", _TRIED[facts.compute_nodes_can_requeue]),
    ):
        terminal.line(f"  {label.ljust(17)}  {text}")
    terminal.line()
    head = ("PARTITION", "TIME", "DEFAULT", "PREEMPTION", "NODES")
    terminal.table(head, [_row(name, partition) for name, partition in facts.partitions.items()])
    terminal.line()


_TRIED = {None: "not tried (--try)", True: "works", False: "does not work"}


def _row(name: str, partition: Partition) -> tuple[str, ...]:
    grace = f", {partition.grace_time_s} s" if partition.grace_time_s else ""
    return (
        f"{name}{'*' if partition.default else ''}",
        partition.max_time or "unlimited",
        partition.default_time or "none",
        f"{partition.preempt_mode}{grace}",
        shown(partition.nodes),
    )
