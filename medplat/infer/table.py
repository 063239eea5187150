"""`results.csv`: a row a case, over all shards of OUT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medplat import manifest
from medplat.workflow.schema import ClassifyTask, RestoreTask, TrainWorkflow

FIRST = ("case", "patient", "status", "code", "model", "version")


def columns(workflow: TrainWorkflow) -> list[str]:
    """The columns of the model's numbers; restore gives none."""
    if isinstance(workflow.task, ClassifyTask):
        return [f"{name}_probability" for name in workflow.task.classes]
    if isinstance(workflow.task, RestoreTask):
        return []
    return [f"{label.name}_ml" for label in workflow.task.labels]


def write(path: Path, lines: Sequence[manifest.Line], workflow: TrainWorkflow) -> None:
    """Write the table, sorted by case; numbers stay empty where a case has none."""
    names = columns(workflow)
    rows = []
    for line in sorted(lines, key=lambda one: str(one["case"])):
        code = (line.get("error") or {}).get("code", "")
        numbers = line.get("numbers") or {}
        first = (
            line["case"],
            line.get("patient", ""),
            line["status"],
            code,
            line.get("model", ""),
            line.get("model_version") or "",
        )
        rows.append([*first, *(numbers.get(name) for name in names)])
    manifest.write_csv(path, [*FIRST, *names], rows)
