"""What a case will need, out of one batch of windows that was timed: said before the run starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from medplat.infer.jobs import Job
from medplat.infer.worker import Probe
from medplat.workflow.schema import TrainWorkflow


class Estimate(NamedTuple):
    """Predicted needs of one case; `seconds` is None where no window could be timed."""

    grid: tuple[int, ...]
    windows: int
    peak_rss_mb: float
    seconds: float | None


def estimate(job: Job, probe: Probe, workflow: TrainWorkflow) -> Estimate:
    """Predict memory and time of the prediction stage of one case.

    The grid is that after `Spacingd`, if the workflow has one; other transforms that change the
    size are not foreseen.

    Args:
        job: Its `shape` and `spacing_mm` are used.
        probe: From the worker.
        workflow: The model's own.
    """
    grid = _grid(job, workflow)
    window = probe.window or grid
    step = [max(1, int(one * (1 - workflow.infer.overlap))) for one in window]
    counts = [
        1 if size <= one else math.ceil((size - one) / stride) + 1
        for size, one, stride in zip(grid, window, step, strict=False)
    ]
    windows = math.prod(counts)
    if workflow.task.kind == "restore" and workflow.task.spatial_dims == 2:
        windows *= job.shape[2]
    padded = [max(size, one) for size, one in zip(grid, window, strict=False)]
    memory = probe.peak_rss_mb + math.prod(padded) * probe.bytes_per_voxel / 1e6
    seconds = None
    if probe.seconds is not None:
        seconds = probe.seconds * math.ceil(windows / probe.batch)
    return Estimate(grid, windows, round(memory, 1), seconds)


def sentence(found: Estimate) -> str:
    """The estimate in words."""
    size = " x ".join(str(one) for one in found.grid)
    time = "unknown" if found.seconds is None else f"{found.seconds:.1f} s"
    return f"grid {size}, {found.windows} windows, about {found.peak_rss_mb:.0f} MB and {time}"


def _grid(job: Job, workflow: TrainWorkflow) -> tuple[int, ...]:
    spacing: Sequence[float] = job.spacing_mm
    shape = job.shape[: workflow.task.spatial_dims]
    for entry in workflow.transforms:
        wanted = entry.get("Spacingd", {}).get("pixdim")
        if wanted and len(spacing) >= len(shape):
            targets = list(wanted) if isinstance(wanted, list | tuple) else [wanted] * len(shape)
            shape = tuple(
                max(1, round(size * old / float(new)))
                for size, old, new in zip(shape, spacing, targets, strict=False)
            )
    return tuple(shape)
