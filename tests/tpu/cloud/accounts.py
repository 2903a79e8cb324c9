"""What Google's guest agent makes of metadata: users with keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SUDOERS = "google-sudoers"
"""The group of those who may do all."""
_FIRST_ID = 1000
_NOBODY = 65534
_SUDOERS_ID = 60000


@dataclass(frozen=True)
class User:
    name: str
    id: int
    keys: tuple[str, ...]

    @property
    def home(self) -> str:
        return "/root" if self.name == "root" else f"/home/{self.name}"


def users(attributes: Mapping[str, str], of_project: Mapping[str, str]) -> list[User]:
    """Those whom "ssh-keys" names, as "USER:KEY" a line. There are none where OS Login is on: it has its own."""
    if attributes.get("enable-oslogin", of_project.get("enable-oslogin", "")).upper() == "TRUE":
        return []
    lines = attributes.get("ssh-keys", "").splitlines()
    if attributes.get("block-project-ssh-keys", "").upper() != "TRUE":
        lines += of_project.get("ssh-keys", "").splitlines()
    keys: dict[str, list[str]] = {}
    for line in lines:
        name, found, key = line.strip().partition(":")
        if found and name and key:
            keys.setdefault(name, []).append(key)
    ids = {name: _FIRST_ID + number for number, name in enumerate(name for name in keys if name != "root")}
    return [User(name, ids.get(name, 0), tuple(own)) for name, own in keys.items()]


def passwd(base: str, added: Iterable[User]) -> str:
    """With the services of this machine's own, and without its people."""
    kept = [line for line in base.splitlines() if _is_of_a_service(line)]
    return _lines(kept, [f"{one.name}:x:{one.id}:{one.id}::{one.home}:/bin/bash" for one in added if one.id])


def group(base: str, added: Iterable[User]) -> str:
    kept = [line for line in base.splitlines() if _is_of_a_service(line)]
    people = [one for one in added if one.id]
    sudoers = f"{SUDOERS}:x:{_SUDOERS_ID}:{','.join(one.name for one in people)}"
    return _lines(kept, [sudoers, *(f"{one.name}:x:{one.id}:" for one in people)])


def shadow(names: Iterable[str]) -> str:
    """Nobody has a password, and nobody is locked for that."""
    return _lines([f"{name}:*:19000:0:99999:7:::" for name in names], [])


def _is_of_a_service(line: str) -> bool:
    number = int(line.split(":")[2])
    return number < _FIRST_ID or number == _NOBODY


def _lines(kept: list[str], added: list[str]) -> str:
    return "".join(f"{line}\n" for line in (*kept, *added))
