"""A fake Cloud TPU to test on: Google's REST API v2, and hosts with an sshd. See `scripts/tpu-cloud --help`.

What it says and what it refuses comes from Google's own description of the API (api.json) and from public reports of
its errors; how long things take, and in which order states follow each other at a preemption, is made up. It proves a
client against the protocol, not against Google. Standard library only.

    settings        what can be chosen
    layout          every name, address and path, from a cloud's name and folder
    schema, status, filters     the API's shape: calls and fields, errors, lists
    catalogue, market, gate     what there is: types and zones; stock and quota; credentials, permissions, faults
    timers, operations, node, nodes, queue     what changes: states of nodes and of queued resources
    api, world      calls and their answers; what a test does to all that
    hosts           what is behind a node: nothing, or
    namespaces, boot, disk, accounts     a machine with an sshd and users
    metadata, metadata_server     what the machine can read of itself
    server          the process that is the cloud
    client, cloud   calls; up, down, orders
    command_line    scripts/tpu-cloud
"""

from machines.errors import MachineError as CloudError

from tpu.cloud.client import Client, Refused
from tpu.cloud.cloud import Cloud
from tpu.cloud.settings import Settings

__all__ = ["Client", "Cloud", "CloudError", "Refused", "Settings"]
