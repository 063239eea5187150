"""A drawing on a series, whatever tool made it, and its way onto the grid of that series.

Nothing is resampled: a drawing lies on the grid exactly, or it is refused by name (specs section
11, labels in).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from medplat.errors import Refused
from medplat.types import Affine, Array, Geometry
from medplat.workflow.schema import Code

CORNER_MM = 1e-3
_WORLD = ("left-right", "back-front", "down-up")


class Segment(NamedTuple):
    """One structure of a label volume."""

    value: int
    name: str
    code: Code | None


@dataclass(frozen=True, eq=False)
class LabelVolume:
    """A drawing as one label volume on a grid of its own; see `onto`.

    Attributes:
        array: (x, y, z) of whole numbers, or float32 from 0 to 1 where `fraction` is given.
        affine: Voxel index to RAS+ mm.
        segments: What the values mean, background left out.
        referenced_series_uid: The series it was drawn on; None where not stated.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: DICOM (0020,0052).
        padding: Value of voxels that were left out; 0 but in rare label maps.
        fraction: What a value between 0 and 1 is: "PROBABILITY", "OCCUPANCY"; "" for a label map.
        cropped: Axes along which it may hold a part of the grid only.
        offset: Where the part begins on the whole grid, if the file says so.
        turned: Axes that run the other way than the series' are put right, since the affine of an
            image file says which; frames of a DICOM SEG must run as their source does.
    """

    array: Array
    affine: Affine
    segments: tuple[Segment, ...]
    referenced_series_uid: str | None = None
    study_uid: str = ""
    frame_of_reference_uid: str | None = None
    padding: int = 0
    fraction: str = ""
    cropped: tuple[bool, bool, bool] = (False, False, False)
    offset: tuple[int, int, int] | None = None
    turned: bool = False


class _Fit(NamedTuple):
    """How a grid lies on another: whole-number turn and shift, what is left over in mm."""

    turn: Array
    shift: Array
    off_mm: float


def fitting(volume: LabelVolume, geometry: Geometry) -> bool:
    """Whether the label lies on the grid of a series (its values are not looked at)."""
    return _whole(volume, _fit(volume.affine, volume.array.shape, geometry), geometry)


def onto(volume: LabelVolume, geometry: Geometry) -> tuple[Array, bool]:
    """The labels on the grid of a series.

    Args:
        volume: The drawing.
        geometry: Grid of the series.

    Returns:
        (x, y, z) of `geometry`, what is not stored being 0; and whether an axis was reversed.

    Raises:
        Refused: LABEL_GRID_MISMATCH, LABEL_FLIPPED or LABEL_OUTSIDE (a corner off by more than
            1e-3 mm or another shape, an axis reversed, a labelled voxel outside).
    """
    here = _fit(volume.affine, volume.array.shape, geometry)
    aligned = here.off_mm <= CORNER_MM
    inside, lost = _laid(volume, here, geometry) if aligned else (None, 0)
    if inside is not None and _whole(volume, here, geometry):
        flipped = bool((here.turn < 0).any())
        if flipped and not volume.turned:
            raise Refused(
                "LABEL_FLIPPED", "the label fits its series only after an axis is reversed"
            )
        return inside, flipped
    for how, affine in _mirrored(volume.affine):
        other = _fit(affine, volume.array.shape, geometry)
        if not _whole(volume, other, geometry):
            continue
        if inside is None or not inside.any() or _telling(volume, here, other):
            raise Refused("LABEL_FLIPPED", f"the label fits its series only if {how} is reversed")
    if lost and _same_shape(volume, here, geometry):
        raise Refused("LABEL_OUTSIDE", f"{lost} voxels of the label lie outside its series")
    how = f"shifted by {_shown(here)}" if aligned else f"off by {here.off_mm:.3g} mm"
    raise Refused(
        "LABEL_GRID_MISMATCH",
        f"the label's grid {volume.array.shape} is not that of its series {geometry.shape} ({how})",
    )


def _shown(fit: _Fit) -> str:
    return ", ".join(str(int(one)) for one in fit.shift) + " voxels"


def _telling(volume: LabelVolume, one: _Fit, other: _Fit) -> bool:
    """Whether two ways to lie differ only along axes on which the label has a known place."""
    differ = np.flatnonzero((one.turn != other.turn).any(axis=1))
    axes = np.abs(other.turn).argmax(axis=1)[differ]
    return any(volume.offset or ()) or not np.asarray(volume.cropped)[axes].any()


def _fit(affine: Affine, shape: Sequence[int], geometry: Geometry) -> _Fit:
    into = np.linalg.inv(geometry.affine) @ _stepped(affine, shape, geometry)
    turn, shift = np.rint(into[:3, :3]), np.rint(into[:3, 3])
    corners = _corners(shape)
    rest = corners @ (into[:3, :3] - turn).T + into[:3, 3] - shift
    off = float(np.linalg.norm(rest @ geometry.affine[:3, :3].T, axis=1).max())
    if not _permutes(turn):
        lost = np.abs(np.linalg.norm(affine[:3, :3], axis=0)).max() * max(shape)
        return _Fit(turn, shift, max(off, float(lost)))
    return _Fit(turn, shift, off)


def _stepped(affine: Affine, shape: Sequence[int], geometry: Geometry) -> Affine:
    """The affine with the series' step along axes of one voxel, where a label's own says nothing.

    A segmentation of a single frame has the slice's thickness, not the distance to the next.
    """
    found, grid = affine.copy(), geometry.affine[:3, :3]
    for axis in (axis for axis, size in enumerate(shape[:3]) if size == 1):
        along = affine[:3, axis] @ grid / np.linalg.norm(grid, axis=0)
        nearest = int(np.abs(along).argmax())
        found[:3, axis] = grid[:, nearest] * np.sign(along[nearest])
    return found


def _permutes(turn: Array) -> bool:
    ones = np.abs(turn)
    return bool((ones.sum(axis=0) == 1).all() and (ones.sum(axis=1) == 1).all())


def _corners(shape: Sequence[int]) -> Array:
    return np.array(list(product(*((0, size - 1) for size in shape))), np.float64)


def _low(fit: _Fit, shape: Sequence[int]) -> Array:
    """The lowest index of the series' grid that the label's grid reaches."""
    return np.asarray((_corners(shape) @ fit.turn.T + fit.shift).min(axis=0).astype(int))


def _sizes(volume: LabelVolume, fit: _Fit) -> tuple[Array, Array, Array]:
    """By axis of the series: the label's axis, its size there, and whether it may be a part."""
    axes = np.abs(fit.turn).argmax(axis=1)
    return axes, np.array(volume.array.shape)[axes], np.array(volume.cropped)[axes]


