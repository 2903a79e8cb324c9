"""`--set key=value`: where a value goes, and that it is checked like one of the file."""

from pathlib import Path
from typing import Any

import pytest

from launcher.cli.main import main
from launcher.document import Place
from launcher.errors import USAGE, SpecError
from launcher.overrides import CannotSet, assign, override
from launcher.spec import JobSpec, parse_spec
from launcher.yamlfile import MAX_DEPTH, parse

LEAST = "name: x\nmodel: {class_path: a.B}\n"


def with_set(*assignments: str, text: str = LEAST) -> JobSpec:
    return parse_spec(text, source="job.yaml", overrides=assignments)


def problems(*assignments: str, text: str = LEAST) -> list[str]:
    with pytest.raises(SpecError) as refused:
        with_set(*assignments, text=text)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("tree", "key", "after"),
    [
        ({}, "a", {"a": 9}),
        ({"a": 1, "b": 2}, "a", {"a": 9, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, "a.b", {"a": {"b": 9, "c": 2}}),
        ({"a": None}, "a.b", {"a": {"b": 9}}),
        ({}, "a.b.c", {"a": {"b": {"c": 9}}}),
        ({"a": [1, 2]}, "a.1", {"a": [1, 9]}),
        ({"a": [{"b": 1}]}, "a.0.b", {"a": [{"b": 9}]}),
        ({"a": [1]}, "a", {"a": 9}),
        ({"0": 1}, "0", {"0": 9}),
        (None, "a", {"a": 9}),
    ],
)
def test_a_value_goes_to_its_dotted_key(tree: Any, key: str, after: Any) -> None:
    before = repr(tree)

    changed, _ = assign(tree, key, 9)

    assert changed == after
    assert repr(tree) == before


