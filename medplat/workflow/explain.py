"""pydantic's complaints as one sentence each, in a workflow author's words."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from medplat.workflow.tree import Loc, Tree

_WANTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "mapping_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "path_type": "must be text, a path",
}


def problem(
    error: Any, tree: Tree, model: type[BaseModel], prefix: Loc = ()
) -> tuple[str, str] | None:
    """The place and the sentence of one pydantic error; None where another error is its cause.

    Args:
        error: One entry of `ValidationError.errors()`.
        tree: The workflow as it was read.
        model: The pydantic model that raised it.
        prefix: Where in the tree this model's values stand.
    """
    kind = str(error["type"])
    loc = _in_tree(tree, (*prefix, *error["loc"]), kind)
    dotted = ".".join(map(str, loc))
    head = f"{dotted}: " if dotted else ""
    if kind == "extra_forbidden":
        known = _fields(model, error["loc"][:-1])
        return tree.place(loc, key=True), f"{head}unknown key{_nearest(str(loc[-1]), known)}"
    if kind == "too_short" and error["ctx"].get("actual_length") != len(error["input"]):
        return None
    if kind == "union_tag_not_found":
        return tree.place(loc, key=True), f"{head}kind is missing"
    if kind == "union_tag_invalid":
        loc = (*loc, "kind")
        head = f"{head[:-2]}.kind: "
    if kind == "missing":
        return tree.place(loc[:-1], key=True), f"{head}is missing"
    return tree.place(loc), f"{head}{_sentence(kind, error, tree, loc)}"


def without_echoes(found: Iterable[tuple[str, str] | None]) -> list[tuple[str, str]]:
    """Leave out "x is missing" where a misspelt key beside it was meant to be x."""
    problems = [one for one in found if one]
    meant = {
        text.partition(": unknown key")[0].rpartition(".")[0] + "." + near[1]
        for _, text in problems
        if (near := re.search(r"unknown key\. Did you mean '(.*)'\?$", text))
    }
    return [one for one in problems if _missing(one[1]) not in meant]


def _missing(text: str) -> str | None:
    key, missing, rest = text.partition(": is missing")
    return ("." if "." not in key else "") + key if missing and not rest else None


def _sentence(kind: str, error: Any, tree: Tree, loc: Loc) -> str:
    context = error.get("ctx", {})
    given = error.get("input")
    if kind == "union_tag_invalid":
        given = context.get("tag")
    if kind in ("literal_error", "union_tag_invalid", "enum"):
        expected = context.get("expected") or context.get("expected_tags", "")
        words = [word.strip(" '") for word in str(expected).replace(" or ", ",").split(",")]
        if loc in tree.texts and tree.texts[loc] in words:
            return f"must be one of {', '.join(words)}. Write '{tree.texts[loc]}' in quotes"
        return f"must be one of {', '.join(words)}, is {_short(given)}{_nearest(given, words)}"
    if kind in _WANTED:
        return f"{_WANTED[kind]}, is {_short(given)}{_quoted(kind, tree, loc)}"
    if kind in ("value_error", "assertion_error"):
        return str(error["msg"]).partition(", ")[2] or str(error["msg"])
    if kind == "string_pattern_mismatch":
        return f"{_short(given)} may not hold blanks or special characters"
    text = str(error["msg"]).replace("Input should", "must").replace("Value should", "must")
    if kind in ("too_short", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        return f"must hold {'at least' if least else 'at most'} {least or most} entries"
    return f"{text[0].lower()}{text[1:]}, is {_short(given)}"


def _quoted(kind: str, tree: Tree, loc: Loc) -> str:
    """How to write as text what YAML reads as a number, digits kept."""
    text = tree.texts.get(loc)
    return f". Write '{text}' in quotes" if kind == "string_type" and text else ""


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(word: Any, known: list[str]) -> str:
    found = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f". Did you mean '{found[0]}'?" if found else ""


def _in_tree(tree: Tree, loc: Loc, kind: str) -> Loc:
    """The location without the steps that pydantic adds for unions."""
    result: Loc = ()
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if (*result, step) in tree.values or (last and kind in ("missing", "extra_forbidden")):
            result = (*result, step)
    return result


def _fields(model: type[BaseModel], loc: Loc) -> list[str]:
    """Keys that the model at `loc` below `model` knows."""
    models = [model]
    for step in loc:
        inner: list[type[BaseModel]] = []
        for one in models:
            for name, info in one.model_fields.items():
                if step in (name, info.alias):
                    inner += _models(info.annotation)
        tagged = [one for one in models if step in _tags(one)]
        if inner or tagged:
            models = inner or tagged
    return [info.alias or name for one in models for name, info in one.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Values of `kind` by which a union tells this model from the others."""
    kind = model.model_fields.get("kind")
    return typing.get_args(kind.annotation) if kind else ()
