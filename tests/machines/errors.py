"""What goes wrong with machines, and with what is made of them."""


class MachineError(Exception):
    """Says what is wrong and what to do next."""
