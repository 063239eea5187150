"""From the model's grid to the source's own: logits to class indices, or values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medplat.loaders import real_values
from medplat.types import Affine, Array, Geometry, Volume

if TYPE_CHECKING:
    from torch import Tensor

SLAB = 1 << 23  # voxels of the source resampled at a time
_EXACT = 0.01  # of a voxel, at the corners: grids nearer than this are one


def restore(logits: Tensor, affine: Affine, geometry: Geometry) -> Array:
    """Bring a prediction back to where the images came from.

    Each class is interpolated linearly and the highest wins; where the two grids differ by whole
    voxels, flips or axis order only, nothing is interpolated. What the model's grid does not cover
    is background.

    Args:
        logits: (C, *spatial), 2 or 3 dimensions.
        affine: (4, 4), voxel of the logits to RAS+ mm.
        geometry: The source's own grid.

    Returns:
        (x, y, z) of `geometry`: class indices, uint8 (uint16 beyond 256 classes).
    """
    values = logits.detach().cpu().numpy()
    if values.ndim == 3:
        values = values[..., None]
    into = np.linalg.inv(np.asarray(affine, np.float64)) @ geometry.affine
    dtype = np.uint8 if values.shape[0] <= 256 else np.uint16
    turn = _whole_steps(into, geometry.shape)
    if turn is not None:
        return _moved(values.argmax(0).astype(dtype), turn, geometry.shape)
    labels = np.zeros(geometry.shape, dtype)
    depth = max(1, SLAB // max(1, geometry.shape[0] * geometry.shape[1]))
    for start in range(0, geometry.shape[2], depth):
        part = labels[:, :, start : start + depth]
        shifted = into.copy()
        shifted[:3, 3] += into[:3, 2] * start
        part[...] = _highest(values, shifted, part.shape, dtype)
    return labels


def restore_values(values: Array, affine: Affine, source: Volume) -> Array:
    """Bring an image back to where it came from; what it does not cover keeps the source's values.

    Args:
        values: (C, x, y, z) on the model's grid.
        affine: (4, 4), voxel of it to RAS+ mm.
        source: The volume that was restored, on the grid that the result is to have.

    Returns:
        (C, x, y, z) float32 on the source's grid.
    """
    geometry = source.geometry
    into = np.linalg.inv(np.asarray(affine, np.float64)) @ geometry.affine
    found = real_values(source, len(values))
    covered = _covered(into, geometry.shape, values.shape[1:])
    turn = _whole_steps(into, geometry.shape)
    for channel, kept in zip(values, found, strict=True):
        if turn is not None:
            here = _moved(channel, turn, geometry.shape)
        else:
            here = _interpolated(channel, into, geometry.shape)
        kept[covered] = here[covered]
    return found


def _interpolated(channel: Array, into: Affine, shape: tuple[int, ...]) -> Array:
    from scipy.ndimage import affine_transform

    here: Array = affine_transform(
        channel,
        into[:3, :3],
        offset=into[:3, 3],
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="nearest",
    )
    return here


def _whole_steps(into: Affine, shape: tuple[int, int, int]) -> Affine | None:
    """`into` rounded, where it is a signed permutation and a whole shift within the tolerance."""
    rounded = np.rint(into)
    turn = np.abs(rounded[:3, :3])
    if not ((turn.sum(0) == 1).all() and (turn.sum(1) == 1).all()):
        return None
    ends = np.array(np.meshgrid(*[(0, size - 1) for size in shape])).reshape(3, -1)
    off = (into - rounded)[:3] @ np.vstack([ends, np.ones(ends.shape[1])])
    return rounded if np.abs(off).max() <= _EXACT else None


def _moved(labels: Array, turn: Affine, shape: tuple[int, int, int]) -> Array:
    """Labels of the model's grid by index: source index s lies at `turn @ s`."""
    axes = [int(np.abs(turn[:3, axis]).argmax()) for axis in range(3)]
    found = labels.transpose(axes)
    result = np.zeros(shape, labels.dtype)
    ours, theirs = [], []
    for axis, old in enumerate(axes):
        shift = int(turn[old, 3])
        size = found.shape[axis]
        if turn[old, axis] < 0:
            found = np.flip(found, axis)
            shift = size - 1 - shift
        first, last = max(0, -shift), min(shape[axis], size - shift)
        ours.append(slice(first, max(first, last)))
        theirs.append(slice(first + shift, max(first, last) + shift))
    result[tuple(ours)] = found[tuple(theirs)]
    return result


def _highest(values: Array, into: Affine, shape: tuple[int, ...], dtype: type) -> Array:
    best = np.full(shape, -np.inf, np.float32)
    labels: Array = np.zeros(shape, dtype)
    for index, channel in enumerate(values):
        here = _interpolated(channel, into, shape)
        higher = here > best
        best[higher] = here[higher]
        labels[higher] = index
    labels[~_covered(into, shape, values.shape[1:])] = 0
    return labels


def _covered(into: Affine, shape: tuple[int, ...], size: tuple[int, ...]) -> Array:
    """Voxels whose centre lies inside the model's grid, its outer voxels taken whole."""
    inside = np.ones(shape, np.bool_)
    steps = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for axis in range(3):
        at = sum(into[axis, other] * steps[other] for other in range(3)) + into[axis, 3]
        inside &= (at >= -0.5 - _EXACT) & (at <= size[axis] - 0.5 + _EXACT)
    return inside
