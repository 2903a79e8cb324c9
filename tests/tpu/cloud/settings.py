"""What can be chosen about a cloud, written down when it comes up."""

from dataclasses import dataclass, fields
from typing import Literal

from machines.errors import MachineError
from machines.settings import Chosen

Backend = Literal["namespaces", "none"]


@dataclass(frozen=True)
class Settings(Chosen):
    """Times are the fake's own: how long the real one takes is in nobody's hands."""

    hosts: Backend = "namespaces"
    """What is behind a node: machines with an sshd, which takes root, or nothing, which takes neither."""
    project: str = "fake-project"
    create_seconds: float = 2.0
    """From the creation of a node to the boot of its hosts."""
    queue_seconds: float = 1.0
    """For so long does a queued resource wait at least, even where there is stock."""
    delete_seconds: float = 1.0
    operation_seconds: float = 0.3
    """Of what takes little: to accept a queued resource, to change metadata."""
    grace_seconds: float = 30.0
    """From the notice of preemption, and from the power button, to the end of the power."""
    preempted_at_notice: bool = True
    """A node is PREEMPTED as soon as it is given notice, while its hosts go on; else when its power is gone."""
    quota_chips: int = 0
    """That the project may have in a zone; 0: as many as it likes."""
    reserved_chips: int = 0
    """That are reserved for it in each zone."""
    rate_per_minute: int = 0
    """Calls of the API; 0: as many as one likes."""
    token_seconds: float = 3600.0
    shared: tuple[str, ...] = ()
    """Folders of this machine that hosts see, and cannot write to. They see its /usr and /etc, and nothing else."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise MachineError(f"{field.name} is {value}; give 0 or more")
        for folder in self.shared:
            if not folder.startswith("/"):
                raise MachineError(f"shared holds {folder}; give folders from / on")
