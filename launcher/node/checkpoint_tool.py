"""`python -m launcher.node.checkpoint_tool`: what `launcher checkpoints` cannot do without torch.

The request comes on stdin, the answer goes to stdout, both JSON; a problem is printed instead, and the exit code is 64.
Nothing of the user's code is imported, and none that a file may hold is run.
"""

import contextlib
import io
import json
import pickle
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import torch

from launcher.address import below
from launcher.errors import LauncherError, UsageError
from launcher.node.checkpoint import load
from launcher.node.weights import alone, compare, weights_in
from launcher.storage import PosixStorage

_FOREIGN = re.compile(r"Unsupported global: GLOBAL (\S+)")
"""In the text of torch's UnpicklingError: what is neither a tensor nor a plain value."""


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Export the weights of `source` to the file `to`, or compare `a` with `b`.

    (Each of the three is a storage's root and a path in it.)

    Raises:
        UsageError: a file cannot be read or written, or holds no weights.
    """
    if "to" in request:
        return _export(request["source"], Path(request["to"]))
    return _diff(request["a"], request["b"])


def _export(source: tuple[str, str], to: Path) -> dict[str, Any]:
    weights = alone(weights_in(_load(*source), "/".join(source)))
    try:
        with PosixStorage(to.parent).writer(to.name) as stream:
            torch.save(weights, cast(IO[bytes], stream))
    except (OSError, RuntimeError) as error:
        # torch makes a RuntimeError of what its stream raises.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UsageError(f"{to}: cannot be written ({cause.strerror}); choose another place with -o") from None
    return {"tensors": len(weights), "bytes": to.stat().st_size}


def _diff(a: tuple[str, str], b: tuple[str, str]) -> dict[str, Any]:
    loaded = [_load(*one) for one in (a, b)]
    where = [f"{root}/{path}" for root, path in (a, b)]
    weights = compare(*(weights_in(one, place) for one, place in zip(loaded, where, strict=True)))
    optimizers = [one.get("optimizer_states") for one in loaded]
    return {
        "same": not weights.differences,
        "tensors": weights.tensors,
        "differing": len(weights.differences),
        "differences": [asdict(one) for one in weights.differences],
        "optimizers_same": None if None in optimizers else not compare(*optimizers).differences,
        **{
            side: {"path": place, "step": one.get("global_step"), "epoch": one.get("epoch")}
            for side, one, place in zip("ab", loaded, where, strict=True)
        },
    }


def _load(root: str, path: str) -> Any:
    try:
        return load(below(root, path))
    except OSError as error:
        raise UsageError(f"{root}/{path}: cannot be read ({error.strerror})") from None
    except (RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        found = _FOREIGN.search(str(error))
        why = f"it holds a {found[1]}" if found else "it is damaged, or torch.save has not written it"
        raise UsageError(f"{root}/{path}: cannot be loaded under weights_only=True: {why}") from None


if __name__ == "__main__":
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            answer = main(json.load(sys.stdin))
    except LauncherError as error:
        print(error)
        sys.exit(UsageError.exit_code)
    print(json.dumps(answer))
