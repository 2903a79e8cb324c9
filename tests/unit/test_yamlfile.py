"""YAML text to plain values: what each scalar means, where it stands, and that hostile input is refused early."""

import os
from pathlib import Path

import pytest

from launcher.document import Document, Place
from launcher.spec_problems import dotted
from launcher.yamlfile import MAX_BYTES, MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, Unreadable, parse, read

PAGEMAP = Path("/proc/self/pagemap")
"""A regular file by its type, of no size by its status, and endless when read."""


def parsed(text: str | bytes) -> Document:
    return parse(text, lambda line: Place(line, f"job.yaml:{line}"))


def value(text: str | bytes) -> object:
    document = parsed(text)
    assert document.findings == []
    return document.value


def findings(text: str | bytes) -> list[str]:
    """`line: key: message` of each."""
    return [f"{one.place.line}: {dotted(one.path)}: {one.message}" for one in parsed(text).findings]


class TestScalars:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("1e-3", 0.001),
            ("1E5", 100_000.0),
            (".5", 0.5),
            ("1.", 1.0),
            ("-0.25", -0.25),
            ("3", 3),
            ("+3", 3),
            ("-3", -3),
            ("017", 17),
            ("0o17", 15),
            ("0x1F", 31),
            ("9223372036854775807", 2**63 - 1),
            ("-9223372036854775808", -(2**63)),
            ("true", True),
            ("False", False),
            ("null", None),
            ("~", None),
            ("", None),
        ],
    )
    def test_numbers_truths_and_nothing_are_those_of_yaml_1_2(self, written: str, meant: object) -> None:
        found = value(f"key: {written}")

        assert found == {"key": meant}
        assert type(found["key"]) is type(meant)  # type: ignore[index]

    @pytest.mark.parametrize(
        "text",
        ["yes", "no", "on", "off", "y", "tRUE", "nil", "1_000", "1:30:00", "10:00", "2024-01-01", "0b1", "0o9", "1e",
         ".", "e5", "1.2.3", "-", "=", "16G", "a b", "#not-a-comment", "inf", "nan"],
    )  # fmt: skip
    def test_everything_else_is_text(self, text: str) -> None:
        written = f'"{text}"' if text in ("#not-a-comment", "-") else text

        assert value(f"key: {written}") == {"key": text}

    @pytest.mark.parametrize("text", ["1", "true", "null", "1e-3", "", ".inf"])
    @pytest.mark.parametrize("quote", ["'", '"'])
    def test_quotes_make_text(self, text: str, quote: str) -> None:
        assert value(f"key: {quote}{text}{quote}") == {"key": text}

    @pytest.mark.parametrize(
        ("written", "message"),
        [
            (".inf", ".inf is no finite number"),
            ("-.INF", "-.INF is no finite number"),
            (".nan", ".nan is no finite number"),
            ("1e400", "the number '1e400' is too large"),
            ("9223372036854775808", "the number '9223372036854775808' does not fit into 64 bits"),
            ("-9223372036854775809", "the number '-9223372036854775809' does not fit into 64 bits"),
            ("0xFFFFFFFFFFFFFFFFFF", "the number '0xFFFFFFFFFFFFFFFFFF' does not fit into 64 bits"),
            ("9" * 10_000, f"the number '{'9' * 57}...' does not fit into 64 bits"),  # int() would refuse it
            ("9" * 10_000 + ".0", f"the number '{'9' * 57}...' is too large"),
            ('"a\\0b"', "the text contains a NUL or half a surrogate pair"),
            ('"\\ud800"', "the text contains a NUL or half a surrogate pair"),
        ],
    )
    def test_what_json_could_not_hold_is_refused(self, written: str, message: str) -> None:
        assert findings(f"a: 1\nkey: {written}") == [f"2: key: {message}"]


def test_values_know_the_line_they_were_written_on() -> None:
    document = parsed("a:\n  - 1\n  - b: 2\n\n\nc: {d: [\n  3]}")

    lines = {dotted(path): place.line for path, place in document.places.items()}
    assert lines == {"": 1, "a": 1, "a.0": 2, "a.1": 3, "a.1.b": 3, "c": 6, "c.d": 6, "c.d.0": 7}
    assert document.place(("a", 1, "b", "not", "there")).text == "job.yaml:3"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "---", "---\n...\n", "null", "\ufeff".encode(), b""])
def test_nothing_is_nothing(text: str | bytes) -> None:
    assert value(text) is None


def test_a_byte_order_mark_and_carriage_returns_are_no_matter() -> None:
    assert value("\ufeffa: 1\r\nb: ü\r\n".encode()) == {"a": 1, "b": "ü"}


