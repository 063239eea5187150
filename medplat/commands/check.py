"""`medplat check`: every mistake of workflows, or the conformance suite on a model plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medplat import registry
from medplat.commands import Outcome
from medplat.errors import MedplatError, UsageError
from medplat.workflow import read


def run(workflows: Sequence[Path] = (), *, plugin: str | None = None) -> Outcome:
    """Check workflow files, or a plugin; exit code 2 where anything is wrong.

    Raises:
        UsageError: Neither or both were asked for.
        PluginError: The plugin is unknown.
    """
    if bool(workflows) == (plugin is not None):
        raise UsageError("medplat check needs workflow files, or --plugin NAME")
    if plugin is not None:
        return _check_plugin(plugin)
    files = [_check_file(path) for path in workflows]
    lines = [line for file in files for line in (file["problems"] or [f"{file['path']}: ok"])]
    lines += [f"{file['path']}: note: {note}" for file in files for note in file["notes"]]
    ok = all(not file["problems"] for file in files)
    return Outcome(0 if ok else 2, {"ok": ok, "files": files}, "\n".join(lines))


def _check_file(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    notes: list[str] = []
    kind = ""
    try:
        workflow = read.read(path)
        kind = workflow.kind
        notes = _absent(workflow)
    except MedplatError as error:
        problems = str(error).splitlines()
    return {"path": str(path), "kind": kind, "problems": problems, "notes": notes}


def _absent(workflow: Any) -> list[str]:
    """Files and folders that the data set names and that are not here: noted, no mistake.

    A workflow may be checked on another machine than the one that holds its data.
    """
    if workflow.dataset is None:
        return []
    named = {"dataset.split.file": workflow.dataset.split.file}
    for key in ("root", "file", "table"):
        named[f"dataset.{key}"] = workflow.dataset.options.get(key)
    return [
        f"{key}: {value} does not exist here"
        for key, value in named.items()
        if isinstance(value, str | Path) and not Path(value).expanduser().exists()
    ]


def _check_plugin(name: str) -> Outcome:
    registry.model(name)
    from medplat import testing

    results = testing.check_model(name)
    lines = [str(one) for one in results]
    return Outcome(0, {"plugin": name, "ok": True, "results": lines}, "\n".join(lines))