def _same_shape(volume: LabelVolume, fit: _Fit, geometry: Geometry) -> bool:
    _, sizes, cropped = _sizes(volume, fit)
    return bool(((sizes == geometry.shape) | cropped).all())


def _whole(volume: LabelVolume, fit: _Fit, geometry: Geometry) -> bool:
    """Whether the label covers the grid, or the part of it that the format may leave out."""
    if not fit.off_mm <= CORNER_MM or not _same_shape(volume, fit, geometry):
        return False
    axes, sizes, cropped = _sizes(volume, fit)
    low = _low(fit, volume.array.shape)
    if any(volume.offset or ()):
        stated = np.array(volume.offset)[axes]
        reversed_ = fit.turn.min(axis=1) < 0
        return bool((low == np.where(reversed_, geometry.shape - stated - sizes, stated)).all())
    inside = (low >= 0) & (low + sizes <= geometry.shape)
    return bool(np.where(cropped, inside, low == 0).all())


def _laid(volume: LabelVolume, fit: _Fit, geometry: Geometry) -> tuple[Array, int]:
    """The label on the grid, and how many labelled voxels found no place there."""
    labels = volume.array
    if volume.padding:
        labels = np.where(labels == volume.padding, 0, labels)
    axes = [int(one) for one in np.abs(fit.turn).argmax(axis=1)]
    turned = labels.transpose(axes)
    turned = turned[tuple(slice(None, None, -1 if row.min() < 0 else 1) for row in fit.turn)]
    low = _low(fit, labels.shape)
    first = np.clip(low, 0, geometry.shape)
    last = np.clip(low + turned.shape, 0, geometry.shape)
    there = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    taken = turned[tuple(slice(a - c, b - c) for a, b, c in zip(first, last, low, strict=True))]
    whole = np.zeros(geometry.shape, labels.dtype)
    whole[there] = taken
    return whole, int(np.count_nonzero(labels) - np.count_nonzero(taken))


def _mirrored(affine: Affine) -> Iterator[tuple[str, Affine]]:
    """The affines that a tool would have written with a sign wrong."""
    for axis in range(3):
        signs = np.ones(4)
        signs[axis] = -1
        yield f"axis {'xyz'[axis]}", affine * signs
    for flips in product((1.0, -1.0), repeat=3):
        if min(flips) < 0:
            names = [name for name, sign in zip(_WORLD, flips, strict=True) if sign < 0]
            yield f"the {' and '.join(names)} direction", np.diag([*flips, 1.0]) @ affine


def merged(
    layers: Sequence[tuple[Array, Mapping[int, Segment]]],
) -> tuple[Array, tuple[Segment, ...]]:
    """Put layers that each hold some segments into one label map.

    Args:
        layers: For each, (x, y, z) and its segments by stored value; `Segment.value` is what the
            label map shall hold.

    Raises:
        Refused: LABEL_OVERLAP where a voxel lies in two segments, LABEL_UNKNOWN_VALUE where a
            stored value has no segment.
    """
    segments = tuple(one for _, known in layers for one in known.values())
    highest = max((one.value for one in segments), default=0)
    dtype = np.min_scalar_type(max(highest, 1))
    whole = np.zeros(layers[0][0].shape, dtype)
    for array, known in layers:
        check_values(array, known)
        for value, segment in known.items():
            inside = array == value
            taken = whole[inside]
            if taken.any():
                raise overlap(segments, {segment.value, *taken[taken > 0].tolist()})
            whole[inside] = segment.value
    return whole, segments


def overlap(segments: Sequence[Segment], values: Set[int]) -> Refused:
    """The refusal of a label in which segments of these values share a voxel."""
    numbers = " and ".join(str(one.value) for one in segments if one.value in values)
    text = f"structures {numbers} of {len(segments)} share voxels"
    return Refused("LABEL_OVERLAP", f"{text}: the decision split-label writes a file for each")


def check_values(array: Array, known: Mapping[int, object], padding: int = 0) -> None:
    """Make sure that every value has a name.

    Raises:
        Refused: LABEL_UNKNOWN_VALUE.
    """
    unknown = sorted(set(np.unique(array).tolist()) - {0, padding, *known})
    if unknown:
        shown = ", ".join(f"{one:g}" for one in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise Refused("LABEL_UNKNOWN_VALUE", f"the label holds values without a name: [{shown}]")


def fractions(volume: LabelVolume) -> list[LabelVolume]:
    """One volume a segment where the values are fractions: `array` is then (x, y, z, segment)."""
    if not volume.fraction:
        return [volume]
    return [
        replace(volume, array=volume.array[..., at], segments=(segment,))
        for at, segment in enumerate(volume.segments)
    ]
