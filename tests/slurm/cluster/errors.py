"""What goes wrong with a cluster. The failure of one of its machines is its own: callers need not tell them apart."""

from machines.errors import MachineError as ClusterError

__all__ = ["ClusterError"]
