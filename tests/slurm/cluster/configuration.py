"""The configuration files of a cluster: values in, text out. What is not obvious has its reason beside it."""

from pathlib import Path

from slurm.cluster.layout import CONTROLLER, Addresses, Layout
from slurm.cluster.settings import Settings

CLUSTER_NAME = "test"
CONTROLLER_PORT = 6817
NODE_PORT = 6818
DBD_PORT = 6819
DATABASE_PORT = 3306
DATABASE = "slurm_acct_db"
DATABASE_USER = "slurm"

Version = tuple[int, int]
_USER_SIGNAL_RENAMED = (24, 11)
_CGROUPS_OPTIONAL = (24, 11)


def slurm_conf(layout: Layout, settings: Settings, addresses: Addresses, version: Version) -> str:
    cgroup = settings.proctrack == "cgroup"
    accounting = _accounting(layout, addresses) if settings.accounting else ""
    # Slurm takes an empty value for an error, and a key that it does not know: what is not set is left out.
    renamed = version >= _USER_SIGNAL_RENAMED
    key = "PreemptParameters=send_user_signal" if renamed else "SlurmctldParameters=preempt_send_user_signal"
    user_signal = f"{key}\n" if settings.send_user_signal else ""
    gres = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    gres_types = "GresTypes=gpu\n" if settings.gpus else ""
    nodes = "".join(f"NodeName={name} NodeAddr={addresses.node(name)}\n" for name in settings.node_names)
    return f"""\
ClusterName={CLUSTER_NAME}
SlurmctldHost={CONTROLLER}({addresses.controller})
SlurmctldPort={CONTROLLER_PORT}
SlurmdPort={NODE_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits, plus a second, before it may start again.
AuthInfo=socket={layout.munge_socket},cred_expire={settings.cred_expire_seconds}
StateSaveLocation={layout.folder}/controller
SlurmdSpoolDir={layout.folder}/spool/%n
SlurmctldPidFile={layout.run}/slurmctld.pid
SlurmdPidFile={layout.run}/slurmd.%n.pid
SlurmctldLogFile={layout.log}/slurmctld.log
SlurmdLogFile={layout.log}/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MpiDefault=none
ProctrackType=proctrack/{settings.proctrack}
TaskPlugin={"task/cgroup" if cgroup else "task/none"}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
# Nodes may advertise more CPUs and memory than the machine has.
SlurmdParameters=config_overrides

# Faults show soon. A node that is silent for SlurmdTimeout is down; Slurm looks every 30 s, whatever stands here.
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=10
TCPTimeout=2
KillWait={settings.kill_wait_seconds}
# Outlasts an outage of slurmctld, else nodes drain with "Kill task failed".
UnkillableStepTimeout=180
JobRequeue={int(settings.requeue)}

# Scheduling is quick: a job that can start does so within half a second.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_min_age_reserve=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={settings.memory_mb // settings.cpus}

PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}{accounting}
{gres_types}NodeName=DEFAULT CPUs={settings.cpus} CoresPerSocket={settings.cpus} RealMemory={settings.memory_mb}{gres}
{nodes}
PartitionName=DEFAULT Nodes=ALL DefaultTime=10 MaxTime=INFINITE
PartitionName=main Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime={settings.grace_seconds}
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_seconds}
PartitionName=lowcancel PriorityTier=1 PreemptMode=CANCEL GraceTime={settings.grace_seconds}
PartitionName=lownograce PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=lowcancelnograce PriorityTier=1 PreemptMode=CANCEL GraceTime=0
PartitionName=high PriorityTier=100 PreemptMode=OFF
"""


def _accounting(layout: Layout, addresses: Addresses) -> str:
    return f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={addresses.controller}
AccountingStoragePort={DBD_PORT}
# This link does not read AuthInfo.
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu
"""


def slurmdbd_conf(layout: Layout) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={CONTROLLER}
DbdPort={DBD_PORT}
SlurmUser=root
DebugLevel=verbose
LogFile={layout.log}/slurmdbd.log
PidFile={layout.run}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser={DATABASE_USER}
StorageLoc={DATABASE}
"""


def gres_conf(layout: Layout, settings: Settings) -> str:
    """GPUs need a File: a node that only counts them is taken for one that has lost them."""
    return "".join(f"Name=gpu File={layout.gpu(number)}\n" for number in range(settings.gpus))


def cgroup_conf(cgroup_version: int | None, version: Version) -> str:
    """Cores are not constrained, since nodes advertise more than there are; nor devices, as all GPUs are one device."""
    if cgroup_version is None:
        # Older ones cannot go without: version 1 touches nothing where nothing is asked of it.
        return f"CgroupPlugin={'disabled' if version >= _CGROUPS_OPTIONAL else 'cgroup/v1'}\n"
    # There is no systemd in a node to ask for a scope.
    own_scopes = "IgnoreSystemd=yes\n" if cgroup_version == 2 else "CgroupMountpoint=/sys/fs/cgroup\n"
    limits = "ConstrainRAMSpace=yes\nConstrainCores=no\nConstrainDevices=no\n"
    return f"CgroupPlugin=cgroup/v{cgroup_version}\n{own_scopes}{limits}"


def hosts(settings: Settings, addresses: Addresses) -> str:
    lines = ["127.0.0.1 localhost", f"{addresses.login} {addresses.login_name}"]
    return "\n".join(lines + [f"{addresses.of(name)} {name}" for name in (CONTROLLER, *settings.node_names)]) + "\n"


def resolv_conf() -> str:
    """Nobody answers: a look-up fails at once, where one of an address would otherwise cost torch's store 10 s."""
    return "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def files(
    layout: Layout, settings: Settings, addresses: Addresses, version: Version, cgroup_version: int | None
) -> dict[Path, str]:
    """All configuration files of a cluster and their text. `version` is Slurm's."""
    texts = {
        "settings.json": settings.to_json(),
        "slurm.conf": slurm_conf(layout, settings, addresses, version),
        "slurmdbd.conf": slurmdbd_conf(layout),
        "gres.conf": gres_conf(layout, settings),
        "cgroup.conf": cgroup_conf(cgroup_version, version),
        "hosts": hosts(settings, addresses),
        "resolv.conf": resolv_conf(),
    }
    return {layout.etc / name: text for name, text in texts.items()}
