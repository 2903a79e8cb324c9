"""What git says of a folder: the work tree that it belongs to, its files, its commit."""

import os
from pathlib import Path
from typing import NamedTuple

from launcher import shell
from launcher.errors import UsageError

_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


class Listing(NamedTuple):
    tracked: list[str]
    untracked: list[str]
    nested: list[str]
    """Files of repositories within this one."""

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.tracked, *self.untracked, *self.nested]))


def git(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines; paths in them as git quotes them, so that they are ASCII. 127 if there is no git."""
    env = {key: value for key, value in os.environ.items() if key not in _GIT_PLACES}
    env |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        code, output = shell.run(["git", "-C", str(folder), "-c", "core.quotePath=true", *arguments], env=env, given="")
    except FileNotFoundError:
        return 127, []
    return code, output.splitlines()


def work_tree(folder: Path) -> Path | None:
    """The root of the git work tree that the folder belongs to; None if there is none, or if that ignores it.

    Raises:
        UsageError: there is one, but git refuses to read it.
    """
    code, lines = git(folder, "rev-parse", "--show-toplevel")
    if code and any("dubious ownership" in line for line in lines):
        raise UsageError(f"{folder}: the code is to be copied into the run directory, but {' '.join(lines).strip()}")
    if code or not lines or git(folder, "check-ignore", "--quiet", "--", str(folder))[0] == 0:
        return None
    return Path(lines[-1])


def listed(root: Path) -> Listing:
    """What git knows of a work tree. Raises UsageError if git fails."""
    tracked = _paths(root, "ls-files", "--cached")
    untracked = _paths(root, "ls-files", "--others", "--exclude-standard")
    nested = []
    for name in (*tracked, *untracked):  # a submodule, or a repository that nobody has added
        folder = root / name
        if folder.is_dir() and not folder.is_symlink() and (folder / ".git").exists():
            nested += [f"{name.rstrip('/')}/{inner}" for inner in listed(folder).all]
    return Listing(tracked, untracked, nested)


def commit_and_changes(root: Path, listing: Listing) -> tuple[str | None, list[str]]:
    """HEAD and the tracked files that differ from it; before the first commit all do."""
    code, lines = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if code or not lines:
        return None, listing.tracked
    return lines[-1], _paths(root, "diff", "--name-only", "--no-renames", "--relative", "HEAD", "--", ".")


def _paths(root: Path, *arguments: str) -> list[str]:
    code, lines = git(root, *arguments)
    if code:
        raise UsageError(f"{root}: git {arguments[0]} failed: {' '.join(lines).strip()}")
    return [_unquoted(line) for line in lines]


def _unquoted(line: str) -> str:
    """A path as git prints it: with anything unusual in it as a string of C."""
    if not line.startswith('"'):
        return line
    return os.fsdecode(line[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1"))
