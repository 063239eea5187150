"""Read a workflow file: every mistake at once, each as `file:line:col: key: what`.

Two steps, reported as one list: the schema and the transform table, which import nothing heavy;
then the plugins' own `Config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from medplat import console, registry, transforms
from medplat.errors import MissingExtra, PluginError, UsageError, WorkflowError
from medplat.tasks.restore import SPATIAL
from medplat.workflow import explain, tree
from medplat.workflow.schema import (
    ConvertWorkflow,
    EvaluateWorkflow,
    TrainWorkflow,
    Workflow,
)
from medplat.workflow.tree import Loc, Tree

KINDS: dict[str, type[BaseModel]] = {
    "convert": ConvertWorkflow,
    "train": TrainWorkflow,
    "evaluate": EvaluateWorkflow,
}
Config = TypeVar("Config", bound=BaseModel)
# What the reader of a case puts into it, for the `keys` of transforms (`medplat.loaders`).
KEYS = {
    "segment": ("image", "label"),
    "classify": ("image",),
    "restore": ("image",),
    "convert": ("image", "label"),
}
PAIR = ("image", "reference")  # what an augmentation of restore sees


def read(
    path: Path, overrides: Sequence[str] = (), *, kind: str | None = None, plugins: bool = True
) -> Workflow:
    """A checked workflow, the plugins' own defaults filled in.

    Args:
        path: The YAML file.
        overrides: `key.path=value` settings, which win over the file.
        kind: The kind that the verb needs; None takes any.
        plugins: Whether the plugins' own keys are checked too, not only their names; this imports
            the plugins.

    Raises:
        WorkflowError: With every mistake.
        UsageError: The file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"workflow {path} does not exist{_shipped(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"workflow {path} cannot be read: {type(error).__name__}") from None
    return _read(text, str(path), overrides, kind, "config" if plugins else "name")


def read_text(
    text: str,
    where: str,
    overrides: Sequence[str] = (),
    *,
    kind: str | None = None,
    plugins: bool = False,
) -> Workflow:
    """As `read`, for the text of a stored workflow, whose plugins may be absent here."""
    return _read(text, where, overrides, kind, "config" if plugins else "nothing")


def _read(
    text: str,
    where: str,
    overrides: Sequence[str],
    kind: str | None,
    depth: Literal["nothing", "name", "config"],
) -> Workflow:
    """The workflow, its plugins checked to this depth."""
    source = tree.parse(text, where)
    tree.override(source, overrides)
    problems = [(problem, "") for problem in source.problems]
    model = _model(source, kind, problems)
    if model is None:
        raise WorkflowError(_lines(problems))
    workflow = _validate(model, source.value, source, problems)
    _check_transforms(source, problems)
    _check_values_kept(source, problems)
    names = _check_names(source, problems) if depth != "nothing" else ()
    resolved = _check_configs(names, source, problems) if depth == "config" else {}
    if "model" in resolved and isinstance(workflow, TrainWorkflow):
        _check_card(workflow, source, problems)
    if problems or workflow is None:
        raise WorkflowError(_lines(problems))
    return _with_options(workflow, resolved)


def model_config(workflow: TrainWorkflow) -> Any:
    """The model plugin's own `Config` with the workflow's keys.

    Raises:
        WorkflowError: A key is wrong.
        PluginError: The plugin is unknown.
    """
    return _config(registry.model(workflow.model.name), workflow.model, "model")


def dataset_config(workflow: TrainWorkflow | EvaluateWorkflow | ConvertWorkflow) -> Any:
    """The dataset plugin's own `Config`; relative paths are relative to the current folder.

    Raises:
        WorkflowError: A key is wrong.
        PluginError: The plugin is unknown.
        UsageError: The workflow has no data set.
    """
    if workflow.dataset is None:
        raise UsageError("the workflow names no dataset")
    return _config(registry.dataset(workflow.dataset.name), workflow.dataset, "dataset")


def _shipped(path: Path) -> str:
    """How to get the shipped workflow of that name, where there is one."""
    for name in registry.workflows():
        if name.rpartition("/")[2] == path.stem:
            return f"; a shipped one is had by: medplat copy {name} {path}"
    return "; `medplat list workflows` names those that come with medplat"


def _config(module: Any, section: Any, key: str) -> Any:
    options = section.options
    # JSON is YAML: parsed again only so that each key has a place.
    source = tree.parse(json.dumps(options, default=str), key)
    problems: list[tuple[str, str]] = []
    config: BaseModel | None = _validate(module.Config, options, source, problems)
    if config is None:
        raise WorkflowError([f"{key}: {text}" for _, text in problems])
    return config


def _model(
    source: Tree, kind: str | None, problems: list[tuple[str, str]]
) -> type[BaseModel] | None:
    """The schema class that `kind` names; what is wrong with it is added to the problems."""
    if not isinstance(source.value, dict):
        if not problems:
            problems.append((source.place(()), "a workflow is a mapping that begins with kind:"))
        return None
    given = source.value.get("kind")
    if kind is not None and given is not None and given != kind and given in KINDS:
        problems.append((source.place(("kind",)), f"kind: is {given}, this verb needs {kind}"))
    if given is None:
        problems.append((source.place(()), f"kind: is missing; one of {', '.join(KINDS)}"))
    elif given not in KINDS:
        near = registry.nearest(str(given), KINDS)
        text = f"kind: must be one of {', '.join(KINDS)}{near}"
        problems.append((source.place(("kind",)), text))
    return KINDS.get(str(given)) or KINDS.get(str(kind))


