"""What hosts of a cloud need of Debian."""

from pathlib import Path

from machines.packages import Packages

NEEDED = Packages(
    "a cloud with hosts",
    Path(__file__).with_name("packages.txt"),
    ("ip", "nsenter", "pivot_root", "unshare", "ssh", "ssh-keygen", "sshd", "sudo"),
)
