"""An image out of a degraded one: mean absolute error; PSNR and SSIM, also of the input.

The network sees values on a scale where 0 and 1 are the ends of `task.range`, or of the input
image's own range; what is measured and written is in the image's own values again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat.errors import WorkflowError
from medplat.tasks import mean_and_count
from medplat.types import Affine, Array, Task
from medplat.workflow.schema import RestoreTask, TrainWorkflow

if TYPE_CHECKING:
    from torch import Tensor

    from medplat.tasks import Logits, Loss

PRIMARY = "psnr"
WINDOW = 11  # voxels of SSIM's Gaussian window; Wang et al. 2004, doi 10.1109/TIP.2003.819861
PERCENTILES = (0.5, 99.5)
SPATIAL = frozenset(
    ("Affined", "BorderPadd", "CenterScaleCropd", "CenterSpatialCropd", "DivisiblePadd", "Flipd",
     "Orientationd", "ResizeWithPadOrCropd", "Resized", "Rotate90d", "Rotated", "Spacingd",
     "SpatialCropd", "SpatialPadd", "Zoomd")
)  # fmt: skip
"""Transforms that a restore workflow may hold: those that leave the values alone."""


def section(workflow: TrainWorkflow) -> RestoreTask:
    """The workflow's task section, known to be of this kind."""
    if not isinstance(workflow.task, RestoreTask):
        raise TypeError(f"not a restore task: {workflow.task.kind}")
    return workflow.task


def require_same_grid(task: Task, name: str) -> None:
    """Refuse tasks whose output has other channels or another size than the input.

    Raises:
        WorkflowError: It is such a task.
    """
    if task.in_channels != task.out_channels or task.upscale != 1:
        raise WorkflowError(
            [
                f"model: {name} gives back the channels and the size that it gets, here "
                f"{task.in_channels} channels; {task.out_channels} channels, "
                f"{task.upscale} times as large, are asked for"
            ]
        )


def value_range(values: Any, task: RestoreTask) -> tuple[float, float]:
    """The values that become 0 and 1: `task.range`, or the percentiles of this input image."""
    if task.range is not None:
        return task.range
    low, high = np.percentile(np.asarray(values), PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def to_scale(values: Any, ends: tuple[float, float]) -> Any:
    """Values to the network's scale; none is clipped. Arrays and tensors alike."""
    return (values - ends[0]) / (ends[1] - ends[0])


def finer(affine: Affine, upscale: int, dims: int) -> Affine:
    """The affine (4, 4) of the grid with `upscale` voxels for one, along the first `dims` axes."""
    step = np.eye(4)
    for axis in range(dims):
        step[axis, axis] = 1 / upscale
        step[axis, 3] = (1 / upscale - 1) / 2
    return np.asarray(affine @ step, dtype=np.float64)


def from_scale(values: Any, ends: tuple[float, float]) -> Any:
    """Back to the image's own values."""
    return values * (ends[1] - ends[0]) + ends[0]


def loss(workflow: TrainWorkflow, class_counts: Sequence[int] | None = None) -> Loss:
    """Mean absolute difference to `reference`, on the network's scale.

    Args:
        workflow: The train workflow.
        class_counts: Not used.
    """
    import torch

    def of(logits: Logits, batch: Mapping[str, Any]) -> Tensor:
        first = logits if isinstance(logits, torch.Tensor) else logits[0]
        reference: Tensor = batch["reference"].float()
        return (first.float() - reference).abs().mean()

    return of


def decode(logits: Tensor) -> Tensor:
    """(C, *spatial) on the network's scale, float32; `from_scale` makes values of it."""
    return logits.float()


def case_metrics(
    workflow: TrainWorkflow,
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float] = (),
    *,
    distances: bool = False,
) -> dict[str, float]:
    """How near the restored image, and the input as it came, are to the reference.

    The data range of PSNR and SSIM is `task.range`, else from the least to the largest value of
    the reference. SSIM of a 2-D task is the mean over the slices.

    Args:
        workflow: The train workflow.
        prediction: (2, C, x, y, z) values: the restored image, then the input on the same grid.
        truth: (C, x, y, z) values of the reference.
        spacing_mm: Not used.
        distances: Not used.

    Returns:
        `psnr`, `ssim`, `mae`; `psnr_input`, `ssim_input`, `mae_input`.
    """
    task = section(workflow)
    low, high = task.range or (float(truth.min()), float(truth.max()))
    metrics: dict[str, float] = {}
    for image, suffix in zip(prediction, ("", "_input"), strict=True):
        found = _similarity(image, truth, (low, high), task.spatial_dims)
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def _similarity(
    image: Array, truth: Array, ends: tuple[float, float], dims: int
) -> dict[str, float]:
    """PSNR in dB, SSIM and the mean absolute error; NaN where the reference is of one value."""
    import torch
    from monai.metrics.regression import PSNRMetric, SSIMMetric

    mae = float(np.abs(image.astype(np.float64) - truth).mean())
    if not ends[1] > ends[0]:
        return {"psnr": float("nan"), "ssim": float("nan"), "mae": mae}
    ours, theirs = (
        to_scale(torch.from_numpy(np.ascontiguousarray(one, np.float64)), ends)
        for one in (image, truth)
    )
    # MONAI's PSNR is a mean over the batch's cases: the whole volume is one.
    psnr = float(PSNRMetric(max_val=1.0)(ours[None], theirs[None]))
    if dims == 2:
        ours, theirs = (one.permute(3, 0, 1, 2) for one in (ours, theirs))
    else:
        ours, theirs = ours[None], theirs[None]
    window = min(WINDOW, *ours.shape[2:])
    if window < 3:
        return {"psnr": psnr, "ssim": float("nan"), "mae": mae}
    metric = SSIMMetric(spatial_dims=dims, data_range=1.0, win_size=window - 1 + window % 2)
    return {"psnr": psnr, "ssim": float(metric(ours, theirs).mean()), "mae": mae}


def summary(workflow: TrainWorkflow, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over the cases where it is defined, with the number of cases as `n`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    result = {name: mean_and_count(rows, name)[0] for name in names}
    return {"n": float(len(rows)), "psnr": float("nan")} | result