def _validate(
    model: type[Config],
    value: Any,
    source: Tree,
    problems: list[tuple[str, str]],
    prefix: Loc = (),
) -> Config | None:
    """The model with these values, or None and a problem for each mistake.

    JSON in strict mode is exactly what is wanted: lists become tuples and text becomes a path, but
    a number never becomes text, nor text a number.
    """
    try:
        return model.model_validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        found = [
            explain.problem(one, source, model, prefix)
            for one in error.errors(include_url=False)
            if prefix or one["loc"] != ("kind",)
        ]
        problems += explain.without_echoes(found)
    return None


def _check_transforms(source: Tree, problems: list[tuple[str, str]]) -> None:
    task = source.value.get("task")
    kind = str((task if isinstance(task, dict) else source.value).get("kind"))
    for section in ("transforms", "augment"):
        given = source.value.get(section)
        if isinstance(given, list):
            random = section == "augment"
            keys = PAIR if random and kind == "restore" else KEYS.get(kind)
            for found in transforms.check(given, keys, random=random):
                loc = (section, *found.loc)
                place = source.place(loc, key=found.on_key)
                problems.append((place, f"{'.'.join(map(str, loc))}: {found.text}"))


def _check_values_kept(source: Tree, problems: list[tuple[str, str]]) -> None:
    """A restored image is written in the source's own values: no transform may change them."""
    task, given = source.value.get("task"), source.value.get("transforms")
    if not isinstance(task, dict) or task.get("kind") != "restore" or not isinstance(given, list):
        return
    for index, entry in enumerate(given):
        for name in entry if isinstance(entry, dict) else ():
            if name not in SPATIAL:
                text = "changes values: restore scales by task.range and back; leave it out"
                place = source.place(("transforms", index, name), key=True)
                problems.append((place, f"transforms.{index}.{name}: {text}"))


def _check_names(source: Tree, problems: list[tuple[str, str]]) -> list[tuple[registry.Kind, str]]:
    """Check the plugins' names, without an import; gives those that are known."""
    known: list[tuple[registry.Kind, str]] = []
    for kind in registry.PACKAGES:
        section = source.value.get(kind)
        name = section.get("name") if isinstance(section, dict) else None
        if isinstance(name, str) and name in registry.found(kind):
            known.append((kind, name))
        elif isinstance(name, str):
            text = f"{kind}.name: {registry.unknown(kind, name)}"
            problems.append((source.place((kind, "name")), text))
    return known


def _check_configs(
    names: Sequence[tuple[registry.Kind, str]], source: Tree, problems: list[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Check the plugins' own keys; gives them with the plugins' defaults."""
    resolved: dict[str, dict[str, Any]] = {}
    for kind, name in names:
        spot = source.place((kind, "name"))
        section = source.value[kind]
        options = {
            key: value for key, value in section.items() if key not in registry.RESERVED[kind]
        }
        load = registry.model if kind == "model" else registry.dataset
        try:
            config = _validate(load(name).Config, options, source, problems, (kind,))
        except MissingExtra as error:
            console.say(f"{spot}: {kind}.{name}: its own keys were not checked: {error}")
        except PluginError as error:
            problems.append((spot, f"{kind}.name: {error}"))
        else:
            if config is not None:
                resolved[kind] = config.model_dump(mode="json", by_alias=True)
    return resolved


def _check_card(workflow: TrainWorkflow, source: Tree, problems: list[tuple[str, str]]) -> None:
    """Check the task and the sizes against what the model's card allows."""
    card, task = registry.model(workflow.model.name).CARD, workflow.task
    name = workflow.model.name
    for key, value, allowed in (
        ("kind", task.kind, card.kinds),
        ("spatial_dims", task.spatial_dims, card.spatial_dims),
    ):
        if value not in allowed:
            text = f"task.{key}: {name} serves {' and '.join(map(str, allowed))}, not {value}"
            problems.append((source.place(("task", key)), text))
    for section, key in (("train", "patch_size"), ("infer", "window")):
        size = getattr(getattr(workflow, section), key) or ()
        if any(length % card.multiple for length in size):
            text = f"{section}.{key}: {name} needs multiples of {card.multiple}"
            problems.append((source.place((section, key)), text))


def _with_options(workflow: Any, resolved: dict[str, dict[str, Any]]) -> Workflow:
    """The workflow with the plugins' defaults written out."""
    update: dict[str, Any] = {}
    for kind, options in resolved.items():
        section = getattr(workflow, kind)
        own = {name: getattr(section, name) for name in type(section).model_fields}
        update[kind] = type(section).model_construct(**own, **options)
    copy: Workflow = workflow.model_copy(update=update)
    return copy


def _lines(problems: list[tuple[str, str]]) -> list[str]:
    """One line for each problem, in the order of the file, overrides last."""
    lines = dict.fromkeys(f"{place}: {text}" if text else place for place, text in problems)
    return sorted(lines, key=_order)


def _order(line: str) -> tuple[int, int, int]:
    if line.startswith("--set #"):
        digits = re.match(r"--set #(\d+)", line)
        return (1, int(digits[1]) if digits else 0, 0)
    position = re.search(r":(\d+):(\d+): ", line)
    return (0, int(position[1]), int(position[2])) if position else (0, 0, 0)
