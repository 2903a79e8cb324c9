"""Where everything of a run lies: paths relative to its directory, unless they say otherwise. Pure."""

from pathlib import Path

from launcher.address import here, is_local, split
from launcher.record import Code


def code_folder(code: Code) -> str:
    """Of the snapshot, relative to the run directory (see `code_root`) or to the scratch folder."""
    return f"code/{code.digest}"


def code_archive(code: Code) -> str:
    """The snapshot as one file, for storage that nothing can be imported from; relative to the run directory."""
    return f"code/{code.digest}.tar"


def code_root(run_dir: str, code: Code) -> str:
    """The address of the folder that the snapshot's paths are relative to: the run's, or that of its sweep. Pure."""
    return split(run_dir)[0] if code.shared else run_dir


def code_home(run_dir: str, code: Code) -> str:
    """The folder that ranks import from: the snapshot itself, or what it was unpacked to on this machine. Pure."""
    return f"{here(code_root(run_dir, code))}/{code_folder(code)}"


def files_folder(run_dir: str, attempt: int) -> Path:
    """Where Lightning and the loggers of an attempt write: the run directory, or what stands in for it here. Pure."""
    return here(run_dir) if is_local(run_dir) else here(run_dir) / files_prefix(attempt)


def files_prefix(attempt: int) -> str:
    """Where such files are stored that had to be written elsewhere."""
    return f"{attempt_folder(attempt)}/files"


def diff_path(code: Code) -> str:
    return f"code/{code.digest}.diff"


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt:03d}"


def log_path(attempt: int, rank: int) -> str:
    return f"{attempt_folder(attempt)}/logs/rank-{rank:05d}.log"


def spec_path(attempt: int) -> str:
    """The resolved job spec that the attempt was started with."""
    return f"{attempt_folder(attempt)}/spec.json"


def progress_path(attempt: int) -> str:
    """Rank 0's heartbeat: step, epoch, precision, metrics."""
    return f"{attempt_folder(attempt)}/progress.json"


def finished_path(attempt: int) -> str:
    """What rank 0 writes when training and test have come to their end."""
    return f"{attempt_folder(attempt)}/finished.json"


def environment_path(attempt: int) -> str:
    """Versions of Python and of all packages, as rank 0 found them."""
    return f"{attempt_folder(attempt)}/environment.json"


def failure_path(attempt: int, rank: int) -> str:
    """What a rank wrote about the exception that ended it."""
    return f"{attempt_folder(attempt)}/failure-{rank:05d}.json"


def cell_id(sweep_id: str, index: int) -> str:
    """Of one run of a sweep."""
    return f"{sweep_id}.{cell_folder(index)}"


def cell_folder(index: int) -> str:
    """Its run directory, relative to the folder of the sweep."""
    return f"{index:04d}"
