"""`python -m launcher.node.check`: instantiate what a spec names, without training; the spec comes on stdin.

A typo in `init_args` must not surface after a day in the queue. Prints nothing when all is well; otherwise the
problem, and exits with 64.
"""

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

from launcher.errors import LauncherError, UsageError
from launcher.node.environment import Place
from launcher.node.provenance import check_modules
from launcher.record import code_from
from launcher.spec import JobSpec


def main(request: dict[str, Any]) -> None:
    """Raises CannotInstantiate, UnsupportedPrecision or ForeignModule."""
    from launcher.node.precision import computed_type
    from launcher.node.trainer import build_model_and_data, build_trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spec, accelerator = JobSpec.model_validate(request["spec"]), request["accelerator"]
    if accelerator == "xla" and request["elsewhere"] and find_spec("torch_xla") is None:
        # Ranks have another Python, which may well have it. All but the device can be checked.
        spec, accelerator = _without_strategy(spec), "cpu"
    if os.environ.get("PJRT_DEVICE") == "TPU":
        os.environ["PJRT_DEVICE"] = "CPU"  # a chip that is looked at is taken, and waits for its peers
    build_model_and_data(spec)
    with tempfile.TemporaryDirectory(prefix="launcher-check-") as folder:
        place = Place(
            run_dir=folder,
            attempt=1,
            rank=0,
            world_size=request["world_size"],
            local_rank=0,
            local_world_size=request["local_world_size"],
            node_rank=0,
            accelerator=accelerator,
            main_address="127.0.0.1",
            main_port=0,
        )
        computed_type(build_trainer(spec, place))
    if "code" in request:
        check_modules(code_from(request["code"]), request["snapshot"], request["workdir"])


def _without_strategy(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"strategy": "auto"})})


if __name__ == "__main__":
    os.environ.pop("PYTHONSAFEPATH", None)  # it was meant for this process, not for those that the model may start
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(json.load(sys.stdin))
    except LauncherError as error:
        print(error)
        sys.exit(UsageError.exit_code)
