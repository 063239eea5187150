"""Voxel-wise segmentation: cross-entropy plus Dice loss, Dice and surface distances per case.

Class index 0 is the background, index i the i-th of `task.labels`, whatever values the label files
hold; `to_indices` and `to_values` go from one to the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat.errors import DataError
from medplat.tasks import mean_and_count
from medplat.types import Array
from medplat.workflow.schema import SegmentTask, TrainWorkflow

if TYPE_CHECKING:
    from torch import Tensor

    from medplat.tasks import Logits, Loss

PRIMARY = "dice"


def section(workflow: TrainWorkflow) -> SegmentTask:
    """The workflow's task section, known to be of this kind."""
    if not isinstance(workflow.task, SegmentTask):
        raise TypeError(f"not a segment task: {workflow.task.kind}")
    return workflow.task


def to_indices(values: Array, task: SegmentTask, where: str = "label") -> Array:
    """Values of a label file to class indices (uint8, or uint16 beyond 255 labels).

    Raises:
        DataError: The file holds a value that the task does not name, or a fraction.
    """
    named = [label.values for label in task.labels]
    found = np.unique(values)
    named_here = found == 0
    for one in named:
        named_here |= (found >= one[0]) & (found <= one[-1]) & (found == np.floor(found))
    unknown = [f"{value:g}" for value in found[~named_here]]
    if unknown:
        known = ("-".join(dict.fromkeys(map(str, (one[0], one[-1])))) for one in named)
        raise DataError(
            f"{where}: holds the value {', '.join(unknown[:5])}, task.labels names only "
            f"0, {', '.join(known)}: add the label or mend the file"
        )
    indices = np.zeros(values.shape, dtype=_index_type(len(named) + 1))
    for index, one in enumerate(named, start=1):
        indices[(values >= one[0]) & (values <= one[-1])] = index
    return indices


def to_values(indices: Array, task: SegmentTask) -> Array:
    """Class indices back to the values of the label files (uint8, or uint16 where one is > 255)."""
    stored = [0, *(label.value for label in task.labels)]
    table = np.array(stored, dtype=np.uint8 if max(stored) < 256 else np.uint16)
    return table[indices]


def _index_type(classes: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if classes <= 256 else np.uint16


def loss(workflow: TrainWorkflow, class_counts: Sequence[int] | None = None) -> Loss:
    """Cross-entropy plus soft Dice over the foreground, case by case (MONAI's DiceCELoss).

    Deep supervision (a list of logits, largest first) is weighted 1, 1/2, 1/4 ... and normalised;
    the label is brought to each size by taking the nearest voxel.

    Args:
        workflow: The train workflow.
        class_counts: Not used: voxels are not weighted by class.
    """
    import torch
    from monai.losses import DiceCELoss

    one = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=False)

    def of(logits: Logits, batch: Mapping[str, Any]) -> Tensor:
        outputs = [logits] if isinstance(logits, torch.Tensor) else list(logits)
        weights = [0.5**level for level in range(len(outputs))]
        terms = [
            weight * one(output.float(), _label_like(batch["label"], output))
            for weight, output in zip(weights, outputs, strict=True)
        ]
        return torch.stack(terms).sum() / sum(weights)

    return of


def _label_like(label: Tensor, output: Tensor) -> Tensor:
    """The label (B, 1, *spatial) as float32 in the size of `output`."""
    from torch.nn.functional import interpolate

    label = label.float()
    if label.shape[2:] == output.shape[2:]:
        return label
    return interpolate(label, size=output.shape[2:], mode="nearest-exact")


def decode(logits: Tensor) -> Tensor:
    """(C, *spatial) logits to (*spatial) class indices, uint8 (int16 beyond 255 labels)."""
    import torch

    return logits.argmax(0).to(torch.uint8 if logits.shape[0] <= 256 else torch.int16)


def case_metrics(
    workflow: TrainWorkflow,
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float],
    *,
    distances: bool = False,
) -> dict[str, float]:
    """Dice, volumes and, if asked, surface distances of each label on the case's own grid.

    Args:
        workflow: The train workflow.
        prediction: Class indices, (x, y, z) or (x, y).
        truth: Class indices, same shape.
        spacing_mm: Voxel size along all three axes, also where the case is a single slice.
        distances: Add HD95 and the normalised surface distance at 1 mm (slow).

    Returns:
        `dice_<label>` (NaN where the truth has none of it), `volume_ml_<label>`,
        `truth_ml_<label>`, with `distances` also `hd95_mm_<label>` and `nsd_1mm_<label>`
        (NaN where either side has none of it).
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    voxel_ml = float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0
    metrics: dict[str, float] = {}
    for index, label in enumerate(section(workflow).labels, start=1):
        ours, theirs = prediction == index, truth == index
        metrics[f"dice_{label.name}"] = _dice(ours, theirs)
        metrics[f"volume_ml_{label.name}"] = float(ours.sum()) * voxel_ml
        metrics[f"truth_ml_{label.name}"] = float(theirs.sum()) * voxel_ml
        if distances:
            hd95, nsd = _surface(ours, theirs, spacing_mm[: truth.ndim])
            metrics[f"hd95_mm_{label.name}"] = hd95
            metrics[f"nsd_1mm_{label.name}"] = nsd
    return metrics


def _dice(ours: Array, theirs: Array) -> float:
    import torch
    from monai.metrics import compute_dice

    pair = [torch.from_numpy(np.ascontiguousarray(side))[None, None] for side in (ours, theirs)]
    return float(compute_dice(*pair, include_background=True, ignore_empty=True))


def _surface(ours: Array, theirs: Array, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """HD95 in mm and the share of both surfaces within 1 mm of one another."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if not ours.any() or not theirs.any():
        return float("nan"), float("nan")
    pair = [torch.from_numpy(np.ascontiguousarray(side))[None, None] for side in (ours, theirs)]
    spacing = [float(value) for value in spacing_mm]
    options = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls what it has deprecated itself
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
        nsd = compute_surface_dice(*pair, [1.0], **options)
    return float(hd95), float(nsd)


def summary(workflow: TrainWorkflow, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over the cases where it is defined, with that number as `_n`.

    `dice` is the mean of the labels' mean Dice; a label that is defined in no case is left out.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    result: dict[str, float] = {}
    for name in names:
        value, count = mean_and_count(rows, name)
        result[name] = value
        if name.startswith(("dice_", "hd95_mm_", "nsd_1mm_")):
            result[f"{name}_n"] = float(count)
    dices = [result.get(f"dice_{label.name}", float("nan")) for label in section(workflow).labels]
    defined = [value for value in dices if value == value]
    result["dice"] = sum(defined) / len(defined) if defined else float("nan")
    return result
