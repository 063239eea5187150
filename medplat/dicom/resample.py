"""Sheared and unevenly spaced stacks on a regular grid: only where a person asks for it.

Every slice is moved in its plane to where it lies (linear, SimpleITK), then neighbouring slices are
blended linearly along the normal. Nothing is extrapolated along the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medplat.dicom import geometry
from medplat.dicom.geometry import Plane, Slot
from medplat.errors import Refused
from medplat.types import Array, Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST_GROWTH = 4
_SLACK = 1e-3


@dataclass(frozen=True, eq=False)
class Regrid:
    """How the slices of a stack come onto the regular grid.

    Attributes:
        steps: (N,) where each slice lies along the normal, in steps of the new grid from its first
            plane.
        shifts: (N, 2) columns and rows of the new grid at which each slice begins.
        target: The new grid.
    """

    steps: Array
    shifts: Array
    target: Geometry


def regrid(slots: Sequence[Slot], plane: Plane, matrix: tuple[int, int]) -> Regrid:
    """The regular grid for a stack: its own directions, the median gap, room for every slice.

    Args:
        slots: Positions along the normal.
        plane: Of the stack.
        matrix: Columns and rows.

    Raises:
        Refused: UNEVEN_SPACING or SHEARED where the grid would be more than four times as large as
            the stack in one direction: it would hold little but invention.
    """
    places = np.array([slot.place for slot in slots])
    along = np.array([slot.distance for slot in slots]) - slots[0].distance
    gap = float(np.median(np.diff(along)))
    count = int(along[-1] / gap + _SLACK) + 1
    offsets = places - places[0] - along[:, None] * plane.normal
    shifts = np.stack(
        [offsets @ plane.row / plane.spacing[1], offsets @ plane.column / plane.spacing[0]], axis=1
    )
    shifts[np.abs(shifts).max(axis=1) < _SLACK] = 0
    first = np.floor(shifts.min(axis=0))
    size = np.array(matrix) + np.ceil(shifts.max(axis=0) - first).astype(int)
    _check_growth("UNEVEN_SPACING", count, len(slots))
    _check_growth("SHEARED", int((size / matrix).max() * 100), 100)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = plane.row * plane.spacing[1], plane.column * plane.spacing[0]
    lps[:3, 2] = plane.normal * gap
    lps[:3, 3] = places[0] + lps[:3, :2] @ first
    target = Geometry(geometry.LPS_TO_RAS @ lps, (int(size[0]), int(size[1]), count))
    return Regrid(along / gap, shifts - first, target)


def _check_growth(code: str, wanted: int, there: int) -> None:
    if wanted > _LARGEST_GROWTH * there:
        text = "it cannot be resampled: a regular grid would be more than four times as large"
        raise Refused(code, text)


def apply(volume: Volume, how: Regrid) -> Volume:
    """Bring a volume, whose slices lie as `how` says, onto its regular grid.

    Args:
        volume: (x, y, N) or (x, y, N, t); its geometry does not count.
        how: From `regrid`.

    Returns:
        float32 stored values; voxels that no slice covers hold the smallest stored value.
    """
    array = volume.array if volume.array.ndim == 4 else volume.array[..., np.newaxis]
    outside = float(array.min())
    found = np.empty((*how.target.shape, array.shape[3]), np.float32, order="F")
    for t in range(array.shape[3]):
        for z, plane in enumerate(_planes(array[..., t], how, outside)):
            found[:, :, z, t] = plane
    whole = found if volume.array.ndim == 4 else found[..., 0]
    target = replace(how.target, frame_of_reference_uid=volume.geometry.frame_of_reference_uid)
    return replace(volume, array=whole, geometry=target)


def _planes(stack: Array, how: Regrid, outside: float) -> Iterator[Array]:
    """The planes of the new grid from first to last; each slice is moved once."""
    moved: dict[int, Array] = {}
    for z in range(how.target.shape[2]):
        above = min(int(np.searchsorted(how.steps, z - _SLACK)), len(how.steps) - 1)
        below = max(above - 1, 0)
        for index in (below, above):
            if index not in moved:
                moved[index] = _moved(stack[:, :, index], how, index, outside)
        moved = {index: moved[index] for index in (below, above)}
        gap = how.steps[above] - how.steps[below]
        share = float(np.clip((z - how.steps[below]) / gap, 0, 1)) if gap > 0 else 1.0
        yield (1 - share) * moved[below] + share * moved[above]


def _moved(plane: Array, how: Regrid, index: int, outside: float) -> Array:
    """A slice on the new grid's columns and rows."""
    columns, rows = how.target.shape[:2]
    shift = how.shifts[index]
    if not shift.any() and plane.shape == (columns, rows):
        return plane.astype(np.float64)
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(plane.T.astype(np.float64))
    transform = sitk.TranslationTransform(2, (-shift).tolist())
    linear = sitk.sitkLinear
    placed = sitk.Resample(
        image, (columns, rows), transform, linear, (0.0, 0.0), (1.0, 1.0), (1.0, 0.0, 0.0, 1.0),
        outside, sitk.sitkFloat64,
    )  # fmt: skip
    return np.asarray(sitk.GetArrayFromImage(placed).T)
