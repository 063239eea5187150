"""Where a NIfTI header says its voxels lie, against where they do lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from medplat.types import Affine, Array

VOXELS = 0.1
_DEGREES = 0.1


class Finding(NamedTuple):
    """One thing that is wrong with a NIfTI file: a code of the table and one sentence."""

    code: str
    message: str


def corners_off(said: Affine, true: Affine, shape: Sequence[int]) -> float:
    """The largest distance of a corner from its place, in voxels (of their shortest side)."""
    corners = np.array(list(product(*((0, size - 1) for size in shape[:3]))), np.float64)
    off = corners @ (said - true)[:3, :3].T + (said - true)[:3, 3]
    return float(np.linalg.norm(off, axis=1).max() / np.linalg.norm(true[:3, :3], axis=0).min())


def compare(said: Affine, true: Affine, shape: Sequence[int]) -> list[Finding]:
    """What is wrong with an affine.

    Args:
        said: As in the NIfTI header.
        true: As the DICOM headers have it, for the same voxels.
        shape: Of the file.

    Returns:
        [] where no corner is off by more than 0.1 voxel.
    """
    if corners_off(said, true, shape) <= VOXELS:
        return []
    sizes, wanted = (np.linalg.norm(one[:3, :3], axis=0) for one in (said, true))
    axes, directions = _directions(said[:3, :3] / sizes, true[:3, :3] / wanted)
    found = compare_sizes(said, true[:, [*axes, 3]], shape)
    if directions is not None:
        found.append(directions)
    elif _shifted(said, true, shape, spaced=bool(found)):
        middle = np.append((np.array(shape[:3]) - 1) / 2, 1.0)
        way = ((said - true) @ middle)[:3]
        text = f"the volume lies {np.linalg.norm(way):.4g} mm off ({_mm(way)} mm right to left, "
        found.append(Finding("NIFTI_SHIFTED", text + "back to front and feet to head)"))
    if not found:  # A turn too small for `_directions`, over a large volume.
        off = corners_off(said, true, shape)
        found.append(Finding("NIFTI_ROTATED", f"a corner lies {off:.3g} voxels off"))
    return found


def compare_sizes(said: Affine, true: Affine, shape: Sequence[int]) -> list[Finding]:
    """What is wrong with the voxel sizes alone, as for `compare`."""
    sizes, wanted = (np.linalg.norm(one[:3, :3], axis=0) for one in (said, true))
    extents = np.array(shape[:3]) - 1
    if (np.abs(sizes - wanted) / wanted * extents <= VOXELS).all():
        return []
    text = f"voxel sizes are {_mm(sizes)} mm in the header and {_mm(wanted)} mm in the DICOM"
    return [Finding("NIFTI_SPACING", text)]


def _mm(values: Array) -> str:
    return " x ".join(f"{round(float(one), 4) + 0.0:.5g}" for one in values)


def _directions(said: Array, true: Array) -> tuple[list[int], Finding | None]:
    """What is wrong with the directions of the axes, given as unit columns.

    Returns:
        Which true axis each said one is, and the finding.
    """
    same = [0, 1, 2]
    if _angle(said, true) <= _DEGREES:
        return same, None
    for axes in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            if _angle(said, true[:, list(axes)] * signs) > 1.0:
                continue
            turned = [name for name, sign in zip("xyz", signs, strict=True) if sign < 0]
            if axes != (0, 1, 2):
                text = "the header takes one voxel axis for another"
                text += ", and reverses some" if turned else ""
                return list(axes), Finding("NIFTI_AXES", text)
            names = " and ".join(turned)
            return same, Finding(
                "NIFTI_FLIPPED", f"the voxels run against the header along {names}"
            )
    text = f"the axes point up to {_angle(said, true):.3g} degrees off"
    return same, Finding("NIFTI_ROTATED", text)


def _angle(one: Array, other: Array) -> float:
    return float(np.degrees(np.arccos(np.clip((one * other).sum(axis=0), -1, 1)).max()))


def _shifted(said: Affine, true: Affine, shape: Sequence[int], *, spaced: bool) -> bool:
    """Whether the volume is out of place beyond what wrong voxel sizes alone explain."""
    shortest = np.linalg.norm(true[:3, :3], axis=0).min()
    middle = np.append((np.array(shape[:3]) - 1) / 2, 1.0)
    at = [middle, np.array([0, 0, 0, 1.0])] if spaced else [middle]
    return all(np.linalg.norm(((said - true) @ one)[:3]) > VOXELS * shortest for one in at)


def nearest(said: Affine, grid: Affine, shape: Sequence[int], whole: Sequence[int]) -> Affine:
    """The order and sense of axes in which a grid comes nearest to an affine.

    Args:
        said: As in the NIfTI header.
        grid: Affine of the series.
        shape: Of the file.
        whole: Of the series: the same sizes in some order.
    """
    found = []
    for axes in permutations(range(3)):
        if [whole[axis] for axis in axes] != list(shape[:3]):
            continue
        for signs in product((1, -1), repeat=3):
            into = np.eye(4)
            into[:3, :3] = 0
            for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
                into[old, new] = sign
                into[old, 3] = 0 if sign > 0 else whole[old] - 1
            found.append(grid @ into)
    return min(found, key=lambda one: corners_off(said, one, shape))
