"""Whole-case validation: predict, bring back to the case's own grid, measure."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medplat import paths, tasks
from medplat.tasks import window
from medplat.tasks.restore import from_scale
from medplat.types import Affine, Array, Geometry
from medplat.workflow.schema import TrainWorkflow

Restore = Callable[[Tensor, Affine, Geometry], Array]
"""Logits (C, *spatial) on the grid with this affine -> class indices on the case's own grid."""


class Measure:
    """Metrics of one prepared case (`loaders.batches.prepare(..., training=False)`).

    Args:
        workflow: The train workflow.
        multiple: The model card's `multiple`.
        restore: Brings logits back to the case's own grid (`medplat.infer.restore`).
    """

    def __init__(self, workflow: TrainWorkflow, multiple: int, restore: Restore) -> None:
        self.workflow = workflow
        self.multiple = multiple
        self.restore = restore

    def predict(
        self, network: nn.Module, case: Mapping[str, Any], device: torch.device | str
    ) -> Array:
        """Class indices on the case's own grid, probabilities (C,), or values.

        Of restore (2, C, x, y, z): the restored image, then the input on the same grid.
        """
        task = tasks.task_of(self.workflow)
        image = case["image"]
        logits = window.predict(
            network, image, self.workflow, task, device, multiple=self.multiple
        ).cpu()
        if task.kind == "restore":
            return _both(logits, image, case["ends"])
        if task.kind != "segment":
            return np.asarray(tasks.get(task.kind).decode(logits))
        indices = self.restore(logits, np.asarray(image.affine, np.float64), case["geometry"])
        return np.asarray(indices).reshape(np.asarray(case["truth"]).shape)

    def __call__(
        self, network: nn.Module, case: Mapping[str, Any], device: torch.device | str
    ) -> dict[str, float]:
        """The task's metrics of one case."""
        return self.metrics(self.predict(network, case, device), case)

    def metrics(
        self, prediction: Array, case: Mapping[str, Any], *, distances: bool = False
    ) -> dict[str, float]:
        """How a prediction fits the truth of its case; with surface distances where asked."""
        affine = np.asarray(case["geometry"].affine)
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return tasks.get(self.workflow.task.kind).case_metrics(
            self.workflow, prediction, np.asarray(case["truth"]), spacing, distances=distances
        )

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The metrics over all cases."""
        numbers = [
            {name: value for name, value in row.items() if isinstance(value, float)} for row in rows
        ]
        return tasks.get(self.workflow.task.kind).summary(self.workflow, numbers)

    @property
    def primary(self) -> str:
        """The metric by which the best checkpoint is chosen."""
        return tasks.get(self.workflow.task.kind).PRIMARY


def _both(restored: Tensor, image: Tensor, ends: tuple[float, float]) -> Array:
    """The restored image and its input, in the image's own values, on the restored one's grid."""
    from torch.nn.functional import interpolate

    shape = restored.shape[1:]
    plain = torch.as_tensor(np.asarray(image))[: len(restored)]
    if plain.shape[1:] != shape:
        plain = interpolate(plain[None], size=shape, mode="trilinear", align_corners=False)[0]
    both: Array = from_scale(torch.stack([restored, plain]), ends).numpy()
    return both


def write_cases(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write `cases.csv`: case, patient, then the metrics; an undefined one is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with paths.whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value)
