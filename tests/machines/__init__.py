"""Machines to test on: namespaces of this machine, held by a pid 1, on a bridge of their own. Standard library only.

What a Slurm cluster (tests/slurm/cluster) and a cloud (tests/tpu/cloud) have in common:

    lab         names and paths of a set of machines
    network     its bridge and cables
    machine     one of them: on, off, a command inside
    shell, processes     the edges: programs, /proc
"""
