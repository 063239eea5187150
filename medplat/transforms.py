"""The transform lists of a workflow: checked against a table, composed with MONAI.

`check` and `definitions` read `transform_table.json` and import nothing heavy; `compose` needs
MONAI. `python -m medplat.transforms` writes the table anew from the installed MONAI.
"""

from __future__ import annotations

import difflib
import functools
import json
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from medplat import transform_table
from medplat.errors import MissingExtra, WorkflowError
from medplat.workflow.schema import TransformList

DTYPES = ("bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint16",
          "uint8")  # fmt: skip
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "text": "text",
    "word": "a mode",
    "dtype": "a number type such as float32",
    "null": "null",
    "mapping": "a mapping",
}


class Problem(NamedTuple):
    """One mistake in a transform list.

    Attributes:
        loc: Index in the list, then transform and argument names.
        text: What is wrong, one sentence.
        on_key: Whether the key at `loc` is wrong, not its value.
    """

    loc: tuple[str | int, ...]
    text: str
    on_key: bool


def check(
    given: Sequence[Any], keys: Collection[str] | None = None, *, random: bool = True
) -> list[Problem]:
    """Mistakes in a list of `{Name: {argument: value}}`.

    Args:
        given: The list as read from YAML; entries that are no mappings are left to the schema.
        keys: Names that `keys` arguments may hold ("image", "label"); None takes any.
        random: Whether random transforms are allowed here.
    """
    problems: list[Problem] = []
    for index, entry in enumerate(given):
        if not isinstance(entry, dict):
            continue
        if len(entry) != 1:
            problems.append(
                Problem((index,), "each entry names one transform, Name: {arguments}", False)
            )
        for name, arguments in entry.items():
            problems += _check_one((index, name), name, arguments, keys, random)
    return problems


def compose(
    given: TransformList, *, seed: int | None = None, allow_missing_keys: bool = False
) -> Any:
    """The transforms as one `monai.transforms.Compose`.

    Args:
        given: The checked list of a workflow.
        seed: Seeds the random ones; None leaves them to MONAI.
        allow_missing_keys: Leave out keys that a case lacks, as `label` at inference.

    Raises:
        WorkflowError: A transform refuses its arguments.
        MissingExtra: MONAI is not installed.
    """
    try:
        import monai.transforms as monai_transforms
    except ModuleNotFoundError as error:
        raise MissingExtra("a workflow with transforms", error.name or "monai") from error
    problems = [f"{'.'.join(map(str, one.loc))}: {one.text}" for one in check(given)]
    if problems:
        raise WorkflowError(problems)
    parts = []
    for entry in given:
        for name, arguments in entry.items():
            values = {key: _tuples(value) for key, value in arguments.items()}
            if allow_missing_keys:
                values["allow_missing_keys"] = True
            try:
                with warnings.catch_warnings():
                    # MONAI announces changed defaults; the version that is tested is pinned.
                    warnings.simplefilter("ignore", FutureWarning)
                    parts.append(getattr(monai_transforms, name)(**values))
            except (TypeError, ValueError, KeyError) as error:
                reason = str(error).partition("\n")[0]
                raise WorkflowError([f"transforms: {name}: {reason}"]) from error
    composed = monai_transforms.Compose(parts)
    if seed is not None:
        composed.set_random_state(seed=seed)
    return composed


def definitions() -> dict[str, Any]:
    """JSON Schema definitions; `Transform` is one entry of a list, for completion in editors."""
    properties = {}
    for name, entry in _table()["transforms"].items():
        arguments = {
            key: _json_type(value["type"])
            for key, value in entry["arguments"].items()
            if value["type"]
        }
        properties[name] = {
            "type": "object",
            "properties": arguments,
            "required": [key for key, value in entry["arguments"].items() if value["required"]],
            "additionalProperties": False,
        }
    one = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": properties,
    }
    modes, types = {"enum": _table()["words"]}, {"enum": list(DTYPES)}
    return {"Transform": one, "TransformMode": modes, "NumberType": types}


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(transform_table.FILE.read_text(encoding="utf-8"))
    return table


