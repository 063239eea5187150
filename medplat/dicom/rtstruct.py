"""RTSTRUCT objects in: contours in patient space, filled on the grid of their series.

Contours are closed polygons on the planes of the images (DICOM PS3.3 C.8.8.6). A voxel belongs to a
structure if its centre lies within an odd number of the structure's polygons on that plane, which
holds for inner contours and for keyholes alike. A centre on an edge that two structures share is of
one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medplat.dicom.labels import Segment, overlap
from medplat.errors import Refused
from medplat.types import Array, Geometry
from medplat.workflow.schema import Code

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PLANE_MM = 0.05
_PLANE_SHARE = 0.02
_EDGE = 1e-3
_NUDGE = 1e-6
_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True, eq=False)
class Contours:
    """A structure set.

    Attributes:
        loops: For each structure, its closed contours: (n, 3) points in RAS+ mm.
        segments: The structures; `value` is the ROI number.
    """

    loops: tuple[tuple[Array, ...], ...]
    segments: tuple[Segment, ...]


def read(path: Path | BinaryIO) -> Contours:
    """Read a structure set.

    Args:
        path: An RTSTRUCT file, or one that is open.

    Raises:
        Refused: LABEL_UNKNOWN_VALUE where contours belong to a structure without a name,
            LABEL_EMPTY where there is no closed contour at all.
    """
    import pydicom

    dataset = pydicom.dcmread(path)
    codes = _codes(dataset)
    names = {
        int(one.ROINumber): str(one.get("ROIName") or "").strip()
        for one in dataset.get("StructureSetROISequence") or ()
    }
    loops, segments = [], []
    for roi in dataset.get("ROIContourSequence") or ():
        number = int(roi.get("ReferencedROINumber", -1))
        areas = tuple(_areas(roi))
        if not areas:
            continue
        if not names.get(number):
            raise Refused("LABEL_UNKNOWN_VALUE", f"contours belong to ROI {number}, without a name")
        loops.append(areas)
        segments.append(Segment(number, names[number], codes.get(number)))
    if not segments:
        raise Refused("LABEL_EMPTY", "the structure set holds no closed contour")
    if min(one.value for one in segments) < 1 or max(one.value for one in segments) > 65535:
        segments = [one._replace(value=at) for at, one in enumerate(segments, start=1)]
    return Contours(tuple(loops), tuple(segments))


def referenced(path: Path | BinaryIO) -> tuple[str | None, frozenset[str]]:
    """What a structure set was drawn on.

    Returns:
        The one series that it names, else None; and the images that its contours name.
    """
    import pydicom

    dataset = pydicom.dcmread(path)
    series = {
        str(one.get("SeriesInstanceUID", ""))
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for one in study.get("RTReferencedSeriesSequence") or ()
    }
    images = {
        str(image.get("ReferencedSOPInstanceUID", ""))
        for roi in dataset.get("ROIContourSequence") or ()
        for contour in roi.get("ContourSequence") or ()
        for image in contour.get("ContourImageSequence") or ()
    }
    return series.pop() or None if len(series) == 1 else None, frozenset(images - {""})


def onto(contours: Contours, geometry: Geometry) -> Array:
    """Fill the contours on the grid of their series.

    Returns:
        (x, y, z) of `geometry`, holding ROI numbers.

    Raises:
        Refused: LABEL_GRID_MISMATCH where a contour lies on no slice, LABEL_OUTSIDE where a point
            lies outside the grid, LABEL_FLIPPED where all would fit after a sign is changed,
            LABEL_OVERLAP where a voxel lies in two structures.
    """
    try:
        planes = [[_flat(loop, geometry) for loop in loops] for loops in contours.loops]
    except Refused:
        how = _flip(contours, geometry)
        if how:
            text = f"the contours fit their series only if the sign of {how} is changed"
            raise Refused("LABEL_FLIPPED", text) from None
        raise
    highest = max(one.value for one in contours.segments)
    whole = np.zeros(geometry.shape, np.uint8 if highest < 256 else np.uint16)
    for segment, loops in zip(contours.segments, planes, strict=True):
        for k in sorted({plane for plane, _ in loops}):
            inside = np.zeros(geometry.shape[:2], np.bool_)
            for plane, points in loops:
                if plane == k:
                    _fill(inside, points)
            taken = whole[:, :, k][inside]
            if taken.any():
                raise overlap(contours.segments, {segment.value, *taken[taken > 0].tolist()})
            whole[:, :, k][inside] = segment.value
    return whole


def apart(contours: Contours) -> list[Contours]:
    """Each structure by itself."""
    pairs = zip(contours.loops, contours.segments, strict=True)
    return [Contours((loops,), (segment,)) for loops, segment in pairs]


def _fill(inside: Array, points: Array) -> None:
    """Turn over the voxels whose centres a polygon covers; `points` are (n, 2) voxel indices."""
    import shapely

    polygon = shapely.Polygon(points)
    low = np.maximum(np.ceil(points.min(axis=0) - _NUDGE).astype(int), 0)
    high = np.minimum(np.floor(points.max(axis=0)).astype(int) + 1, inside.shape)
    if (high <= low).any():
        return
    shapely.prepare(polygon)
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    inside[low[0] : high[0], low[1] : high[1]] ^= shapely.intersects_xy(
        polygon, x + _NUDGE, y + _NUDGE
    )


def _flat(loop: Array, geometry: Geometry) -> tuple[int, Array]:
    """The slice of a contour, and its points as voxel indices in that slice."""
    into = np.linalg.inv(geometry.affine)
    at = loop @ into[:3, :3].T + into[:3, 3]
    step = float(np.linalg.norm(geometry.affine[:3, 2]))
    plane = round(float(at[:, 2].mean()))
    off = float(np.abs(at[:, 2] - plane).max()) * step
    sizes = np.array(geometry.shape)
    within = (at[:, :2] >= -0.5 - _EDGE) & (at[:, :2] <= sizes[:2] - 0.5 + _EDGE)
    if off > max(_PLANE_MM, _PLANE_SHARE * step):
        text = f"a contour lies {off:.3g} mm off the nearest slice of its series"
        raise Refused("LABEL_GRID_MISMATCH", text)
    if not within.all() or not 0 <= plane < sizes[2]:
        raise Refused("LABEL_OUTSIDE", "contour points lie outside the grid of their series")
    return plane, at[:, :2]


def _flip(contours: Contours, geometry: Geometry) -> str:
    """The patient axes whose sign must change for all contours to fit; "" where none helps."""
    for signs in product((1.0, -1.0), repeat=3):
        if min(signs) > 0:
            continue
        try:
            for loops in contours.loops:
                for loop in loops:
                    _flat(loop * signs, geometry)
        except Refused:
            continue
        return " and ".join(name for name, sign in zip("xyz", signs, strict=True) if sign < 0)
    return ""


def _areas(roi: Dataset) -> Iterator[Array]:
    for contour in roi.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType", "CLOSED_PLANAR"))
        points = np.array(contour.get("ContourData") or (), np.float64)
        if kind not in _AREAS or points.size < 9 or points.size % 3:
            continue
        yield points.reshape(-1, 3) * (-1.0, -1.0, 1.0)


def _codes(dataset: Dataset) -> dict[int, Code]:
    found = {}
    for one in dataset.get("RTROIObservationsSequence") or ():
        items: Sequence[Any] = one.get("RTROIIdentificationCodeSequence") or ()
        if items:
            found[int(one.ReferencedROINumber)] = Code(
                value=str(items[0].get("CodeValue", "")),
                scheme=str(items[0].get("CodingSchemeDesignator", "")),
                meaning=str(items[0].get("CodeMeaning", "")),
            )
    return found
