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


def apply(
    given: TransformList, volume: Volume, labels: Sequence[Placed]
) -> tuple[Volume, list[Placed]]:
    """Run the list over `image` and, one after the other, each `label`.

    Args:
        given: The workflow's transforms.
        volume: (x, y, z) or (x, y, z, t); phases become channels, values the real ones.
        labels: On the volume's grid.

    Returns:
        float32 volume and labels on the new grid.

    Raises:
        MissingExtra: MONAI is not installed.
        Refused: TRANSFORM_FAILED.
    """
    chain = transforms.compose(given, seed=0, allow_missing_keys=True)
    moved = []
    result: dict[str, Any] = {}
    wanted: Sequence[Placed | None] = labels or [None]
    for label in wanted:
        try:
            result = chain(_case(volume, label))
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            kind = type(error).__name__
            raise Refused("TRANSFORM_FAILED", f"a transform ended with {kind}") from error
        if label is not None:
            array, geometry = _grid(result["label"], label.geometry)
            back = array[0].astype(label.array.dtype)
            moved.append(replace(label, array=back, geometry=geometry))
    array, geometry = _grid(result["image"], volume.geometry)
    whole = array[0] if volume.array.ndim == 3 else np.moveaxis(array, 0, -1)
    return (
        Volume(
            whole.astype(np.float32),
            geometry,
            phase_times_s=volume.phase_times_s,
            metadata=volume.metadata,
        ),
        moved,
    )


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
