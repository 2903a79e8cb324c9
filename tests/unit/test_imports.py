"""The arrows of ARCHITECTURE.md, read from the code itself; and what the control side must never import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_ARROWS = re.search(r"^errors ←.*?(?=^node)", (REPOSITORY / "ARCHITECTURE.md").read_text(), re.DOTALL | re.MULTILINE)
assert _ARROWS, "ARCHITECTURE.md draws the arrows no longer"
ORDER = re.findall(r"\w+", _ARROWS[0])
"""Of the control side, as ARCHITECTURE.md draws it: a module imports only what stands before it."""

NODE_MAY_NOT = {"backend", "backends", "supervise", "cli"}
HEAVY = {"torch", "torch_xla", "lightning", "torchmetrics", "torchvision", "numpy", "submitit"}


def imports(file: Path) -> Iterator[str]:
    """Names of all modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module
            submodule = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from submodule if node.module == "launcher" else [node.module]


def parts(package: str) -> Iterator[tuple[Path, str]]:
    """Files of `launcher`, each with the part that it belongs to: a module, or the sub-package around it."""
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        yield file, file.relative_to(REPOSITORY / package).parts[0].removesuffix(".py")


def own(file: Path) -> set[str]:
    """The parts of `launcher` that a file imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("launcher.")} - {"__version__"}


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part for _, part in parts("launcher")} == {*ORDER, "node", "__init__"}


@pytest.mark.parametrize(("file", "part"), list(parts("launcher")), ids=lambda value: getattr(value, "stem", value))
def test_a_module_imports_only_what_stands_before_it(file: Path, part: str) -> None:
    if part == "node":
        assert not own(file) & NODE_MAY_NOT
    elif part != "__init__":
        allowed = {*ORDER[: ORDER.index(part)], part}
        assert own(file) <= allowed, f"{file.name} imports {own(file) - allowed}"


def test_only_the_node_side_imports_torch() -> None:
    for file, part in parts("launcher"):
        heavy = {name.split(".")[0] for name in imports(file)} & HEAVY
        if file.name == "submission.py":
            heavy.remove("submitit")  # the one place where it is the subject
        assert part == "node" or not heavy, f"{file} imports {heavy}"


def test_what_runs_on_hosts_takes_nothing_that_is_not_there() -> None:
    (runner,) = (REPOSITORY / "launcher").rglob("runner.py")
    ast.parse(runner.read_text(), feature_version=(3, 8))
    assert {name.split(".")[0] for name in imports(runner)} <= {*sys.stdlib_module_names, "__future__"}


def test_two_modules_know_torch_xla() -> None:
    knowing = {
        file.name for file, _ in parts("launcher") if "torch_xla" in {name.split(".")[0] for name in imports(file)}
    }
    assert knowing == {"xla.py", "xla_ranks.py"}


def test_the_model_knows_nothing_of_the_launcher() -> None:
    for file, _ in parts("model"):
        assert not [name for name in imports(file) if name.split(".")[0] == "launcher"], file


def test_one_module_starts_programs() -> None:
    for file, part in parts("launcher"):
        if part != "shell" and file.name != "runner.py":  # which is a program of its own, on other machines
            assert not {"subprocess", "multiprocessing", "pty"} & set(imports(file)), file
            assert not re.search(r"\bos\.(system|fork|exec\w+|spawn\w+|posix_spawn\w*)\(", file.read_text()), file


def loaded_after(*arguments: str, cwd: Path) -> set[str]:
    """Top-level modules that a command has imported when it ends, whatever its exit code."""
    code = (
        "import sys\n"
        "from launcher.cli.main import main\n"
        f"main({list(arguments)!r})\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["status"],
        ["events"],
        ["checkpoints"],
        ["checkpoints", "verify"],
        ["checkpoints", "prune", "--keep-last", "1"],
        ["why"],
        ["logs"],
        ["cancel"],
        ["reconcile"],
        ["probe"],
        ["resume", "nothing"],
        ["plan", str(REPOSITORY / "jobs/mnist.yaml")],
        ["schema"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_no_verb_of_the_control_side_loads_torch(arguments: list[str], tmp_path: Path) -> None:
    loaded = loaded_after(*arguments, cwd=tmp_path)

    assert "launcher" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("verb", ["--help", "list", "status"])
def test_verbs_that_must_answer_at_once_load_no_pydantic_and_no_yaml(verb: str, tmp_path: Path) -> None:
    assert not loaded_after(verb, cwd=tmp_path) & {"pydantic", "yaml"}