def test_an_alias_stands_for_its_value() -> None:
    assert value("a: &one {x: [1]}\nb: *one\nc: [*one, *one]") == {
        "a": {"x": [1]},
        "b": {"x": [1]},
        "c": [{"x": [1]}, {"x": [1]}],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: *none", "2: b: the alias '*none' names no anchor above it"),
        ("a: &a\n  b: *a", "2: a.b: the alias '*a' stands inside the value that it names"),
        ("a: &a [*a]", "1: a.0: the alias '*a' stands inside the value that it names"),
        ("&a b: 1", "1: : the key 'b' has an anchor; only values may have one"),
        ("a: &a x\n*a : 1", "2: : a key must be text, not a list, a mapping or an alias"),
        ("a:\n  <<: {b: 1}", "2: a: merge keys ('<<') are not supported; write the keys out"),
        ("a: 1\nb: 2\na: 3", "3: a: duplicate key 'a'; the first is at job.yaml:1"),
        ("a: {b: 1, 'b': 2}", "1: a.b: duplicate key 'b'"),
        ("a: !!python/object/apply:os.system [ls]", "1: a: the tag '!!python/object/apply:os.system' is not supported"),
        ("a: !!python/name:os.system", "1: a: the tag '!!python/name:os.system' is not supported"),
        ("a: !!int 3", "1: a: the tag '!!int' is not supported; write plain values"),
        ("!mine {a: 1}", "1: : the tag '!mine' is not supported; write plain values"),
        ("!!str a: 1", "1: : the key 'a' is not text; put it in quotes"),
        ("a: {1: x}", "1: a: the key '1' is not text; put it in quotes"),
        ("true: x", "1: : the key 'true' is not text; put it in quotes"),
        ("? \n: x", "1: : the key '' is not text; put it in quotes"),
        ("a: {{ template }}", "1: a: a key must be text, not a list, a mapping or an alias"),
        ("? [a]\n: 1", "1: : a key must be text, not a list, a mapping or an alias"),
        ('"a\\0": 1', "1: : the text contains a NUL or half a surrogate pair"),
    ],
)
def test_what_a_spec_does_not_need_is_refused_at_its_line(text: str, message: str) -> None:
    assert [one for one in findings(text) if one.startswith(message)], findings(text)


def test_a_value_that_is_refused_does_not_hide_the_next() -> None:
    assert findings("a: .inf\nb: !x 1\nc: {1: 2}\nd: *d\ne: 5") == [
        "1: a: .inf is no finite number",
        "2: b: the tag '!x' is not supported; write plain values",
        "3: c: the key '1' is not text; put it in quotes",
        "4: d: the alias '*d' names no anchor above it",
    ]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a:\n\tb: 1", 2, "indent with spaces, not with tabs"),
        ("a:\n  b: 1\n\tc: 2", 3, "indent with spaces, not with tabs"),
        ("a:\n  \tb: 1", 2, "indent with spaces, not with tabs"),
        ("a: b: c", 1, "a value with ': ' in it needs quotes"),
        ("a 1\nb: 2", 2, "the line above lacks its ':'"),
        ("a:\n    b: 1\n  c: 2", 3, "the indentation does not fit the lines above"),
        ("a: 1\nb\n", 3, "a key without ': ' after it"),
        ("a: @b", 1, "text that begins with this character needs quotes"),
        ("a: 1\nb: %c", 2, "text that begins with this character needs quotes"),
        ("a: [1\nb: 2", 2, "begun on line 1"),
        ("a: 1\nb: 'c\nd: 2\n", 4, "begun on line 2"),
        ('a: "\\q"', 1, "unknown escape character"),
        ('a: "\\UFFFFFFFF"', 1, "out of range"),
        ("%YAML " + "1" * 10_000 + ".1\n---\na: 1", 1, "out of range"),
        ("a: 1\n---\nb: 2", 2, "a second document begins here"),
        ("a: 1\n...\n---\nb: 2", 3, "a second document begins here"),
        ("a: 1\n...\nb", 3, "not valid YAML"),
        ("a: 1\nb: \0", 2, "contains a NUL byte"),
        ("a: 1\nb: \x1b[31m", 2, "contains the unprintable character U+001B"),
        (b"a: 1\nb: caf\xe9", 2, "not a text in UTF-8: byte 0xe9"),
        ("a: 1".encode("utf-16"), 1, "not a text in UTF-8: byte 0xff"),
        (b"\x89PNG\r\n\x1a\n", 1, "not a text in UTF-8: byte 0x89"),
    ],
)
def test_what_is_no_yaml_has_a_line_and_a_reason(text: str | bytes, line: int, says: str) -> None:
    (finding,) = parsed(text).findings

    assert finding.place.line == line
    assert says in finding.message


