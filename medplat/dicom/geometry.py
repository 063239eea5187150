"""Positions, the affine, and the verdicts on a stack's geometry (specs sections 5.1 to 5.3).

All lengths in mm; DICOM's LPS until `affine` turns it into RAS, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medplat.dicom.header import Header
from medplat.errors import Refused
from medplat.types import Affine, Array, Geometry

SAME_POSITION_MM = 0.01
GAP_FLOOR_MM = 0.02
GAP_SHARE = 0.01
SHEAR_MM = 0.05
SHEAR_DEGREES = 0.05
_UNIT_TOLERANCE = 1e-3
_ORIENTATION_TOLERANCE = 1e-4
_ABSENT_SHARE = 2
_TWO_SLICES_MM = 10.0
_OBLIQUE = 0.8
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """What all images of a stack share: unit vectors along a row, a column and the normal."""

    row: Array
    column: Array
    normal: Array
    spacing: tuple[float, float]


@dataclass(frozen=True)
class Slot:
    """One position of a stack and the images that lie there."""

    place: Array
    distance: float
    headers: tuple[Header, ...]


@dataclass(frozen=True)
class Finding:
    """A verdict on the geometry: a code of the table and one sentence."""

    code: str
    message: str


def plane(headers: Sequence[Header]) -> Plane:
    """The common plane of a stack.

    Raises:
        Refused: NO_GEOMETRY or MIXED_ORIENTATION.
    """
    for header in headers:
        text = problem(header)
        if text:
            count = sum(1 for one in headers if problem(one))
            raise Refused("NO_GEOMETRY", f"{text}, in {count} of {len(headers)} images")
    orientations = np.array([header.orientation for header in headers], dtype=np.float64)
    middle = np.median(orientations, axis=0)
    worst = float(np.abs(orientations - middle).max())
    if worst > _ORIENTATION_TOLERANCE:
        raise Refused("MIXED_ORIENTATION", f"orientation cosines differ by up to {worst:.4f}")
    row = middle[:3] / np.linalg.norm(middle[:3])
    column = middle[3:] / np.linalg.norm(middle[3:])
    normal = np.cross(row, column)
    spacing = headers[0].pixel_spacing
    assert spacing is not None
    return Plane(row, column, normal / np.linalg.norm(normal), spacing)


def problem(header: Header) -> str:
    """Why a header gives no geometry; "" where it does."""
    position, orientation, spacing = header.position, header.orientation, header.pixel_spacing
    if position is None or not all(map(math.isfinite, position)):
        return "ImagePositionPatient is absent or not numeric"
    if orientation is None or not all(map(math.isfinite, orientation)):
        return "ImageOrientationPatient is absent or not numeric"
    row, column = orientation[:3], orientation[3:]
    if abs(math.hypot(*row) - 1) > _UNIT_TOLERANCE:
        return "ImageOrientationPatient's row is no unit vector"
    if abs(math.hypot(*column) - 1) > _UNIT_TOLERANCE:
        return "ImageOrientationPatient's column is no unit vector"
    if abs(sum(a * b for a, b in zip(row, column, strict=True))) > _UNIT_TOLERANCE:
        return "ImageOrientationPatient's vectors are not perpendicular"
    if spacing is None or not all(map(math.isfinite, spacing)) or min(spacing) <= 0:
        return "PixelSpacing is absent or not positive"
    return ""


def slots(headers: Sequence[Header], plane: Plane) -> list[Slot]:
    """The distinct positions of a stack, sorted along the normal.

    Two images share a position where their distances along the normal and their offsets in the
    plane differ by less than 0.01 mm.
    """
    places = np.array([header.position for header in headers], dtype=np.float64)
    along = places @ plane.normal
    order = sorted(range(len(headers)), key=lambda i: (float(along[i]), *places[i].tolist()))
    members: list[list[int]] = []
    for i in order:
        for group in reversed(members):
            if along[i] - along[group[0]] >= SAME_POSITION_MM:
                members.append([i])
                break
            offset = places[i] - places[group[0]]
            offset -= (offset @ plane.normal) * plane.normal
            if float(np.linalg.norm(offset)) < SAME_POSITION_MM:
                group.append(i)
                break
        else:
            members.append([i])
    return [
        Slot(places[group[0]], float(along[group[0]]), tuple(headers[i] for i in group))
        for group in members
    ]


def check(found: Sequence[Slot], plane: Plane) -> list[Finding]:
    """Verdicts on the positions of a stack with at least three of them; [] where it is regular."""
    places = np.array([slot.place for slot in found])
    along = np.array([slot.distance for slot in found])
    gaps = np.diff(along)
    middle = float(np.median(gaps))
    tolerance = max(GAP_FLOOR_MM, GAP_SHARE * middle)
    findings: list[Finding] = []
    steps = np.arange(len(found))[:, None] * (places[-1] - places[0]) / (len(found) - 1)
    residual = float(np.linalg.norm(places - places[0] - steps, axis=1).max())
    worst = float(np.abs(gaps - middle).max())
    if worst > tolerance or residual > tolerance:
        absent = _absent(along, gaps, tolerance)
        findings.append(
            Finding("MISSING_SLICE", _missing_message(absent, len(found), gaps))
            if absent
            else Finding("UNEVEN_SPACING", _uneven_message(along, gaps, middle, residual))
        )
    shear = _shear(places, plane)
    return findings + ([shear] if shear else [])


def _absent(along: Array, gaps: Array, tolerance: float) -> list[float]:
    """Positions of absent slices, if the gaps are whole multiples of the smallest common one."""
    if gaps.min() <= tolerance:
        return []
    base = float(np.median(gaps[gaps <= gaps.min() + tolerance]))
    multiples = np.rint(gaps / base)
    if (np.abs(gaps - multiples * base) > tolerance).any() or multiples.max() < 2:
        return []
    if (multiples - 1).sum() > _ABSENT_SHARE * len(along):
        return []
    return [
        float(start + step * gap / many)
        for start, gap, many in zip(along[:-1], gaps, multiples, strict=True)
        for step in range(1, int(many))
    ]


def _missing_message(absent: list[float], present: int, gaps: Array) -> str:
    shown = ", ".join(f"{value:.2f}" for value in absent[:10])
    shown += ", ..." if len(absent) > 10 else ""
    return (
        f"{len(absent)} of {present + len(absent)} slices are absent, at {shown} mm along the "
        f"normal (slice distance {gaps.min():.3f} mm)"
    )


def _uneven_message(along: Array, gaps: Array, middle: float, residual: float) -> str:
    worst = int(np.abs(gaps - middle).argmax())
    return (
        f"slice distances run from {gaps.min():.3f} to {gaps.max():.3f} mm (median {middle:.3f}), "
        f"most off between slices {worst} and {worst + 1} at {along[worst]:.2f} mm; the positions "
        f"are up to {residual:.3f} mm off equal steps"
    )


def _shear(places: Array, plane: Plane) -> Finding | None:
    whole = places[-1] - places[0]
    through = float(whole @ plane.normal)
    offset = float(np.linalg.norm(whole - through * plane.normal))
    angle = float(np.degrees(np.arctan2(offset, abs(through))))
    if offset <= SHEAR_MM or angle <= SHEAR_DEGREES:
        return None
    return Finding(
        "SHEARED",
        f"the slices slide sideways by {angle:.2f} degrees, {offset:.2f} mm over the whole stack",
    )


def check_two(found: Sequence[Slot], plane: Plane) -> list[Finding]:
    """Verdicts on a stack of two positions, whose regularity cannot be checked."""
    gap = found[1].distance - found[0].distance
    first = found[0].headers[0]
    if first.slice_thickness is None and first.spacing_between_slices is None:
        if gap > _TWO_SLICES_MM:
            text = f"two positions {gap:.2f} mm apart, and no slice thickness is stated"
            return [Finding("NO_GEOMETRY", text)]
    elif gap < GAP_FLOOR_MM:
        return [Finding("UNEVEN_SPACING", f"two positions {gap:.3f} mm apart")]
    shear = _shear(np.array([slot.place for slot in found]), plane)
    text = f"two slices {gap:.3f} mm apart: even spacing cannot be checked"
    return [*([shear] if shear else []), Finding("TWO_SLICES", text)]


def affine(found: Sequence[Slot], plane: Plane) -> Affine:
    """Voxel index (column, row, slice) to RAS+ mm.

    Column k is (last position - first) / (N - 1), so that both end slices are exact.
    """
    lps = np.eye(4)
    lps[:3, 0] = plane.row * plane.spacing[1]
    lps[:3, 1] = plane.column * plane.spacing[0]
    lps[:3, 2] = (found[-1].place - found[0].place) / (len(found) - 1)
    lps[:3, 3] = found[0].place
    return np.asarray(LPS_TO_RAS @ lps, dtype=np.float64)


def orientation_name(plane: Plane) -> str:
    """The nearest plane of the body by the normal, "oblique" beyond some 37 degrees of all."""
    axis = int(np.abs(plane.normal).argmax())
    if abs(float(plane.normal[axis])) < _OBLIQUE:
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


def flat(header: Header) -> tuple[Geometry, str]:
    """The geometry of a single projection image (CR, DX, MG): spacing only, directions unknown.

    Returns:
        The geometry, and the tag that the spacing comes from.

    Raises:
        Refused: NO_GEOMETRY where neither PixelSpacing nor ImagerPixelSpacing is usable.
    """
    for keyword, spacing in (
        ("PixelSpacing", header.pixel_spacing),
        ("ImagerPixelSpacing", header.imager_pixel_spacing),
    ):
        if spacing is not None and np.all(np.isfinite(spacing)) and min(spacing) > 0:
            matrix = np.diag([spacing[1], spacing[0], 1.0, 1.0])
            shape = (header.columns, header.rows, 1)
            return Geometry(matrix, shape, "unknown"), keyword
    raise Refused("NO_GEOMETRY", "neither PixelSpacing nor ImagerPixelSpacing is stated")
