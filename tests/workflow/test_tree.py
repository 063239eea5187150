"""YAML text to values and places: what YAML 1.2 says, and what is refused."""

from __future__ import annotations

import time

import pytest

from medplat.workflow import tree


def test_values_follow_yaml_1_2() -> None:
    text = "a: 00123\nb: 1e-3\nc: no\nd: 12:30:45\ne: 2020-01-01\nf: ~\n"
    text += "g: true\nh: 0x10\ni: -.inf\nj: '5'\n"
    read = tree.parse(text, "w.yaml")
    assert read.problems == []
    assert read.value == {
        "a": 123, "b": 0.001, "c": "no", "d": "12:30:45", "e": "2020-01-01", "f": None,
        "g": True, "h": 16, "i": float("-inf"), "j": "5",
    }  # fmt: skip
    assert read.texts[("a",)] == "00123"


def test_places_are_lines_and_columns_counted_from_one() -> None:
    read = tree.parse("a:\n  - b: {c: 1}\n", "w.yaml")
    assert read.place(("a", 0, "b", "c"), key=True) == "w.yaml:2:9"
    assert read.place(("a", 0, "b", "c")) == "w.yaml:2:12"
    assert read.place(("a", 0, "b", "absent")) == "w.yaml:2:5"
    assert read.place(("nothing",)) == "w.yaml:1:1"


def test_every_duplicate_key_is_named_at_its_line() -> None:
    read = tree.parse("a: 1\nb: {x: 1, x: 2}\na: 3\n", "w.yaml")
    assert read.problems == [
        "w.yaml:2:11: b.x: given twice, first at w.yaml:2:5: remove one",
        "w.yaml:3:1: a: given twice, first at w.yaml:1:1: remove one",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: !!python/name:os.system x", "not allowed"),
        ("a: !!binary aGk=", "not allowed"),
        ("a: !custom {b: 1}", "not allowed"),
        ("1: x", "a key must be a word"),
        ("? [a]\n: x", "a key must be a word"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys (<<) are not allowed"),
        ("a: [1", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: &x [*x]", "nested too deep"),
        ("a: &x [1]\nb: &y [*x]\nc: *y\n", "may not hold another anchor"),
        ("a: *nowhere", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deep"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: [" + "1," * 10_001 + "]", "more than 10000 values"),
        ("#" * 300_000, "larger than 256 KiB"),
    ],
)
def test_refused_with_one_sentence(text: str, what: str) -> None:
    problems = tree.parse(text, "w.yaml").problems
    assert len(problems) == 1
    assert what in problems[0]
    assert problems[0].startswith("w.yaml")
    assert "\n" not in problems[0]


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    begin = time.process_time()
    assert tree.parse("\n".join(levels), "w.yaml").problems
    wide = "a: &a [" + "x, " * 500 + "]\nb: [" + "*a, " * 500 + "]"
    assert "more than 10000 values" in tree.parse(wide, "w.yaml").problems[0]
    assert time.process_time() - begin < 2


def test_an_alias_of_one_level_is_a_copy() -> None:
    read = tree.parse("a: &x {b: 1}\nc: *x\n", "w.yaml")
    assert read.problems == []
    tree.override(read, ["c.b=2"])
    assert read.value == {"a": {"b": 1}, "c": {"b": 2}}


def test_overrides_reach_keys_lists_and_new_places() -> None:
    read = tree.parse("a: {b: [1, {c: 2}]}\n", "w.yaml")
    tree.override(read, ["a.b.0=7", "a.b.1.c=[x, 00123]", "new.key=1e-3", "none="])
    assert read.value == {"a": {"b": [7, {"c": ["x", 123]}]}, "new": {"key": 0.001}, "none": None}
    assert read.place(("a", "b", 0)) == "--set #1"
    assert read.place(("a", "b", 1, "c", 0)) == "--set #2"
    assert read.place(("a", "b", 1, "c"), key=True) == "--set #2"
    assert read.place(("new", "key")) == "--set #3"
    assert read.place(("a", "b", 1)) == "w.yaml:1:12"
    assert read.texts[("a", "b", 1, "c", 1)] == "00123"


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("epochs", "--set #1: 'epochs' is not key.path=value"),
        ("a..b=1", "--set #1: 'a..b=1' is not key.path=value"),
        ("=1", "--set #1: '=1' is not key.path=value"),
        ("a.b=[1", "--set #1: not valid YAML"),
        ("list.3=1", "--set #1: list.3: no such place in a list of 1"),
        ("list.x=1", "--set #1: list.x: no such place in a list of 1"),
        ("list.3.x=1", "--set #1: list.3.x: no such place in a list of 1"),
        ("a=!!python/name:os.system x", "--set #1: the tag"),
    ],
)
def test_a_wrong_override_is_located_by_its_number(setting: str, what: str) -> None:
    read = tree.parse("list: [1]\n", "w.yaml")
    tree.override(read, [setting])
    assert len(read.problems) == 1
    assert read.problems[0].startswith(what)
