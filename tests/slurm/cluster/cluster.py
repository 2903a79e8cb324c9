"""Up, down and faults of a cluster."""

import os
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from machines import network, processes
from machines.locks import folder_of_its_own
from machines.machine import end_all
from machines.processes import until

from slurm.cluster import cgroups, configuration, database, packages
from slurm.cluster.client import Client
from slurm.cluster.errors import ClusterError
from slurm.cluster.layout import CONTROLLER, Addresses, Layout
from slurm.cluster.machine import Machine
from slurm.cluster.settings import Settings

_NULL = os.makedev(1, 3)


def state_folder() -> Path:
    """Of all clusters, unless told otherwise."""
    return Path(os.environ.get("SLURM_CLUSTER_STATE", "/var/lib/slurm-cluster"))


class Cluster(Client):
    """A cluster by its name, be it up or not. Whatever fails raises ClusterError.

    The controller and each node are machines of their own; the login node is this machine.
    """

    def __init__(self, name: str, state: Path | None = None) -> None:
        self.layout = Layout(name, ((state or state_folder()) / name).resolve())
        super().__init__(self.layout.slurm_conf, self.layout.work)

    # Up and down

    def up(self, settings: Settings | None = None, lap: Callable[[str], None] = lambda part: None) -> None:
        """Bring up what is missing of it; `lap` hears of each part that is there. Without settings: those that it had
        the last time, else the defaults. Raises ClusterError when it is up with others.
        """
        packages.NEEDED.install()
        lap("packages")
        with folder_of_its_own(self.layout.folder):
            self._prepare(self._settings_for(settings))
            lap("configuration and network")
            controller = self._controller()
            controller.boot()
            self._start_munged(controller)
            lap("controller, munged")
            if self.settings.accounting:
                self._start_accounting(controller)
                lap("MariaDB, slurmdbd")
            self.start_ctld()
            lap("slurmctld")
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.power_on, self.settings.node_names))
            until(self._all_nodes_up, 60, f"nodes to register (see {self.layout.log})")
            lap("nodes")

    def down(self, wipe: bool = False) -> None:
        """Nothing is left of it but its folder; with `wipe`, not that either. It need not be up, nor whole."""
        with folder_of_its_own(self.layout.folder):
            if not wipe:
                self._stop_in_order()
            end_all(self.layout)
            network.remove(self.layout)
            cgroups.remove(self.layout.cgroup)
            if wipe:
                shutil.rmtree(self.layout.folder)

    @property
    def settings(self) -> Settings:
        """Those that it came up with."""
        if not self.layout.settings.exists():
            raise ClusterError(f"there is no cluster in {self.layout.folder}; `scripts/slurm-cluster up` makes one")
        return Settings.from_json(self.layout.settings.read_text())

    def status(self) -> list[tuple[str, str]]:
        """Each machine, and what runs on it."""
        of_controller = ["slurmctld", *(["slurmdbd", "mariadbd"] if self.settings.accounting else [])]
        daemons = {CONTROLLER: of_controller, **{name: ["slurmd"] for name in self.settings.node_names}}
        lines = []
        for name, programs in daemons.items():
            machine = Machine(self.layout, name)
            said = [f"{program} {'up' if machine.daemon(program) else 'down'}" for program in programs]
            lines.append((name, "off" if machine.init is None else ", ".join(said)))
        return lines

    # Faults, and what undoes them

    def power_off(self, node: str) -> None:
        """All that runs on it ends at once, and nobody hears of it."""
        self._node(node).power_off()

    def power_on(self, node: str) -> None:
        machine = self._node(node)
        machine.boot()
        self._start_slurmd(machine)

    def net_cut(self, node: str) -> None:
        """What runs on it goes on and reaches nobody, until `net_restore`."""
        network.set_link(self.layout, self._node(node).name, "down")

    def net_restore(self, node: str) -> None:
        network.set_link(self.layout, self._node(node).name, "up")

    def kill_slurmd(self, node: str) -> None:
        """Jobs on it go on."""
        processes.kill(self._node(node).daemon("slurmd"))

    def start_slurmd(self, node: str) -> None:
        self._start_slurmd(self._node(node))

    def kill_ctld(self) -> None:
        """Jobs go on; nobody starts, ends or answers for them."""
        processes.kill(self._controller().daemon("slurmctld"))

    def start_ctld(self) -> None:
        controller = self._controller()
        if not controller.daemon("slurmctld"):
            controller.start("slurmctld", "-f", str(self.layout.slurm_conf))
        self._until_it_listens(configuration.CONTROLLER_PORT, "slurmctld")

    def kill_dbd(self) -> None:
        processes.kill(self._controller().daemon("slurmdbd"))

    def start_dbd(self) -> None:
        """Raises ClusterError where the cluster has no accounting."""
        if not self.settings.accounting:
            raise ClusterError("the cluster came up without accounting; take it down, then `up --accounting`")
        controller = self._controller()
        if not controller.daemon("slurmdbd"):
            controller.start("slurmdbd")
        self._until_it_listens(configuration.DBD_PORT, "slurmdbd")

    def drain(self, node: str) -> None:
        """No job starts on it any more; those on it go on."""
        self.scontrol("update", f"nodename={self._node(node).name}", "state=drain", "reason=test")

    def fail(self, node: str) -> None:
        """Have Slurm take it for lost: what a silent node comes to after half a minute, at once. It keeps running."""
        self.scontrol("update", f"nodename={self._node(node).name}", "state=down", "reason=test")

    def resume(self, node: str) -> None:
        """After `drain` and `fail`. A node that was failed comes back by itself as soon as Slurm hears of it."""
        try:
            self.scontrol("update", f"nodename={self._node(node).name}", "state=resume")
        except ClusterError:
            if any(word in self.node(node)["State"] for word in ("DOWN", "DRAIN")):
                raise

    def inside(self, machine: str, command: Sequence[str]) -> list[str]:
        """The command that runs this one on a node, or on the controller."""
        return (self._controller() if machine == CONTROLLER else self._node(machine)).inside(command)

    # How it comes up

    def _settings_for(self, wanted: Settings | None) -> Settings:
        if not self.layout.settings.exists():
            return wanted or Settings()
        if wanted is None:
            return self.settings
        if Machine(self.layout, CONTROLLER).init is not None and (differences := self.settings.differences(wanted)):
            raise ClusterError(
                f"cluster {self.layout.name!r} is up with other settings ({', '.join(differences)}); "
                "take it down first, or another --name"
            )
        return wanted

    def _prepare(self, settings: Settings) -> None:
        """Folders, keys, devices, configuration files, network."""
        for folder in self.layout.folders:
            folder.mkdir(exist_ok=True)
        for node in settings.node_names:
            (self.layout.spool / node).mkdir(exist_ok=True)
        if not self.layout.munge_key.exists():
            self.layout.munge_key.touch(mode=0o600)
            self.layout.munge_key.write_bytes(os.urandom(128))
        for number in range(settings.gpus):
            if not self.layout.gpu(number).exists():
                os.mknod(self.layout.gpu(number), 0o666 | stat.S_IFCHR, _NULL)
        addresses = Addresses(network.make_bridge(self.layout), socket.gethostname())
        groups = cgroups.version() if settings.proctrack == "cgroup" else None
        texts = configuration.files(self.layout, settings, addresses, packages.slurm_version(), groups)
        for path, text in texts.items():
            path.touch(mode=0o600)  # slurmdbd refuses a file that others may read
            path.write_text(text)
        for path in (self.layout.slurm_conf, self.layout.etc / "hosts", self.layout.etc / "resolv.conf"):
            path.chmod(0o644)

    def _addresses(self) -> Addresses:
        if (found := network.network_of(self.layout)) is None:
            raise ClusterError(f"cluster {self.layout.name!r} is down; `scripts/slurm-cluster up` brings it up")
        return Addresses(found)

    def _controller(self) -> Machine:
        return Machine(self.layout, CONTROLLER, self._addresses().controller, None, self._shared())

    def _node(self, name: str) -> Machine:
        """Raises ClusterError where there is no such node, or no cluster."""
        if name not in self.settings.node_names:
            raise ClusterError(f"no node {name!r}; there are {', '.join(self.settings.node_names)}")
        version = cgroups.version() if self.settings.proctrack == "cgroup" else None
        return Machine(self.layout, name, self._addresses().node(name), version, self._shared())

    def _shared(self) -> tuple[str, ...]:
        own = str(self.layout.folder)
        return (*self.settings.shared, *([own] if own.startswith("/tmp/") else []))

    def _start_munged(self, controller: Machine) -> None:
        if controller.daemon("munged"):
            return
        files = {"key-file": self.layout.munge_key, "socket": self.layout.munge_socket}
        files |= {"pid-file": self.layout.run / "munged.pid", "seed-file": self.layout.run / "munge.seed"}
        files |= {"log-file": self.layout.log / "munged.log"}
        self.layout.munge_socket.unlink(missing_ok=True)
        controller.start("munged", "--num-threads=4", *(f"--{name}={path}" for name, path in files.items()))

    def _start_accounting(self, controller: Machine) -> None:
        """Creating all tables takes most of the time of `up`: it is done once for all clusters."""
        kept = database.archive()
        new = not self.layout.database.exists() and not database.restore(self.layout.database, kept)
        if new:
            database.initialise(self.layout.database)
        database.start(self.layout, controller)
        self.start_dbd()
        self._register()
        if new:
            processes.terminate(controller.daemon("slurmdbd"))
            database.stop(self.layout, controller)
            database.keep(self.layout.database, kept)
            database.start(self.layout, controller)
            self.start_dbd()

    def _register(self) -> None:
        """slurmdbd takes reports of clusters that it knows."""
        known = self.output("sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster")
        if configuration.CLUSTER_NAME not in known.split():
            self.output("sacctmgr", "--immediate", "add", "cluster", configuration.CLUSTER_NAME)

    def _start_slurmd(self, node: Machine) -> None:
        if not node.daemon("slurmd"):
            node.start("slurmd", "-N", node.name, "-f", str(self.layout.slurm_conf))

    def _all_nodes_up(self) -> bool:
        states = self.output("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
        return not any(state.endswith("*") or state.startswith(("down", "unknown")) for state in states)

    def _until_it_listens(self, port: int, daemon: str) -> None:
        address = (self._addresses().controller, port)

        def listens() -> bool:
            try:
                socket.create_connection(address, timeout=1).close()
            except OSError:
                return False
            return True

        until(listens, 60, f"{daemon} to listen (see {self.layout.log}/{daemon}.log)")

    def _stop_in_order(self) -> None:
        """Daemons that keep something write it down. In a cluster that is not whole some cannot: it just ends."""
        with suppress(ClusterError):
            controller = self._controller()
            for daemon in ("slurmctld", "slurmdbd"):
                processes.terminate(controller.daemon(daemon))
            database.stop(self.layout, controller)