def _check_one(
    loc: tuple[str | int, ...],
    name: str,
    arguments: Any,
    keys: Collection[str] | None,
    random: bool,
) -> list[Problem]:
    known = _table()["transforms"]
    if name not in known:
        return [Problem(loc, _unknown(name, known), True)]
    problems = []
    meant = ""
    if known[name]["random"] and not random:
        problems.append(Problem(loc, "is random: it belongs under augment", True))
    if not isinstance(arguments, dict):
        return [*problems, Problem(loc, "must be a mapping of arguments to values", False)]
    table = known[name]["arguments"]
    for argument, value in arguments.items():
        here = (*loc, argument)
        if argument not in table:
            near = _nearest(argument, table)
            meant += near
            problems.append(Problem(here, f"unknown argument{near}", True))
        elif not table[argument]["type"]:
            problems.append(Problem(here, "cannot be given in a workflow", True))
        elif not _fits(value, table[argument]["type"]):
            wanted = _spell(table[argument]["type"])
            near = _nearest(value, _table()["words"]) if "mode" in argument else ""
            problems.append(Problem(here, f"must be {wanted}, is {_short(value)}{near}", False))
        elif argument == "keys" and keys is not None:
            for one in [value] if isinstance(value, str) else value:
                if one not in keys:
                    text = f"'{one}' is not in a case; known are {', '.join(keys)}"
                    problems.append(Problem(here, text + _nearest(one, keys), False))
    for argument, entry in table.items():
        if entry["required"] and argument not in arguments and f"'{argument}'" not in meant:
            problems.append(Problem(loc, f"needs the argument {argument}", True))
    return problems


def _unknown(name: str, known: Collection[str]) -> str:
    if name in transform_table.REFUSED:
        return f"is not allowed in a workflow: {transform_table.REFUSED[name]}"
    if f"{name}d" in known:
        return f"unknown transform. Did you mean '{name}d'?"
    return f"unknown transform, or not allowed in a workflow{_nearest(name, known)}"


def _fits(value: Any, kinds: list[Any]) -> bool:
    return any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return isinstance(value, list | tuple) and all(_fits(one, kind["list"]) for one in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "any": True,
        "null": value is None,
        "bool": isinstance(value, bool),
        "int": number and isinstance(value, int),
        "number": number,
        "text": isinstance(value, str),
        "word": isinstance(value, str) and value in _table()["words"],
        "dtype": isinstance(value, str) and value in DTYPES,
        "mapping": isinstance(value, dict),
    }[kind]


def _spell(kinds: list[Any]) -> str:
    words = []
    for kind in kinds:
        if isinstance(kind, dict):
            inside = "" if kind["list"] == ["any"] else f" of ({_spell(kind['list'])})"
            words.append(f"a list{inside}")
        else:
            words.append(_WORDS[kind])
    return " or ".join(words)


def _json_type(kinds: list[Any]) -> dict[str, Any]:
    """A type of the table as JSON Schema."""
    names = {"bool": "boolean", "int": "integer", "text": "string", "mapping": "object"}
    found: list[dict[str, Any]] = []
    for kind in kinds:
        if kind == "any":
            return {}
        if isinstance(kind, dict):
            found.append({"type": "array", "items": _json_type(kind["list"])})
        elif kind in ("word", "dtype"):
            target = "TransformMode" if kind == "word" else "NumberType"
            found.append({"$ref": f"#/$defs/{target}"})
        else:
            found.append({"type": names.get(kind, kind)})
    return found[0] if len(found) == 1 else {"anyOf": found}


def _tuples(value: Any) -> Any:
    """MONAI's own defaults are tuples: lists become tuples, all the way down."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def _nearest(word: Any, known: Collection[str]) -> str:
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f". Did you mean '{found[0]}'?" if found else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    transform_table.write()
