"""Which keys make a workflow another one than that of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medplat.errors import MedplatError
from medplat.train.callbacks import LAST
from medplat.workflow import read as workflow_read
from medplat.workflow.schema import TrainWorkflow


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys that have other values, or stand on one side only."""
    ours, theirs = dict(_flat(one)), dict(_flat(other))
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{number}")
    else:
        yield name, value


def why_not(workflow: TrainWorkflow, runs: Path, experiment: str) -> str:
    """Why there is nothing to resume: one sentence with the keys that differ from the latest run.

    Args:
        workflow: What was to be resumed.
        runs: The folder of all runs of the project.
        experiment: The experiment that was searched.
    """
    known = sorted(
        (folder for folder in runs.glob("*") if (folder / LAST).exists()),
        key=lambda folder: (folder / LAST).stat().st_mtime,
    )
    start = f"--resume: no unfinished run of this workflow in the experiment {experiment}"
    for folder in reversed(known):
        stored = folder / "workflow.yaml"
        try:
            text = stored.read_text(encoding="utf-8")
            before = workflow_read.read_text(text, str(stored), kind="train")
        except (OSError, MedplatError):
            continue
        assert isinstance(before, TrainWorkflow)
        keys = differing(
            workflow.model_dump(mode="json", by_alias=True),
            before.model_dump(mode="json", by_alias=True),
        )
        if not keys:
            return f"{start}: the latest, {folder.name}, is finished; start anew without --resume"
        return (
            f"{start}: the latest run, {folder.name}, differs in {', '.join(keys[:8])}: "
            "give the same workflow and --set options, or start anew without --resume"
        )
    return f"{start}: start without --resume"
