"""The resolved workflow: the same text each time, and the same workflow when read again."""

from __future__ import annotations

import re

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medplat.workflow import read, schema, write

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["no", "Yes", "off", "00123", "1e-3", "0o17", "~", "null", "true", "", " a ", "a: b", "#x", "'",
     '"', "- a", "2020-01-01", "12:30:45", ".inf", "<<", "=", "*a", "&a", "!t",
     "a\nb", "\t", "1_000"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | TEXTS
LEAVES |= st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def workflow(**options: object) -> schema.EvaluateWorkflow:
    return schema.EvaluateWorkflow(
        kind="evaluate",
        dataset=schema.Dataset(name="folder", **options),
        evaluate=schema.Evaluate(model="models:/a@b"),
    )


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_whatever_a_plugins_key_holds_is_read_back_as_it_was(value: object) -> None:
    before = workflow(option=value)
    text = write.dump(before)
    after = read.read_text(text, "stored")
    assert after == before
    assert write.dump(after) == text


def test_every_default_is_written_in_the_order_of_the_schema() -> None:
    text = write.dump(workflow(root="data"))
    assert re.findall(r"^(\w+):", text, re.MULTILINE) == ["kind", "dataset", "evaluate", "track"]
    assert "replicates: 2000" in text
    assert "register: null" in text


def test_readers_of_yaml_1_1_see_the_same_words() -> None:
    words = ["no", "yes", "on", "off", "y", "N"]
    numbers = [1e-5, 3e20, 0.1, -2e-7, 12]
    seen = yaml.safe_load(write.dump(workflow(words=words, numbers=numbers)))["dataset"]
    assert seen["words"] == words
    assert seen["numbers"] == numbers


def test_the_digest_tells_workflows_apart_and_nothing_else() -> None:
    assert write.digest(workflow(root="a")) == write.digest(workflow(root="a"))
    assert write.digest(workflow(root="a")) != write.digest(workflow(root="b"))
    assert re.fullmatch(r"[0-9a-f]{64}", write.digest(workflow()))
