"""The transforms of a convert workflow, run over a volume and its labels; needs `medplat[ml]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat import transforms
from medplat.errors import Refused
from medplat.types import Array, Geometry, Volume

if TYPE_CHECKING:
    from medplat.commands.convert_labels import Placed
    from medplat.workflow.schema import TransformList

# These move voxels and never mix them: stored integers stay integers.
_EXACT = frozenset({
    "CenterScaleCropd", "CenterSpatialCropd", "CropForegroundd", "Flipd", "Orientationd",
    "Rotate90d", "SpatialCropd",
})  # fmt: skip
_DIRECTED = frozenset({"Orientationd"})


def apply(
    given: TransformList, volume: Volume, labels: Sequence[Placed]
) -> tuple[Volume, list[Placed]]:
    """Run the list over `image` and, one after the other, each `label`.

    Args:
        given: The workflow's transforms.
        volume: (x, y, z) or (x, y, z, t); phases become channels, values the real ones.
        labels: On the volume's grid.

    Returns:
        Volume and labels on the new grid; real values as float32, but the stored integers of up to
        16 bits where voxels were only moved.

    Raises:
        MissingExtra: MONAI is not installed.
        Refused: TRANSFORM_FAILED.
    """
    names = [name for entry in given for name in entry]
    if volume.geometry.orientation == "unknown" and _DIRECTED & set(names):
        raise Refused(
            "TRANSFORM_FAILED",
            "Orientationd needs directions, which this series does not state: leave it out",
        )
    chain = transforms.compose(given, seed=0, allow_missing_keys=True)
    moved = []
    result: dict[str, Any] = {}
    wanted: Sequence[Placed | None] = labels or [None]
    for label in wanted:
        result = _run(chain, names, _case(volume, label))
        if label is not None:
            moved.append(_moved(result["label"], label))
    array, geometry = _grid(result["image"], volume.geometry)
    whole = array[0] if volume.array.ndim == 3 else np.moveaxis(array, 0, -1)
    if _EXACT.issuperset(names) and volume.array.dtype.kind in "ui" and volume.array.itemsize <= 2:
        stored = np.rint((whole.astype(np.float64) - volume.intercept) / volume.slope)
        return replace(volume, array=stored.astype(volume.array.dtype), geometry=geometry), moved
    values = whole.astype(np.float32)
    return replace(volume, array=values, geometry=geometry, slope=1.0, intercept=0.0), moved


def _run(chain: Any, names: Sequence[str], case: dict[str, Any]) -> dict[str, Any]:
    """One transform after the other, so that the one that fails can be named."""
    for name, transform in zip(names, chain.transforms, strict=True):
        try:
            case = transform(case)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            kind = type(error).__name__
            raise Refused("TRANSFORM_FAILED", f"{name} ended with {kind}") from error
        if 0 in case["image"].shape:
            raise Refused("TRANSFORM_FAILED", f"{name} leaves no voxel of the image")
    return case


def _moved(tensor: Any, label: Placed) -> Placed:
    """The label on its new grid.

    Raises:
        Refused: TRANSFORM_FAILED where its values were mixed.
    """
    array, geometry = _grid(tensor, label.geometry)
    if not label.fraction and not np.isin(array, [0, *np.unique(label.array)]).all():
        raise Refused(
            "TRANSFORM_FAILED",
            "a transform mixed the label's values: give it mode: [bilinear, nearest]",
        )
    return replace(label, array=array[0].astype(label.array.dtype), geometry=geometry)


def _case(volume: Volume, label: Placed | None) -> dict[str, Any]:
    import torch
    from monai.data import MetaTensor

    affine = torch.as_tensor(volume.geometry.affine)
    array = volume.array.astype(np.float32) * np.float32(volume.slope) + np.float32(
        volume.intercept
    )
    channels = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    case = {"image": MetaTensor(torch.from_numpy(np.ascontiguousarray(channels)), affine=affine)}
    if label is not None:
        labels = torch.from_numpy(label.array[None].astype(np.float32))
        case["label"] = MetaTensor(labels, affine=affine)
    return case


def _grid(tensor: Any, before: Geometry) -> tuple[Array, Geometry]:
    array: Array = tensor.detach().cpu().numpy()
    affine = np.asarray(tensor.affine.detach().cpu().numpy(), dtype=np.float64)
    shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    return array, replace(before, affine=affine, shape=shape)
