"""Where the code of an attempt comes from, and with which packages it runs. No torch."""

import importlib.metadata
import logging
import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from launcher.errors import LauncherError, UsageError
from launcher.layout import code_home, environment_path
from launcher.node.environment import Place
from launcher.record import Code
from launcher.run import Run
from launcher.state import Attempt

_NAMED = 10
"""So many differences are named, then they are counted."""

_NOT_THE_USERS = ("launcher", "__main__", "__mp_main__")

log = logging.getLogger(__name__)


class ForeignModule(UsageError):
    """A module of the user's code was not imported from the snapshot."""


class Drift(LauncherError):
    """Python or a package has another version than in the attempt before, and the spec does not want that."""


def check_provenance(run: Run, place: Place, drift: Literal["warn", "fail"]) -> None:
    """To be called when all of the user's code has been imported. Rank 0 also writes down what it runs with.

    Raises:
        ForeignModule: a module was imported from somewhere else than the snapshot.
        Drift: another version than in the attempt before, with drift "fail".
    """
    if code := run.now.code:
        check_modules(code, code_home(place.run_dir, code), run.record.workdir)
    if place.rank == 0:
        _check_versions(run, place.attempt, versions(), drift)


# Modules


def check_modules(code: Code, snapshot: str, workdir: str) -> None:
    """Look at all that this process has imported.

    Args:
        code: what is in the snapshot.
        snapshot: where it lies.
        workdir: where the user was; on the import path as well.

    Raises:
        ForeignModule: with the module, its file and what to do.
    """
    found = ((name, file) for name, module in list(sys.modules.items()) if (file := _file(module)))
    if problem := next(foreign(found, code, snapshot, workdir, installed()), None):
        raise ForeignModule(problem)


def foreign(
    modules: Iterable[tuple[str, str]], code: Code, snapshot: str, workdir: str, installed: Iterable[str]
) -> Iterator[str]:
    """What is wrong with each module that lies in a tree which has a snapshot, or beside it, but not in the snapshot.

    Args:
        modules: names and files.
        code: what is in the snapshot.
        snapshot: where it lies.
        workdir: where the user was.
        installed: folders of installed packages, wherever they are.
    """
    real = cache(os.path.realpath)  # of folders: there are thousands of modules
    inside, lexically_inside = f"{real(snapshot)}/", f"{os.path.abspath(snapshot)}/"  # noqa: PTH100 - keeps symlinks
    packages = tuple(f"{folder}/" for folder in installed)
    trees = {f"{tree.path}/": tree.folder for tree in code.trees}
    for name, file in modules:
        folder, _, last = file.rpartition("/")
        where = f"{real(folder)}/{last}"
        if os.path.islink(where):  # noqa: PTH114 - thousands of them
            where = os.path.realpath(where)
        if name.partition(".")[0] in _NOT_THE_USERS or where.startswith((inside, *packages)):
            continue
        said = f"module {name} was imported from {file}, not from the snapshot of the code"
        tree = max((tree for tree in trees if where.startswith(tree)), key=len, default=None)
        if file.startswith(lexically_inside):
            yield f"{said}: a link leads there, out of the project; name the folder in code.path"
        elif tree and Path(snapshot, trees[tree], where.removeprefix(tree)).exists():
            yield f"{said}, which has it too: name the folder that it is imported from in code.path"
        elif tree:
            yield (
                f"{said}, which does not have it: git ignores it, or code.exclude leaves it out. `git add` it or take "
                "it out of .gitignore, or name its folder in code.path; code.snapshot: false imports from the tree "
                "as it is"
            )
        elif _base(name, where) == real(workdir):
            yield (
                f"{said}: the current folder is no project. Put a pyproject.toml into it (an empty one will do), name "
                "it in code.path, or start in another folder"
            )


def installed() -> set[str]:
    """Folders of this interpreter's modules and packages, as they are called and with symlinks resolved."""
    named = [path for key in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(key))]
    named += [*site.getsitepackages(), site.getusersitepackages()]
    return {one for path in named for one in (path, os.path.realpath(path))}


def _file(module: object) -> str | None:
    """Not by getattr: there are modules that import others when they are asked. What is not absolute is made up."""
    found = getattr(module, "__dict__", {}).get("__file__")
    return found if isinstance(found, str) and found.startswith("/") else None


def _base(name: str, file: str) -> str:
    """The entry of the import path that gave the module, by its name."""
    path = Path(file)
    above = (path.parent if path.stem == "__init__" else path).parents
    return str(above[min(name.count("."), len(above) - 1)])


# Versions


def versions() -> dict[str, Any]:
    """Of Python and of all packages that are installed."""
    packages: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        if "Name" in one.metadata:  # else pip died while it removed it
            packages.setdefault(one.metadata["Name"], one.version)  # the first is the one that is imported
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`package old -> new` for each that differs."""
    before, after = ({"Python": one["python"], **one["packages"]} for one in (old, new))
    names = sorted({*before, *after}, key=lambda name: (name != "Python", name.lower()))
    absent = "not installed"
    return [
        f"{name} {before.get(name, absent)} -> {after.get(name, absent)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _check_versions(run: Run, number: int, now: Mapping[str, Any], drift: Literal["warn", "fail"]) -> None:
    attempts = run.ledger.refresh().attempts
    before = _recorded(run, number, attempts)
    changed = differences(before[1], now) if before else []
    if before and changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        said = f"other versions than in attempt {before[0]}: {', '.join(changed[:_NAMED])}{more}"
        if drift == "fail":  # and nothing is written down: the next attempt is held against the same one
            raise Drift(f"{said}; install what was there, or set code.drift to warn")
        log.warning("%s", said)
    run.write_json(environment_path(number), now)


def _recorded(run: Run, number: int, attempts: Iterable[Attempt]) -> tuple[int, dict[str, Any]] | None:
    """The newest attempt before this one, on the same target, of which it is known what it ran with."""
    targets = {one.number: one.target for one in attempts}
    for earlier in sorted((one for one in targets if one < number), reverse=True):
        if targets[earlier] == targets.get(number) and (found := run.read_json(environment_path(earlier))):
            return earlier, found
    return None
