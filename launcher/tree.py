"""The user's code as it is now: which files, how large, what git says of them.

A tree is what git knows of it: tracked files, and untracked ones that are not ignored. Without git it is all files
except hidden ones, caches, virtual environments and node_modules.
"""

import fnmatch
import itertools
import os
import re
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from launcher.address import Address, is_local, split
from launcher.errors import UsageError
from launcher.git import commit_and_changes, listed, work_tree
from launcher.record import RECORD, SWEEP

GRACE_S = 1.0
"""A tree that is too large is counted so much longer, so that the message can name the largest in it."""
_PRUNED = {"__pycache__", "node_modules"}


@dataclass(frozen=True)
class Source:
    """A tree of the user's, as it is now."""

    root: Path
    """Symlinks resolved."""
    folder: str
    """Its name in the snapshot."""
    files: dict[str, int]
    """Bytes of each file, by its path relative to the root; sorted."""
    commit: str | None = None
    changed: tuple[str, ...] = ()
    """Tracked files that differ from the commit."""
    new: int = 0
    """Untracked files."""

    @property
    def size(self) -> int:
        return sum(self.files.values())

    @cached_property
    def folders(self) -> set[str]:
        """All folders with files in them, "." for the root."""
        return {str(parent) for name in self.files for parent in Path(name).parents} | {"."}


def survey(folders: Iterable[Path], *, exclude: Sequence[str] = (), max_bytes: int, run_dir: Address) -> list[Source]:
    """Find the files of all trees; reads nothing but their sizes. One that lies in another is listed with that.

    Args:
        folders: roots of the trees, the most important first.
        exclude: patterns of what to leave out, relative to each root.
        max_bytes: of all trees together.
        run_dir: of the run that is being made; neither it nor its neighbours are code.

    Raises:
        UsageError: a folder does not exist, the trees are too large, or git refuses to read one.
    """
    found: list[Source] = []
    seen: dict[Path, Path | None] = {}
    # From the outside in: a tree is left out only where one around it has its files.
    wanted = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    for root in sorted(wanted, key=lambda one: len(one.parts)):
        if not root.is_dir():
            raise UsageError(f"{root}: no such folder, but ranks are to import from it (code.path)")
        seen[root] = work_tree(root)
        around = [one for one in found if root.is_relative_to(one.root) and seen[one.root] == seen[root]]
        if any(str(root.relative_to(one.root)) in one.folders for one in around):
            continue
        found.append(_source(root, seen[root] is not None, exclude, max_bytes, run_dir))
        if sum(one.size for one in found) > max_bytes:
            raise UsageError(_too_large(found, max_bytes, git=seen[found[-1].root] is not None))
    first = max((one for one in found if wanted[0].is_relative_to(one.root)), key=lambda one: len(one.root.parts))
    return _named([first, *(one for one in found if one is not first)])


def place(live: str, sources: Iterable[Source]) -> str | None:
    """Where a live folder is in the snapshot, relative to that; None if it has no files there."""
    real = Path(os.path.realpath(live))
    for one in sorted(sources, key=lambda one: -len(one.root.parts)):
        if real.is_relative_to(one.root):
            inside = str(real.relative_to(one.root))
            if inside in one.folders:
                return os.path.normpath(f"{one.folder}/{inside}")
    return None


def editable_entries(path: Iterable[str], finders: Iterable[object]) -> Iterator[str]:
    """Folders that editable installs import from.

    They are on the path (.pth files), or links on the path lead into them (`flit install --symlink`), or the tables of
    setuptools' finders do.
    """
    for folder in filter(os.path.isdir, path):
        yield folder
        links = (Path(one.path) for one in os.scandir(folder) if one.is_symlink())
        yield from (str(Path(os.path.realpath(link)).parent) for link in links)
    for finder in finders:
        module = sys.modules.get(getattr(finder, "__module__", None) or "")
        if module is None or not module.__name__.startswith("__editable__"):
            continue
        single = ((name, target) for name, target in getattr(module, "MAPPING", {}).items())
        several = ((name, one) for name, targets in getattr(module, "NAMESPACES", {}).items() for one in targets)
        for name, target in itertools.chain(single, several):
            parts = tuple(name.split("."))
            if Path(target).parts[-len(parts) :] == parts:  # else it has another name there, and no entry finds it
                yield str(Path(target).parents[len(parts) - 1])


# Which files


def _source(root: Path, git: bool, exclude: Sequence[str], max_bytes: int, run_dir: Address) -> Source:
    left_out = _left_out(root, exclude, run_dir)
    if not git:
        return Source(root, "", _measured(root, _walk(root, left_out), max_bytes))
    listing = listed(root)
    environments = tuple(f"{Path(name).parent}/" for name in listing.all if Path(name).name == "pyvenv.cfg")
    names = [name for name in listing.all if not name.startswith(environments) and not left_out(name)]
    commit, changed = commit_and_changes(root, listing)
    return Source(
        root,
        "",
        _measured(root, names, max_bytes),
        commit,
        tuple(name for name in changed if not left_out(name)),
        sum(not left_out(name) and not name.startswith(environments) for name in listing.untracked),
    )


