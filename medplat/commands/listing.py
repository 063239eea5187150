"""`medplat list`, `show` and `copy`: plugins, workflows, codes and the JSON Schema."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medplat import console, paths, registry, transforms
from medplat.commands import Outcome
from medplat.errors import MedplatError, MissingExtra, UsageError

KINDS: dict[str, registry.Kind] = {"models": "model", "datasets": "dataset"}


def list_(what: str | None = None, *, project: Path) -> Outcome:
    """Names and first lines of the models, datasets and workflows; no plugin is imported.

    `medplat list models` also names the registered models, where the project has a store.
    """
    summary: dict[str, Any] = {}
    lines: list[str] = []
    for heading in (what,) if what else (*KINDS, "workflows"):
        rows = _workflows() if heading == "workflows" else _plugins(KINDS[heading])
        summary[heading] = rows
        lines += [f"{heading}:", *_columns((row["name"], row["title"]) for row in rows), ""]
    if what == "models" and (rows := _registered(project)):
        summary["registered"] = rows
        names = ((row["uri"], f"{row['plugin']} {' '.join(row['aliases'])}") for row in rows)
        lines += ["registered:", *_columns(names)]
    for clash in registry.clashes():
        console.warn(clash)
    return Outcome(0, summary, "\n".join(lines).rstrip())


def show(name: str) -> Outcome:
    """A plugin's card and keys, a workflow's text, `codes` or `schema`.

    Raises:
        UsageError: Nothing has this name.
    """
    if name == "codes":
        return _codes()
    if name == "schema":
        document = schema()
        return Outcome(0, document, json.dumps(document, indent=2))
    kinds = [kind for kind in registry.PACKAGES if name in registry.found(kind)]
    if not kinds:
        return _show_workflow(name)
    parts = [_show_plugin(kind, name) for kind in kinds]
    return Outcome(
        0,
        parts[0].summary if len(parts) == 1 else {"plugins": [one.summary for one in parts]},
        "\n\n".join(one.text for one in parts),
    )


def copy(workflow: str, dest: Path) -> Outcome:
    """Copy a shipped workflow to a new file, or into a folder.

    Raises:
        UsageError: The workflow is unknown, or the file exists or cannot be written.
    """
    source = registry.workflow(workflow)
    target = dest / source.name if dest.is_dir() else dest
    if target.exists():
        raise UsageError(f"{target} exists: choose another name or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    return Outcome(0, {"workflow": workflow, "path": target}, f"{target}")


def schema() -> dict[str, Any]:
    """JSON Schema of a workflow file, with the names of plugins and transforms for completion."""
    from pydantic import TypeAdapter

    from medplat.workflow.schema import Workflow

    document: dict[str, Any] = TypeAdapter(Workflow).json_schema(by_alias=True)
    definitions = document["$defs"]
    for section, kind in (("Model", "model"), ("Dataset", "dataset")):
        names: Sequence[str] = list(registry.found(kind))  # type: ignore[arg-type]
        definitions[section]["properties"]["name"]["examples"] = names
    definitions |= transforms.definitions()
    for section in ("ConvertWorkflow", "TrainWorkflow"):
        for key in ("transforms", "augment"):
            if key in definitions[section]["properties"]:
                definitions[section]["properties"][key]["items"] = {"$ref": "#/$defs/Transform"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "medplat workflow",
        **document,
    }


def _plugins(kind: registry.Kind) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "title": _title(one),
            "origin": one.origin,
        }
        for name, plugins in registry.found(kind).items()
        for one in plugins
    ]


def _registered(project: Path) -> list[dict[str, Any]]:
    """The registered models of the store in use; none where there is no store yet."""
    embedded = project / paths.STATE / "tracking" / "mlflow.db"
    if not embedded.exists() and not os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    try:
        from medplat.track import registry as registered

        found = registered.list_models(project)
    except (MedplatError, ModuleNotFoundError) as error:
        console.warn(f"registered models are not listed: {error}")
        return []
    return [
        {"uri": f"models:/{one.name}/{one.version}", **dataclasses.asdict(one)} for one in found
    ]


def _title(plugin: registry.Plugin) -> str:
    if plugin.path is None:
        return f"from {plugin.origin}"
    return registry.title(plugin.path).removeprefix(f"{plugin.name}: ")


def _workflows() -> list[dict[str, str]]:
    return [
        {"name": name, "title": registry.title(path), "path": str(path)}
        for name, path in registry.workflows().items()
    ]


def _codes() -> Outcome:
    from medplat.dicom.codes import CODES

    rows = [dataclasses.asdict(code) for code in CODES.values()]
    text = "\n".join(
        f"{row['name']:<24} {row['verdict']:<9} {row['meaning']} {row['advice']}" for row in rows
    )
    return Outcome(0, {"codes": rows}, text)


def _show_workflow(name: str) -> Outcome:
    try:
        path = registry.workflow(name)
    except UsageError as error:
        known = [*registry.model_names(), *registry.dataset_names(), *registry.workflows()]
        near = registry.nearest(name, [*known, "codes", "schema"])
        more = "" if "several" in str(error) else f"nothing is called '{name}'{near}"
        raise UsageError(more or str(error)) from error
    text = path.read_text(encoding="utf-8")
    return Outcome(0, {"workflow": name, "path": str(path), "text": text}, text.rstrip())


def _show_plugin(kind: registry.Kind, name: str) -> Outcome:
    plugin = registry.found(kind)[name][0]
    summary: dict[str, Any] = {"kind": kind, "name": name, "origin": plugin.origin}
    lines = [f"{name} ({kind} plugin of {plugin.origin})"]
    if plugin.path:
        summary["title"] = _title(plugin)
        lines.append(summary["title"])
    try:
        module = registry.model(name) if kind == "model" else registry.dataset(name)
    except MissingExtra as error:
        summary["note"] = str(error)
        return Outcome(0, summary, "\n".join([*lines, str(error)]))
    if kind == "model":
        summary["card"] = dataclasses.asdict(module.CARD)
        lines += ["", *_card(summary["card"])]
    summary["config"] = module.Config.model_json_schema()
    lines += ["", f"keys under `{kind}:` in a workflow:", *_keys(module.Config)]
    return Outcome(0, summary, "\n".join(lines))


def _card(card: dict[str, Any]) -> list[str]:
    lines = []
    for key in ("title", "paper", "fidelity", "why", "upstream_licence"):
        lines.append(f"{key.replace('_', ' ')}: {card[key]}")
    lines += [f"deviation: {one}" for one in card["deviations"]]
    lines += [f"parameters, {one['label']}: {one['parameters']}" for one in card["counts"]]
    dims = ", ".join(f"{one}-D" for one in card["spatial_dims"])
    return [*lines, f"tasks: {', '.join(card['kinds'])} in {dims}"]


def _keys(config: Any) -> list[str]:
    rows = []
    for name, info in config.model_fields.items():
        default = "required" if info.is_required() else f"default {info.get_default()!r}"
        text = f"{info.description or ''} ({default})"
        rows.append((info.alias or name, text.strip()))
    return _columns(rows)


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    found = list(rows)
    width = max((len(name) for name, _ in found), default=0)
    return [f"  {name:<{width}}  {text}".rstrip() for name, text in found]
