"""The recipe of a data set: what its plugin makes of a finished conversion.

A dataset plugin that has `ready`, `plan`, `visit_of` and `publish` gives one; see
`medplat_datasets.breastdcedl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import console, registry
from medplat.workflow import read as workflow_read

if TYPE_CHECKING:
    from medplat.commands.convert_series import Job
    from medplat.workflow.schema import ConvertWorkflow


@dataclass(frozen=True)
class Recipe:
    """A dataset plugin and its keys."""

    plugin: Any
    config: Any

    def finish(self, out: Path, code: int, gzip_level: int) -> int:
        """Write the data set's own files; the exit code, worse where a patient was refused."""
        written, refused = self.plugin.publish(out, self.config, gzip_level)
        if not refused or code not in (0, 3):
            return code
        return 3 if written else 4

    def preview(self, jobs: Sequence[Job]) -> None:
        """Say which series the data set would take, and why not the others."""
        plans = [plan for job in jobs for plan in job.plans]
        pids: dict[str, str] = {}
        visits: dict[str, str] = {}
        for one in plans:
            if one.frames:
                pids[one.series.patient] = one.frames[0][0].identity.patient_id
            if visit := self.plugin.visit_of(one.metadata):
                visits[one.series.study_uid] = visit
        series = [one.series for one in plans]
        for choice in self.plugin.plan(series, self.config, pids, visits):
            role = choice.role or "not taken"
            reason = " ".join(text for text in (choice.code, choice.reason) if text)
            number = choice.series.number
            console.say(f"{choice.pid or '?'}: series {number}: {role}: {reason}")


def load(workflow: ConvertWorkflow, keep: Sequence[str]) -> Recipe | None:
    """The recipe of a workflow's data set; None where it has none.

    Raises:
        UsageError: Something that the recipe needs was not given.
        WorkflowError: A key of the data set is wrong.
    """
    if workflow.dataset is None:
        return None
    plugin = registry.dataset(workflow.dataset.name)
    if not hasattr(plugin, "publish"):
        return None
    config = workflow_read.dataset_config(workflow)
    plugin.ready(config, keep)
    return Recipe(plugin, config)
