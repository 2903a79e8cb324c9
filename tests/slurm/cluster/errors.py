"""What goes wrong with a cluster."""


class ClusterError(Exception):
    """Says what is wrong and what to do next."""
