"""YAML text to plain values, with the place of every key and value.

The text is only composed into nodes (ruamel.yaml, YAML 1.2), never constructed into objects: tags
other than those of plain values are refused, merge keys too, and an alias may not hold an alias.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Loc = tuple[str | int, ...]
MAX_BYTES = 256 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_OVERRIDE = re.compile(r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")


@dataclass
class Tree:
    """Plain values and where they stand.

    Attributes:
        where: Name of the text in messages, usually the path.
        value: Mappings, lists, strings, numbers, booleans and None.
        keys: Location of a value to the place of its key, as "file:line:col".
        values: Location of a value to its own place.
        problems: What is wrong with the text itself, one line each.
        texts: Location of a number to the text that was read as a number.
    """

    where: str
    value: Any = None
    keys: dict[Loc, str] = field(default_factory=dict)
    values: dict[Loc, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    texts: dict[Loc, str] = field(default_factory=dict)
    nodes: int = 0

    def place(self, loc: Loc, *, key: bool = False) -> str:
        """Place of the value at `loc` (or of its key), else of the nearest that holds it."""
        for end in range(len(loc), -1, -1):
            near = loc[:end]
            if key and near in self.keys:
                return self.keys[near]
            if near in self.values:
                return self.values[near] if end == len(loc) else self.keys.get(near, self.where)
        return self.where


class _StopError(Exception):
    """The text cannot be read any further."""


def parse(text: str, where: str) -> Tree:
    """Read YAML text; what is wrong with it is in `problems` of the result."""
    tree = Tree(where)
    if len(text.encode()) > MAX_BYTES:
        tree.problems.append(f"{where}: larger than {MAX_BYTES // 1024} KiB: not a workflow")
        return tree
    node = _compose(text, tree, where)
    if node is not None:
        try:
            tree.value = _plain(node, (), tree, aliases=set(), path=[])
        except _StopError as stop:
            tree.problems.append(str(stop))
    tree.values.setdefault((), f"{where}:1:1")
    tree.keys.setdefault((), f"{where}:1:1")
    return tree


def override(tree: Tree, settings: Iterable[str]) -> None:
    """Put `key.path=value` settings into the tree, each located as `--set #n`."""
    for number, setting in enumerate(settings, start=1):
        where = f"--set #{number}"
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals or not _OVERRIDE.match(path):
            tree.problems.append(f"{where}: '{setting}' is not key.path=value")
            continue
        given = parse(text, where)
        tree.problems += [_without_position(problem, where) for problem in given.problems]
        if not given.problems:
            _put(tree, path.split("."), given, where)


class _Composer(Composer):
    """Stops at a text too deep or too long, before its nodes are made."""

    met = 0
    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.met += 1
        self.level += 1
        if self.met > MAX_NODES or self.level > MAX_DEPTH:
            mark = self.parser.peek_event().start_mark
            raise _StopError(_excess(f":{mark.line + 1}:{mark.column + 1}", self.level))
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


def _excess(spot: str, level: int) -> str:
    if level > MAX_DEPTH:
        return f"{spot}: nested too deep"
    return f"{spot}: more than {MAX_NODES} values: not a workflow"


def _compose(text: str, tree: Tree, where: str) -> Node | None:
    reader = YAML(typ="rt", pure=True)
    reader.Composer = _Composer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            node: Node | None = reader.compose(text)
    except _StopError as stop:
        tree.problems.append(f"{where}{stop}")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        what = " ".join((error.problem or error.context or "cannot be read").split())
        tree.problems.append(f"{spot}: not valid YAML: {what}")
    except (YAMLError, ValueError, AssertionError) as error:
        tree.problems.append(f"{where}: not valid YAML: {str(error).partition(chr(10))[0]}")
    else:
        return node
    return None


def _plain(node: Node, loc: Loc, tree: Tree, aliases: set[int], path: list[int]) -> Any:
    """One node as plain values; `aliases` holds the anchored nodes that were seen."""
    spot = _spot(node, tree)
    tree.values[loc] = spot
    tree.nodes += 1
    if tree.nodes > MAX_NODES:
        raise _StopError(_excess(spot, 0))
    if id(node) in path:
        raise _StopError(_excess(spot, MAX_DEPTH + 1))
    if node.anchor:
        if any(one in aliases for one in path):
            raise _StopError(f"{spot}: an anchored value may not hold another anchor or alias")
        aliases.add(id(node))
    deeper = [*path, id(node)]
    if isinstance(node, MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, loc, tree, aliases, deeper)
    if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
        return [
            _plain(one, (*loc, index), tree, aliases, deeper)
            for index, one in enumerate(node.value)
        ]
    if isinstance(node, ScalarNode):
        return _scalar(node, loc, tree, spot)
    tree.problems.append(f"{spot}: the tag {node.tag} is not allowed")
    return None


def _mapping(
    node: MappingNode, loc: Loc, tree: Tree, aliases: set[int], path: list[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        spot = _spot(key_node, tree)
        if key_node.tag == _TAG + "merge":
            tree.problems.append(f"{spot}: merge keys (<<) are not allowed: write the keys out")
            continue
        if not isinstance(key_node, ScalarNode) or key_node.tag != _TAG + "str":
            tree.problems.append(f"{spot}: a key must be a word; numbers need quotes")
            continue
        key = str(key_node.value)
        here = (*loc, key)
        if key in result:
            dotted = ".".join(map(str, here))
            tree.problems.append(
                f"{spot}: {dotted}: given twice, first at {tree.keys[here]}: remove one"
            )
            continue
        tree.keys[here] = spot
        result[key] = _plain(value_node, here, tree, aliases, path)
    return result


def _scalar(node: ScalarNode, loc: Loc, tree: Tree, spot: str) -> Any:
    kind = str(node.tag).removeprefix(_TAG)
    text = str(node.value)
    if kind in ("str", "timestamp"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            tree.texts[loc] = text
            return _integer(text)
        if kind == "float":
            tree.texts[loc] = text
            return float(
                text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan")
            )
    except ValueError:
        tree.problems.append(f"{spot}: '{text[:40]}' is not a number")
        return None
    tree.problems.append(f"{spot}: the tag {node.tag} is not allowed")
    return None


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    for prefix, radix in (("0x", 16), ("0o", 8), ("0b", 2)):
        if prefix in digits[:3]:
            return int(digits, radix)
    return int(digits)


def _spot(node: Node, tree: Tree) -> str:
    mark = node.start_mark
    return f"{tree.where}:{mark.line + 1}:{mark.column + 1}"


def _without_position(problem: str, where: str) -> str:
    """A problem of an override without the line and column inside the override."""
    return re.sub(rf"^{re.escape(where)}(:\d+)*", where, problem)


def _put(tree: Tree, path: list[str], given: Tree, where: str) -> None:
    """Set one value, making the mappings on the way to it."""
    if not isinstance(tree.value, dict):
        tree.value = {}
    holder: Any = tree.value
    loc: Loc = ()
    for name in path[:-1]:
        step = _step(holder, name)
        loc = (*loc, step if step is not None else name)
        if step is None or not isinstance(holder[step], dict | list):
            if isinstance(holder, list):
                break
            holder[name] = {}
            _forget(tree, loc, where)
            step = name
        holder = holder[step]
    last = _step(holder, path[-1])
    if isinstance(holder, list) and last is None:
        tree.problems.append(
            f"{where}: {'.'.join(path)}: no such place in a list of {len(holder)}, counted from 0"
        )
        return
    step = path[-1] if last is None else last
    holder[step] = given.value
    loc = (*loc, step)
    _forget(tree, loc, where)
    tree.texts.update({(*loc, *below): text for below, text in given.texts.items()})


def _step(holder: Any, name: str) -> str | int | None:
    """The key or index that `name` stands for, None where the holder has no such place."""
    if isinstance(holder, list):
        return int(name) if name.isdigit() and int(name) < len(holder) else None
    return name if name in holder else None


def _forget(tree: Tree, loc: Loc, where: str) -> None:
    """Everything at and below `loc` now stands in an override."""
    for table in (tree.keys, tree.values, tree.texts):
        for known in [one for one in table if one[: len(loc)] == loc]:
            del table[known]
    tree.keys[loc] = where
    tree.values[loc] = where
