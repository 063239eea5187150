"""DICOM SEG objects in, as label volumes; `medplat.dicom.seg` is the public face.

Frames are placed by their own positions (PS3.3 C.7.6.16.2.3, C.8.20.2), never by their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from medplat.dicom import labels
from medplat.dicom.labels import LabelVolume, Segment, check_values
from medplat.errors import Refused
from medplat.types import Affine, Array, Geometry
from medplat.workflow.schema import Code

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_BACKGROUND = ("125040", "DCM")
_CLOSE_MM = 0.01
_KINDS = ("BINARY", "LABELMAP", "FRACTIONAL")


class _Frame(NamedTuple):
    position: Array
    orientation: Array
    spacing: tuple[float, float]
    segment: int | None
    pixels: Array


def read(path: Path | BinaryIO) -> LabelVolume:
    """Read a segmentation as one label volume, or as fractions where it holds such.

    Args:
        path: A DICOM SEG file, or one that is open.

    Raises:
        Refused: NOT_IMAGE where it is no SEG or a tiled one, NO_GEOMETRY, MIXED_ORIENTATION or
            UNEVEN_SPACING where its frames make no volume, LABEL_OVERLAP where a voxel lies in two
            segments, LABEL_UNKNOWN_VALUE where a value has no segment.
    """
    import pydicom

    return from_dataset(pydicom.dcmread(path))


def referenced(path: Path | BinaryIO) -> tuple[str | None, frozenset[str]]:
    """What a segmentation was drawn on, read without its pixels.

    Returns:
        The one series that it names, else None; and the images that its frames name.
    """
    import pydicom

    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    images = {
        str(image.get("ReferencedSOPInstanceUID", ""))
        for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ()
        for derivation in frame.get("DerivationImageSequence") or ()
        for image in derivation.get("SourceImageSequence") or ()
    }
    return _referenced(dataset), frozenset(images - {""})


def read_apart(path: Path | BinaryIO) -> list[LabelVolume]:
    """As `read`, one volume for each segment of a binary segmentation: they may overlap."""
    import pydicom

    dataset = pydicom.dcmread(path)
    return [from_dataset(dataset, one) for one in _segments(dataset)]


def from_dataset(dataset: Dataset, only: Segment | None = None) -> LabelVolume:
    """As `read`, of an open data set; of a single segment if `only` is given."""
    kind = str(dataset.get("SegmentationType", ""))
    if kind not in _KINDS:
        raise Refused("NOT_IMAGE", f"a segmentation of type {kind or 'none'} is not read as labels")
    if dataset.get("DimensionOrganizationType") == "TILED_FULL":
        raise Refused("NOT_IMAGE", "a tiled segmentation (microscopy) is not read as labels")
    frames = _frames(dataset, kind)
    affine, at = _place(frames, _stated_step(dataset))
    segments = (only,) if only else _segments(dataset)
    padding = int(dataset.get("PixelPaddingValue") or 0) if kind == "LABELMAP" else 0
    fraction = ""
    if kind == "FRACTIONAL":
        stated = dataset.get("SegmentationFractionalType")
        fraction = "OCCUPANCY" if stated == "OCCUPANCY" else "PROBABILITY"
        array = _fill_fractions(frames, at, segments, float(dataset.MaximumFractionalValue))
    else:
        array = _fill(frames, at, padding, segments, only)
        check_values(array, {one.value: one for one in segments}, padding)
    return LabelVolume(
        array=array,
        affine=affine,
        segments=segments,
        referenced_series_uid=_referenced(dataset),
        study_uid=str(dataset.get("StudyInstanceUID", "")),
        frame_of_reference_uid=dataset.get("FrameOfReferenceUID") or None,
        padding=padding,
        fraction=fraction,
        cropped=(False, False, True),
    )


def onto(volume: LabelVolume, geometry: Geometry) -> Array:
    """The labels on the grid of a series, see `labels.onto`."""
    return labels.onto(volume, geometry)[0]


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
        if kind != "LABELMAP":
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


def _fill(
    frames: Sequence[_Frame],
    at: Sequence[int],
    padding: int,
    segments: Sequence[Segment],
    only: Segment | None,
) -> Array:
    rows, columns = frames[0].pixels.shape
    stated = [padding, *(one.value for one in segments)]
    highest = max([*stated, *(frame.segment or 0 for frame in frames)])
    dtype = np.uint8 if highest < 256 else np.uint16
    array = np.full((columns, rows, max(at) + 1), padding, dtype)
    for index in set(at) if padding else ():
        array[:, :, index] = 0
    for frame, index in zip(frames, at, strict=True):
        plane = frame.pixels.T
        if only and frame.segment != only.value:
            continue
        if frame.segment is None:
            array[:, :, index] = plane
            continue
        inside = plane > 0
        taken = array[:, :, index][inside]
        if taken.any():
            raise labels.overlap(segments, {frame.segment, *taken[taken > 0].tolist()})
        array[:, :, index][inside] = frame.segment
    return array


def _fill_fractions(
    frames: Sequence[_Frame], at: Sequence[int], segments: Sequence[Segment], highest: float
) -> Array:
    """(x, y, z, segment) float32 from 0 to 1."""
    rows, columns = frames[0].pixels.shape
    places = {segment.value: place for place, segment in enumerate(segments)}
    array = np.zeros((columns, rows, max(at) + 1, len(segments)), np.float32)
    for frame, index in zip(frames, at, strict=True):
        place = places.get(frame.segment or 0)
        if place is None:
            text = f"a frame belongs to segment {frame.segment}, which is not described"
            raise Refused("LABEL_UNKNOWN_VALUE", text)
        array[:, :, index, place] = frame.pixels.T / highest
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