class TestLimits:
    """The work is counted, not timed: values are made until a limit is reached, and no further."""

    @pytest.mark.parametrize(
        "text",
        ["[" * 200_000, "{a: " * 60_000, "- " * 100_000, "? " * 100_000, "\n".join(" " * n + "a:" for n in range(500))],
        ids=["flow lists", "flow mappings", "lists", "keys", "mappings"],
    )
    def test_depth(self, text: str) -> None:
        document = parsed(text)

        assert document.findings[-1].message == f"nested deeper than {MAX_DEPTH} levels"
        assert document.value is None
        assert len(document.places) <= 2 * MAX_DEPTH

    def test_depth_by_aliases(self) -> None:
        def doubled(levels: int) -> str:
            return f"a: &a {'[' * levels}{']' * levels}\nb: {'[' * levels}*a{']' * levels}"

        assert findings(doubled(MAX_DEPTH // 2)) == []
        assert findings(doubled(MAX_DEPTH // 2 + 1)) == [f"2: : nested deeper than {MAX_DEPTH} levels"]

    def test_number_of_values(self) -> None:
        assert value("[" + "1," * (MAX_VALUES - 1) + "]") == [1] * (MAX_VALUES - 1)

        document = parsed("[" + "1," * 100_000 + "]")

        assert document.findings[-1].message.startswith(f"more than {MAX_VALUES:,} values")
        assert len(document.places) <= MAX_VALUES + 2

    def test_aliases_that_multiply(self) -> None:
        bomb = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
        bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]

        document = parsed("\n".join(bomb))

        assert [one.place.line for one in document.findings] == [4]  # 10 + 100 + 1,000 fit, 10,000 more do not
        assert "aliases expanded" in document.findings[0].message
        assert len(document.places) < 100

    def test_aliases_that_multiply_in_keys(self) -> None:
        bomb = ["a0: &a0 {k: 1, l: 1, m: 1}"]
        bomb += [f"a{n}: &a{n} {{k: *a{n - 1}, l: *a{n - 1}, m: *a{n - 1}}}" for n in range(1, 20)]

        assert "aliases expanded" in parsed("\n".join(bomb)).findings[0].message

    @pytest.mark.parametrize("long", ["x" * 100_000, "{k: " + "x" * 100_000 + "}", "{" + "x" * 1000 + ": 1}"])
    def test_aliases_of_a_long_text(self, long: str) -> None:
        document = parsed(f"a: &a {long}\nb: [{', '.join(['*a'] * 3000)}]")

        assert [one.place.line for one in document.findings] == [2]
        assert document.findings[0].message.startswith(f"more than {MAX_CHARACTERS:,} characters, aliases expanded")

    def test_a_text_as_long_as_a_file_may_be_is_no_matter(self) -> None:
        text = "x" * (MAX_BYTES - 3)

        assert value(f"a: {text}") == {"a": text}


class TestRead:
    def test_a_file_is_read_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "job.yaml").write_bytes(b"\xff\0\r\n")

        assert read(tmp_path / "job.yaml") == b"\xff\0\r\n"

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("missing", "there is no such file"),
            ("", "this is a directory"),
            ("/dev/zero", "this is no regular file"),
            ("/dev/null", "this is no regular file"),
            ("pipe", "this is no regular file"),  # to open it would wait for a writer
            ("loop", "cannot be read: Too many levels of symbolic links"),
            ("x" * 300, "cannot be read: File name too long"),
            ("a\0b", "cannot be read: embedded null"),
            ("full/below", "cannot be read: Not a directory"),
            ("large", "a job spec is a few KB; this file has 10,485,760 bytes"),
        ],
    )
    def test_what_cannot_be_a_spec_is_not_read(self, tmp_path: Path, path: str, message: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "full").write_bytes(b" " * MAX_BYTES)
        with (tmp_path / "large").open("wb") as large:
            large.truncate(10 * 2**20)

        assert len(read(tmp_path / "full")) == MAX_BYTES
        with pytest.raises(Unreadable) as refused:
            read(tmp_path / path)

        assert str(refused.value).startswith(message)

    @pytest.mark.skipif(
        "CI" not in os.environ and not os.access(PAGEMAP, os.R_OK), reason="no pagemap here; in CI this fails"
    )
    def test_a_file_that_hides_its_size_is_not_read_to_its_end(self) -> None:
        assert PAGEMAP.stat().st_size == 0
        with pytest.raises(Unreadable, match=f"more than {MAX_BYTES:,} bytes"):
            read(PAGEMAP)
