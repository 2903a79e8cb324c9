"""The disk of a host: what it finds at its first boot, and what the guest agent changes later."""

import os
from pathlib import Path

from machines.shell import output

from tpu.cloud import accounts, metadata
from tpu.cloud.hosts import Vm
from tpu.cloud.status import Json

_OWN = "var/lib/host"
"""What the host knows of itself. `etc` in it lies over this machine's /etc."""
_SSHD = f"""\
Port 22
HostKey /{_OWN}/ssh_host_ed25519_key
AuthorizedKeysFile /{_OWN}/authorized_keys/%u
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PrintMotd yes
Subsystem sftp internal-sftp
"""
_MOTD = "This is a host of a FAKE Cloud TPU, made for tests. There is no TPU here.\n"


def prepare(disk: Path, vm: Vm, seen: Json) -> str:
    """Before a boot. Returns the host's public key, without its type. Raises MachineError."""
    own = disk / _OWN
    (own / "etc").mkdir(parents=True, exist_ok=True)
    (own / "authorized_keys").mkdir(exist_ok=True)
    key = own / "ssh_host_ed25519_key"
    if not key.exists():
        output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", vm.hostname, "-f", key])
    peers = "".join(f"{address} {name}\n" for name, address in vm.names.items())
    servers = f"127.0.0.1 localhost\n{metadata.ADDRESS} {metadata.NAME} metadata\n"
    texts = {"etc/hosts": servers + peers, "etc/hostname": f"{vm.hostname}\n", "etc/motd": _MOTD, "sshd_config": _SSHD}
    texts["etc/resolv.conf"] = ""
    texts["etc/sudoers"] = f"root ALL=(ALL:ALL) ALL\n%{accounts.SUDOERS} ALL=(ALL:ALL) NOPASSWD: ALL\n"
    texts["startup-script"] = seen["instance"]["attributes"].get("startup-script", "")
    for name, text in texts.items():
        (own / name).write_text(text)
    (own / "etc/sudoers").chmod(0o440)
    (disk / "home").mkdir(exist_ok=True)
    follow(disk, seen)
    return key.with_suffix(".pub").read_text().split()[1]


def follow(disk: Path, seen: Json) -> None:
    """What the guest agent makes of metadata, at boot and whenever they have changed: users, who may do all by sudo.
    The shutdown script is the one that is there at the end."""
    own = disk / _OWN
    (own / "shutdown-script").write_text(seen["instance"]["attributes"].get("shutdown-script", ""))
    users = accounts.users(seen["instance"]["attributes"], seen["project"]["attributes"])
    passwd = accounts.passwd(Path("/etc/passwd").read_text(), users)
    # In place: the files lie over those of /etc.
    (own / "etc/passwd").write_text(passwd)
    (own / "etc/group").write_text(accounts.group(Path("/etc/group").read_text(), users))
    (own / "etc/shadow").write_text(accounts.shadow(line.split(":")[0] for line in passwd.splitlines()))
    (own / "etc/shadow").chmod(0o600)
    for user in users:
        home = disk / user.home.lstrip("/")
        if user.id and not home.exists():
            home.mkdir(mode=0o750)
            os.chown(home, user.id, user.id)
        (own / "authorized_keys" / user.name).write_text("".join(f"{key}\n" for key in user.keys))
    for file in (own / "authorized_keys").iterdir():
        if file.name not in {user.name for user in users}:
            file.unlink()
