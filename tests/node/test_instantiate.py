"""Errors of class_path and init_args name the key and the nearest name."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from launcher.node.instantiate import CannotInstantiate, instantiate


def node(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def test_nested_descriptions_become_objects() -> None:
    made = instantiate(node("toys.Holder", parts=[node("torch.nn.ReLU"), 3], plain={"a": 1}), "model")

    assert isinstance(made.parts[0], nn.ReLU)
    assert (made.parts[1], made.plain) == (3, {"a": 1})


def test_added_arguments_go_where_they_are_accepted_and_not_given() -> None:
    assert instantiate(node("toys.Holder", parts=1, plain=2), "x", plain=9, unknown=9).plain == 2
    assert instantiate(node("toys.Holder", parts=1), "x", plain=9, unknown=9).plain == 9


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (node("toys.Classifier", lrr=1), r"model\.init_args\.lrr: Classifier has no argument 'lrr'; did you mean 'lr'"),
        (node("toys.Holder"), r"model\.init_args: Holder needs the argument 'parts'"),
        (node("toys.Clasifier"), r"module toys has no 'Clasifier'; did you mean 'Classifier'\?"),
        (node("toyz.Classifier"), r"model\.class_path: no module named 'toyz'"),
        (
            node("broken_module.Net"),
            r"no module named 'surely_not_installed'; broken_module imports it \(.*broken_module\.py:3\)",
        ),
        (node("toys.Holder", parts=node("toys.Nope")), r"model\.init_args\.parts\.class_path: .* has no 'Nope'"),
        (node("toys.Fussy", size=-1), r"model: toys\.Fussy could not be made: ValueError: negative \(.*toys\.py:\d+\)"),
    ],
    ids=["unknown argument", "missing argument", "class", "module", "import inside", "nested", "constructor"],
)
def test_what_does_not_fit_is_named(described: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotInstantiate, match=message):
        instantiate(described, "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n    pass\n", r"cannot be imported: SyntaxError: invalid syntax \({path}:2\)$"),
        ("import os\nfrom os import nowhere\n", r"cannot import name 'nowhere' from 'os' .* \({path}:2\)$"),
        ("x = 1\n\nraise KeyError('label')\n", r"cannot be imported: KeyError: 'label' \({path}:3\)$"),
        ("def f():\n    1 / 0\n\nf()\n", r"ZeroDivisionError: division by zero \({path}:2\)$"),
        ("import importlib\nimportlib.import_module('gone')\n", r"'gone'; {module} imports it \({path}:2\)$"),
    ],
    ids=["syntax", "name", "exception", "innermost", "dynamic"],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_line_of_the_user_s_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, request: pytest.FixtureRequest
) -> None:
    module = f"user_{request.node.callspec.id}"
    path = tmp_path / f"{module}.py"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(CannotInstantiate, match=message.format(path=path, module=module)):
        instantiate(node(f"{module}.Net"), "model")


def test_an_error_without_a_frame_of_the_user_s_code_names_the_nearest() -> None:
    with pytest.raises(CannotInstantiate, match=r"could not be made: TypeError: .* \(.*instantiate\.py:\d+\)$"):
        instantiate(node("itertools.count", start="x"), "model")
