"""The section `tpu` of a job spec: what to ask Cloud TPU for, in the words of gcloud, and what its hosts need."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from launcher.spec_fields import Duration, OneOrMany, Section, text

OWN = "launcher-"
"""Labels and metadata that begin so are the launcher's."""
_C = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"


def _not_ours(key: str) -> str:
    if key.startswith(OWN):
        raise ValueError(f"'{key}': what begins with '{OWN}' is set by the launcher")
    return key


Type = Annotated[str, text("[a-z][a-z0-9-]*", "an accelerator type such as 'v5litepod-16'")]
Zone = Annotated[str, text("[a-z][a-z0-9-]*", "a zone such as 'us-central2-b'")]
Zones = Annotated[list[Zone], OneOrMany]
Project = Annotated[str, text("[a-z0-9][a-z0-9.:-]*", "the id of a project such as 'my-project-123'")]
Word = Annotated[str, text(r"[A-Za-z0-9/~][A-Za-z0-9./@_-]*", "a name without spaces")]
Line = Annotated[str, text(f"{_C}+", "one line without control characters")]
LabelName = Annotated[
    str,
    text("[a-z][a-z0-9_-]{0,62}", "1 to 63 small letters, digits, '_' and '-', a letter first"),
    AfterValidator(_not_ours),
]
LabelValue = Annotated[str, text("[a-z0-9_-]{0,63}", "at most 63 small letters, digits, '_' and '-'")]
MetadataName = Annotated[str, text("[A-Za-z0-9_-]{1,128}", "letters, digits, '_' and '-'"), AfterValidator(_not_ours)]


class Tpu(Section):
    """For Cloud TPU VMs, in the words of gcloud."""

    accelerator_type: Type | None = None
    """Such as v5litepod-16: it says how many machines there are, in the place of resources.nodes."""
    zone: Zones = Field(default_factory=list)
    """Zones to ask in, in this order; a single one needs no list."""
    project: Project | None = None
    runtime_version: Word | None = None
    """By default, what Google names for PyTorch on this type."""
    spot: bool = True
    reserved: bool = False
    network: Word | None = None
    subnetwork: Word | None = None
    internal_ips: bool = False
    """Hosts have no external addresses: they are reached from within the network."""
    ssh: Literal["openssh", "gcloud", "iap"] = "openssh"
    """How hosts are reached: at port 22; by the gcloud CLI, which OS Login takes; by gcloud through Identity-Aware
    Proxy."""
    service_account: Word | None = None
    """That hosts act as: it needs the role roles/storage.objectUser on the bucket of the runs."""
    valid_until_duration: Duration | None = None
    """How long to wait in a zone before the next is asked; by default without end where there is one zone, else 15m."""
    labels: dict[LabelName, LabelValue] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    tags: list[Word] = Field(default_factory=list)
    metadata: dict[MetadataName, str] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    setup: list[Line] = Field(default_factory=list)
    """Shell lines to run on each host before anything else, as a user who may use sudo."""
    python: Word = "python3"
    """On the hosts, 3.11 or newer: it runs the ranks, or makes the environment that they run in."""
    packages: list[Line] = Field(default_factory=list)
    """Arguments of `pip install`, for an environment of the hosts' own; without any, ranks run in `python` as it is."""

    @model_validator(mode="after")
    def _one_provisioning_model(self) -> Self:
        if self.spot and self.reserved:
            raise ValueError("reserved capacity is not spot capacity: with reserved: true, write spot: false")
        return self
