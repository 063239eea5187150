"""DICOM SEG objects in, as label volumes; `medplat.dicom.seg` is the public face.

Frames are placed by their own positions (PS3.3 C.7.6.16.2.3, C.8.20.2), never by their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from medplat.errors import Refused
from medplat.types import Affine, Array, Geometry
from medplat.workflow.schema import Code

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_BACKGROUND = ("125040", "DCM")
_CLOSE_MM = 0.01
_CORNER_MM = 1e-3


class Segment(NamedTuple):
    """One structure of a label volume."""

    value: int
    name: str
    code: Code | None


@dataclass(frozen=True, eq=False)
class SegVolume:
    """A DICOM SEG as one label volume; it spans the stored frames only, see `onto`.

    Attributes:
        array: (x, y, z) uint8 or uint16; slices along the normal, holes filled with `padding`.
        affine: Voxel index to RAS+ mm.
        segments: What the values mean, background left out.
        referenced_series_uid: The series it was drawn on; None where not stated.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: DICOM (0020,0052).
        padding: Value of voxels whose frame was left out; 0 but in rare label maps.
    """

    array: Array
    affine: Affine
    segments: tuple[Segment, ...]
    referenced_series_uid: str | None = None
    study_uid: str = ""
    frame_of_reference_uid: str | None = None
    padding: int = 0


class _Frame(NamedTuple):
    position: Array
    orientation: Array
    spacing: tuple[float, float]
    segment: int | None
    pixels: Array


def read(path: Path | BinaryIO) -> SegVolume:
    """Read a BINARY or LABELMAP segmentation as one label volume.

    Args:
        path: A DICOM SEG file, or one that is open.

    Raises:
        Refused: NOT_IMAGE where it is no SEG or a tiled or fractional one, NO_GEOMETRY,
            MIXED_ORIENTATION or UNEVEN_SPACING where its frames make no volume, LABEL_OVERLAP where
            a voxel lies in two segments, LABEL_UNKNOWN_VALUE where a value has no segment.
    """
    import pydicom

    return from_dataset(pydicom.dcmread(path))


def referenced(path: Path | BinaryIO) -> str | None:
    """The one series that a segmentation names as its source, read without its pixels."""
    import pydicom

    return _referenced(pydicom.dcmread(path, stop_before_pixels=True))


def from_dataset(dataset: Dataset) -> SegVolume:
    """As `read`, of an open data set."""
    kind = str(dataset.get("SegmentationType", ""))
    if kind not in ("BINARY", "LABELMAP"):
        raise Refused("NOT_IMAGE", f"a segmentation of type {kind or 'none'} is not read as labels")
    if dataset.get("DimensionOrganizationType") == "TILED_FULL":
        raise Refused("NOT_IMAGE", "a tiled segmentation (microscopy) is not read as labels")
    frames = _frames(dataset, kind)
    affine, at = _place(frames, _stated_step(dataset))
    segments = _segments(dataset)
    padding = int(dataset.get("PixelPaddingValue") or 0) if kind == "LABELMAP" else 0
    array = _fill(frames, at, padding, max([padding, *(one.value for one in segments)]))
    known = {0, padding, *(one.value for one in segments)}
    unknown = set(np.unique(array).tolist()) - known
    if unknown:
        raise Refused(
            "LABEL_UNKNOWN_VALUE",
            f"the segmentation holds values without a segment: {sorted(unknown)}",
        )
    return SegVolume(
        array=array,
        affine=affine,
        segments=segments,
        referenced_series_uid=_referenced(dataset),
        study_uid=str(dataset.get("StudyInstanceUID", "")),
        frame_of_reference_uid=dataset.get("FrameOfReferenceUID") or None,
        padding=padding,
    )


def onto(volume: SegVolume, geometry: Geometry) -> Array:
    """The labels on the grid of a series: (x, y, z) of `geometry`, what is not stored being 0.

    Raises:
        Refused: LABEL_GRID_MISMATCH, LABEL_FLIPPED or LABEL_OUTSIDE (a corner off by more
            than 1e-3 mm, an axis reversed, a labelled voxel outside).
    """
    into = np.linalg.inv(geometry.affine) @ volume.affine
    turn, shift = np.rint(into[:3, :3]), np.rint(into[:3, 3])
    corners = _corners(volume.array.shape)
    moved = corners @ turn.T + shift
    off = (corners @ into[:3, :3].T + into[:3, 3] - moved) @ geometry.affine[:3, :3].T
    worst = float(np.abs(np.linalg.norm(off, axis=1)).max())
    diagonal = np.array_equal(np.abs(turn), np.eye(3))
    in_plane = volume.array.shape[:2] == geometry.shape[:2]
    if worst > _CORNER_MM or not diagonal or not in_plane:
        raise Refused(
            "LABEL_GRID_MISMATCH",
            f"the label's grid {volume.array.shape} is not a part of the series' grid "
            f"{geometry.shape} (corners off by {worst:.3g} mm)",
        )
    if not np.array_equal(turn, np.eye(3)):
        raise Refused("LABEL_FLIPPED", "the label fits its series only after an axis is reversed")
    labels = (
        np.where(volume.array == volume.padding, 0, volume.array)
        if volume.padding
        else volume.array
    )
    first = int(shift[2])
    stay = [k for k in range(labels.shape[2]) if 0 <= first + k < geometry.shape[2]]
    lost = np.delete(labels, stay, axis=2)
    if lost.any() or shift[0] or shift[1]:
        raise Refused("LABEL_OUTSIDE", "the label reaches outside the grid of its series")
    whole = np.zeros(geometry.shape, labels.dtype)
    whole[:, :, [first + k for k in stay]] = labels[:, :, stay]
    return whole


def _corners(shape: Sequence[int]) -> Array:
    ends = [(0, size - 1) for size in shape]
    return np.array([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]], np.float64)


def _frames(dataset: Dataset, kind: str) -> list[_Frame]:
    pixels = dataset.pixel_array
    if pixels.ndim == 2:
        pixels = pixels[np.newaxis]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frames = []
    for own, plane in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        try:
            position = _macro(own, shared, "PlanePositionSequence").ImagePositionPatient
            orientation = _macro(own, shared, "PlaneOrientationSequence").ImageOrientationPatient
            rows, columns = _macro(own, shared, "PixelMeasuresSequence").PixelSpacing
        except (AttributeError, TypeError, IndexError) as error:
            raise Refused(
                "NO_GEOMETRY", "the segmentation states no position, orientation or spacing"
            ) from error
        number = None
        if kind == "BINARY":
            sequence = _macro(own, shared, "SegmentIdentificationSequence")
            number = int(sequence.ReferencedSegmentNumber)
        frames.append(
            _Frame(
                np.array(position, np.float64),
                np.array(orientation, np.float64),
                (float(rows), float(columns)),
                number,
                plane,
            )
        )
    return frames


def _macro(own: Dataset, shared: Dataset, keyword: str) -> Any:
    return (own.get(keyword) or shared.get(keyword))[0]


def _stated_step(dataset: Dataset) -> float | None:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    first = dataset.PerFrameFunctionalGroupsSequence[0]
    measures = _macro(first, shared, "PixelMeasuresSequence")
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if measures.get(keyword):
            return float(measures.get(keyword))
    return None


def _place(frames: Sequence[_Frame], stated: float | None) -> tuple[Affine, list[int]]:
    """The affine of the volume that holds all frames, and the slice index of each frame."""
    first = frames[0]
    if any(np.abs(one.orientation - first.orientation).max() > 1e-4 for one in frames):
        raise Refused("MIXED_ORIENTATION", "the frames of the segmentation lie in several planes")
    along_row, along_column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(along_row, along_column)
    heights = np.array([one.position @ normal for one in frames])
    levels = np.sort(heights)
    levels = levels[np.r_[True, np.diff(levels) > _CLOSE_MM]]
    step, indices = _steps(levels, stated)
    at = [int(indices[int(np.abs(levels - height).argmin())]) for height in heights]
    low, high = frames[int(heights.argmin())], frames[int(heights.argmax())]
    depth = int(indices[-1])
    column_k = (high.position - low.position) / depth if depth else normal * step
    lps = np.eye(4)
    lps[:3, 0] = along_row * first.spacing[1]
    lps[:3, 1] = along_column * first.spacing[0]
    lps[:3, 2] = column_k
    lps[:3, 3] = low.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, at


def _steps(levels: Array, stated: float | None) -> tuple[float, Array]:
    """Distance of slices, and the index of each level on a grid of that distance."""
    if len(levels) == 1:
        return stated or 1.0, np.zeros(1, np.int64)
    gaps = levels - levels[0]
    for step in (stated, float(np.diff(levels).min())):
        if not step:
            continue
        indices = np.rint(gaps / step).astype(np.int64)
        fitted = gaps[-1] / indices[-1] if indices[-1] else step
        close = np.abs(gaps - indices * fitted).max() <= max(0.02, 0.01 * step)
        if close and (np.diff(indices) > 0).all() and abs(fitted - step) <= 0.01 * step + 1e-3:
            return fitted, indices
    raise Refused("UNEVEN_SPACING", "the frames of the segmentation are not equally spaced")


def _fill(frames: Sequence[_Frame], at: Sequence[int], padding: int, highest: int) -> Array:
    rows, columns = frames[0].pixels.shape
    dtype = np.uint8 if highest < 256 else np.uint16
    array = np.full((columns, rows, max(at) + 1), padding, dtype)
    for index in set(at) if padding else ():
        array[:, :, index] = 0
    for frame, index in zip(frames, at, strict=True):
        plane = frame.pixels.T
        if frame.segment is None:
            array[:, :, index] = plane
            continue
        inside = plane > 0
        if array[:, :, index][inside].any():
            raise Refused("LABEL_OVERLAP", f"voxels of slice {index} lie in two segments")
        array[:, :, index][inside] = frame.segment
    return array


def _segments(dataset: Dataset) -> tuple[Segment, ...]:
    found = []
    for one in dataset.SegmentSequence:
        sequence = one.get("SegmentedPropertyTypeCodeSequence")
        code = _code(sequence[0]) if sequence else None
        if code is not None and (code.value, code.scheme) == _BACKGROUND:
            continue
        if int(one.SegmentNumber) > 0:
            found.append(Segment(int(one.SegmentNumber), str(one.get("SegmentLabel", "")), code))
    return tuple(found)


def _code(item: Mapping[Any, Any] | Any) -> Code:
    return Code(
        value=str(item.get("CodeValue", "")),
        scheme=str(item.get("CodingSchemeDesignator", "")),
        meaning=str(item.get("CodeMeaning", "")),
    )


def _referenced(dataset: Dataset) -> str | None:
    sequence = dataset.get("ReferencedSeriesSequence")
    if not sequence or len(sequence) != 1:
        return None
    return str(sequence[0].get("SeriesInstanceUID", "")) or None