def _left_out(root: Path, exclude: Sequence[str], run_dir: Address) -> Callable[[str], bool]:
    """Whether a path relative to the root is no code: excluded, a cache, or of a run."""
    patterns = [fnmatch.translate(one.removeprefix("./").rstrip("/")) for one in exclude]
    excluded = re.compile("|".join(patterns)) if patterns else None
    runs_root, name_of_run = split(run_dir)
    if (
        is_local(run_dir) and (Path(runs_root) / SWEEP).exists()
    ):  # a run of it: what is left out is all around the sweep
        runs_root, name_of_run = split(runs_root)
    runs = Path(os.path.realpath(runs_root)) if is_local(run_dir) else Path("/nowhere")
    inside = f"{runs.relative_to(root)}/" if runs.is_relative_to(root) and runs != root else None
    of_runs: dict[str, bool] = {}

    def left_out(name: str) -> bool:
        if inside and f"{name}/".startswith(inside):
            return True
        first, *rest = parts = name.rstrip("/").split("/")
        if runs == root and first not in of_runs:
            of_runs[first] = first == name_of_run or any((root / first / record).exists() for record in (RECORD, SWEEP))
        if of_runs.get(first) or "__pycache__" in parts:
            return True
        above = itertools.accumulate(rest, "{}/{}".format, initial=first)
        return excluded is not None and any(map(excluded.match, above))

    return left_out


def _walk(root: Path, left_out: Callable[[str], bool]) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        links = [name for name in below if (Path(folder) / name).is_symlink()]
        below[:] = sorted(name for name in below if name not in links and _is_walked(Path(folder), name))
        below[:] = [name for name in below if not left_out(str(inside / name))]
        names = (str(inside / name) for name in [*files, *links] if not name.startswith("."))
        yield from (name for name in names if not left_out(name))


def _is_walked(folder: Path, name: str) -> bool:
    return not name.startswith(".") and name not in _PRUNED and not (folder / name / "pyvenv.cfg").exists()


def _measured(root: Path, names: Iterable[str], max_bytes: int) -> dict[str, int]:
    """Sizes of what there is; not of everything if it is far too much."""
    files: dict[str, int] = {}
    total, deadline = 0, None
    for name in names:
        size = _size(root, root / name)
        if size is None:
            continue
        files[name] = size
        total += size
        if total > max_bytes:
            deadline = deadline or time.monotonic() + GRACE_S
            if time.monotonic() > deadline:
                break
    return dict(sorted(files.items()))


def _size(root: Path, path: Path) -> int | None:
    """Bytes in the snapshot; None for what is gone, and for folders, pipes and the like."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return path.stat().st_size if _leads_to_a_file_outside(root, path) else 0
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _leads_to_a_file_outside(root: Path, link: Path) -> bool:
    real = Path(os.path.realpath(link))
    return real.is_file() and not real.is_relative_to(root)


def _named(sources: list[Source]) -> list[Source]:
    """Each with a folder of its own in the snapshot: as the tree's is called, as far as a path may have it."""
    named: list[Source] = []
    for one in sources:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", one.root.name).lstrip(".") or "root"
        taken = {other.folder for other in named}
        folder = name
        while folder in taken:
            folder += "_"
        named.append(replace(one, folder=folder))
    return named


def _too_large(sources: Sequence[Source], max_bytes: int, *, git: bool) -> str:
    worst = max(sources, key=lambda one: one.size)
    named = ", ".join(f"{name} ({in_words(size)})" for name, size in largest(worst.files))
    ignore = ".gitignore or code.exclude" if git else "code.exclude"
    return (
        f"{worst.root}: the code is to be copied into the run directory, but these are at least "
        f"{in_words(sum(one.size for one in sources))}, and code.max_size is {in_words(max_bytes)}. "
        f"The largest: {named}. Leave out what is no code ({ignore}), give the spec and its modules a folder of their "
        "own with a pyproject.toml, or raise code.max_size (code.snapshot: false imports from the tree as it is)"
    )


def largest(files: Mapping[str, int], count: int = 3) -> list[tuple[str, int]]:
    """Folders (with a slash) and files of the root; a folder that is large by one entry gives way to that."""
    sizes: Counter[str] = Counter()
    below: dict[str, set[str]] = {}
    for name, size in files.items():
        child = name
        for parent in [*(f"{folder}/" for folder in Path(name).parents[:-1]), ""]:
            sizes[child] += size
            below.setdefault(parent, set()).add(child)
            child = parent

    def narrowed(name: str) -> str:
        inner = max(below.get(name, ()), key=lambda one: sizes[one], default=None)
        return narrowed(inner) if inner and sizes[inner] >= 0.9 * sizes[name] else name

    whole = sum(files.values())
    top = sorted(
        (name for name in below.get("", ()) if sizes[name] >= 0.01 * whole), key=lambda one: (-sizes[one], one)
    )
    top = top[:count]
    return [(name, sizes[name]) for name in map(narrowed, top)]


def in_words(size: int) -> str:
    """Bytes in the units of code.max_size."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M")):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g}{unit}"
    return f"{size / 1024:.3g}K"