@pytest.mark.parametrize(
    ("tree", "key", "message"),
    [
        ({}, "", "'' is no dotted key such as trainer.max_epochs"),
        ({}, ".", "'.' is no dotted key such as trainer.max_epochs"),
        ({}, "a..b", "'a..b' is no dotted key such as trainer.max_epochs"),
        ({}, "a.", "'a.' is no dotted key such as trainer.max_epochs"),
        ({"a": 1}, "a.b", "a is no mapping; it cannot have a key 'b'"),
        ({"a": {"b": "text"}}, "a.b.c.d", "a.b is no mapping; it cannot have a key 'c'"),
        ({"a": [1, 2]}, "a.2", "a is a list of 2, counted from 0; it has no item '2'"),
        ({"a": [1, 2]}, "a.-1", "a is a list of 2, counted from 0; it has no item '-1'"),
        ({"a": [1, 2]}, "a.00", "a is a list of 2, counted from 0; it has no item '00'"),
        ({"a": [1, 2]}, "a.b", "a is a list of 2, counted from 0; it has no item 'b'"),
        ({"a": []}, "a.0", "a is a list of 0, counted from 0; it has no item '0'"),
        ({}, ".".join("a" * (MAX_DEPTH + 1)), f"nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_a_key_that_leads_nowhere_is_refused(tree: Any, key: str, message: str) -> None:
    with pytest.raises(CannotSet) as refused:
        assign(tree, key, 9)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("assignment", "set_to"),
    [
        ("x=3", 3),
        ("x=1e-3", 0.001),
        ("x=off", "off"),
        ("x='3'", "3"),
        ("x=", None),
        ("x= 3 ", 3),
        ("x=a=b", "a=b"),
        ("x=[1, two]", [1, "two"]),
        ("x={class_path: a.B, init_args: {y: null}}", {"class_path": "a.B", "init_args": {"y": None}}),
        ("x.y.z=true", {"y": {"z": True}}),
    ],
)
def test_a_value_is_yaml(assignment: str, set_to: object) -> None:
    assert with_set(f"model.init_args.{assignment}").model.init_args == {"x": set_to}


def test_the_last_of_several_counts_and_the_others_stay() -> None:
    spec = with_set("trainer.max_epochs=1", "trainer.max_steps=7", "trainer.max_epochs=3", "name=y")

    assert (spec.name, spec.trainer.max_epochs, spec.trainer.max_steps) == ("y", 3, 7)


def test_an_override_can_mend_what_is_wrong_in_the_file() -> None:
    text = f"{LEAST}trainer: {{max_epochs: many, callbacks: [{{class_path: a.B}}, {{class_path: 3}}]}}"

    spec = with_set("trainer.max_epochs=3", "trainer.callbacks.1.class_path=a.C", text=text)

    assert spec.trainer.max_epochs == 3


def test_an_override_does_not_mend_what_is_no_yaml() -> None:
    assert problems("trainer.max_epochs=3", text=f"{LEAST}trainer: {{max_epochs: !!int 3}}") == [
        "job.yaml:3: trainer.max_epochs: the tag '!!int' is not supported; write plain values"
    ]


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("trainer.max_epochs=-2", "trainer.max_epochs: expected -1 or more, got -2"),
        ("trainer.max_epochs=1_000", "trainer.max_epochs: expected a whole number, got the text '1_000'"),
        ("trainer.max_epoch=3", "trainer.max_epoch: unknown key 'max_epoch'; did you mean 'max_epochs'?"),
        ("trainer.devices=2", "trainer.devices: cannot be set here; use resources.tasks_per_node or"),
        ("max_epochs=3", "max_epochs: unknown key 'max_epochs'; did you mean 'trainer.max_epochs'?"),
        ("resources.time=30", "resources.time: expected a duration such as '90s'"),
        ("name=", "name: expected 1 to 63 letters"),
        ("name.x=3", "name is no mapping; it cannot have a key 'x'"),
        ("trainer", "expected key=value, such as trainer.max_epochs=3"),
        ("", "expected key=value, such as trainer.max_epochs=3"),
        ("=3", "'' is no dotted key such as trainer.max_epochs"),
        ("trainer.max_epochs=[", "trainer.max_epochs: not valid YAML: "),
        ("trainer.max_epochs=.inf", "trainer.max_epochs: .inf is no finite number"),
        ("trainer.max_epochs=!!python/name:os.system", "trainer.max_epochs: the tag '!!python/name:os.system' is not"),
        ("trainer.max_epochs=*a", "trainer.max_epochs: the alias '*a' names no anchor above it"),
        ("model.init_args={a: 1, a: 2}", "model.init_args.a: duplicate key 'a'"),
        ("model.init_args={<<: {a: 1}}", "model.init_args: merge keys ('<<') are not supported"),
        ("model.init_args.x=" + "[" * 60, "model.init_args.x: nested deeper than 50 levels"),
    ],
)
def test_a_problem_is_named_by_the_override(assignment: str, problem: str) -> None:
    (found,) = problems(assignment)

    assert found.startswith(f"--set {assignment}: {problem}")


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("name=a\n b: c", r"--set 'name=a\n b: c': name: "),
        ("name=\udcff", r"--set 'name=\udcff': name: contains the unprintable character U+DCFF"),
        ("\udcff=1", r"--set '\udcff=1': the text contains a NUL or half a surrogate pair"),
        ("model.init_args.\udcff=1", r"--set 'model.init_args.\udcff=1': the text contains"),
        ("name=" + "x" * 100_000, f"--set 'name={'x' * 52}...': name: expected 1 to 63 letters"),
        ("x" * 100_000 + "=1", f"--set '{'x' * 57}...': '{'x' * 57}...': unknown key '{'x' * 57}...'; known here"),
    ],
    ids=["two lines", "no Unicode", "no Unicode as a key", "no Unicode as a lower key", "long", "long key"],
)
def test_a_strange_override_is_named_on_one_short_line(assignment: str, named: str) -> None:
    (found,) = problems(assignment)

    assert found.startswith(named)
    assert found.isprintable()
    assert len(found) < 500


def test_each_of_several_is_named_by_its_own() -> None:
    text = f"{LEAST}trainer: {{max_steps: -2}}"

    assert [found.split(": ")[:2] for found in problems("trainer.max_epochs=-2", "retry.infra=x", text=text)] == [
        ["job.yaml:3", "trainer.max_steps"],
        ["--set trainer.max_epochs=-2", "trainer.max_epochs"],
        ["--set retry.infra=x", "retry.infra"],
    ]


def test_what_an_override_replaces_has_no_line_in_the_file_any_more() -> None:
    file = parse("a:\n  b: 1\nc: 2", lambda line: Place(line, f"job.yaml:{line}"))

    changed = override(file, "a={d: 4}")

    assert changed.value == {"a": {"d": 4}, "c": 2}
    assert changed.place(("a", "d")).text == "--set a={d: 4}"
    assert changed.place(("a", "b")).text == "--set a={d: 4}"
    assert changed.place(("c",)).text == "job.yaml:3"
    assert file.value == {"a": {"b": 1}, "c": 2}
    assert file.place(("a", "b")).text == "job.yaml:2"


def test_overrides_of_the_command_line_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(LEAST)

    assert (
        main(["plan", str(tmp_path / "job.yaml"), "--set", "trainer.max_epochs=3", "--set", "resources.node=2"])
        == USAGE
    )

    assert (
        "--set resources.node=2: resources.node: unknown key 'node'; did you mean 'nodes'?" in capsys.readouterr().err
    )
