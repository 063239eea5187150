"""Real series that are regular by their own headers: an oracle in float64, with pydicom alone.

A series is regular when each position holds the same number of images, the positions lie on one
line along the normal at equal steps (within max(0.02 mm, 1 %)), with one orientation, one pixel
spacing and one matrix. Classic and enhanced multi-frame objects alike.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

Array = npt.NDArray[Any]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """One image: where it lies and its real values (columns, rows)."""

    orientation: Array
    position: Array
    spacing: Array
    order: tuple[Any, ...]
    values: Array


@dataclass(frozen=True)
class RealSeries:
    """A regular series: its files, and the truth (x, y, z, t) with its affine in RAS+ mm."""

    files: tuple[Path, ...]
    truth: Array
    affine: Array

    def link(self, folder: Path) -> Path:
        """A folder that holds the files of this series alone."""
        folder.mkdir()
        for number, path in enumerate(self.files):
            shutil.copyfile(path, folder / f"{number:05d}.dcm")
        return folder


def find(root: Path) -> Iterator[RealSeries]:
    """Regular series below `root`; each leaf folder is a source of its own."""
    for folder in sorted(path for path in (root, *root.rglob("*")) if path.is_dir()):
        groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
        for path in sorted(one for one in folder.iterdir() if one.is_file()):
            dataset = _read(path)
            if dataset is not None:
                groups[str(dataset.get("SeriesInstanceUID", ""))].append((path, dataset))
        for members in groups.values():
            series = _regular(members)
            if series is not None:
                yield series


def _read(path: Path) -> Dataset | None:
    """An MR, CT or PET image that is no mosaic, localizer or derived picture; else None."""
    try:
        dataset = dcmread(path)
        kind = [str(word).upper() for word in dataset.get("ImageType", [])]
        grey = dataset.get("SamplesPerPixel") == 1 and "PixelData" in dataset
        if dataset.Modality not in ("MR", "CT", "PT") or not grey:
            return None
        if {"MOSAIC", "LOCALIZER", "PROJECTION IMAGE"} & set(kind):
            return None
    except Exception:
        return None
    return dataset


def _planes(dataset: Dataset) -> list[Plane]:
    """The image or the frames of one object."""
    pixels = np.atleast_3d(dataset.pixel_array.T).astype(np.float64)  # (columns, rows, frames)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_plane([dataset], pixels[..., 0], (dataset.get("InstanceNumber", 0),))]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    planes = []
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups = [
            element.value[0]
            for source in (frame, shared)
            for element in source
            if element.VR == "SQ" and element.value
        ]
        planes.append(_plane(groups, pixels[..., number], (number,)))
    return planes


def _plane(sources: list[Dataset], pixels: Array, order: tuple[Any, ...]) -> Plane:
    def first(word: str, default: Any = None) -> Any:
        return next((one[word].value for one in sources if word in one), default)

    slope, intercept = first("RescaleSlope", 1), first("RescaleIntercept", 0)
    return Plane(
        np.array(first("ImageOrientationPatient"), dtype=np.float64),
        np.array(first("ImagePositionPatient"), dtype=np.float64),
        np.array(first("PixelSpacing"), dtype=np.float64),
        order,
        pixels * float(slope) + float(intercept),
    )


def _regular(members: list[tuple[Path, Dataset]]) -> RealSeries | None:
    try:
        planes = [plane for _, dataset in members for plane in _planes(dataset)]
    except Exception:
        return None
    first = planes[0]
    alike = all(
        plane.values.shape == first.values.shape
        and np.abs(plane.orientation - first.orientation).max() < 1e-4
        and np.allclose(plane.spacing, first.spacing, rtol=1e-4)
        for plane in planes
    )
    if not alike:
        return None
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    at: dict[float, list[Plane]] = defaultdict(list)
    for plane in planes:
        at[round(float(plane.position @ normal), 2)].append(plane)
    levels = sorted(at)
    counts = {len(found) for found in at.values()}
    if len(levels) < 3 or len(counts) != 1:
        return None
    ends = at[levels[0]][0].position, at[levels[-1]][0].position
    step = (ends[1] - ends[0]) / (len(levels) - 1)
    limit = max(0.02, 0.01 * float(np.linalg.norm(step)))
    if np.linalg.norm(step - (step @ normal) * normal) * (len(levels) - 1) > 0.05:
        return None
    for number, level in enumerate(levels):
        expected = ends[0] + number * step
        if any(np.linalg.norm(plane.position - expected) > limit for plane in at[level]):
            return None
    stacks = [sorted(at[level], key=lambda plane: plane.order) for level in levels]
    truth = np.stack(
        [np.stack([plane.values for plane in phase], -1) for phase in zip(*stacks, strict=True)], -1
    )
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row * first.spacing[1], column * first.spacing[0], step], 1)
    lps[:3, 3] = ends[0]
    return RealSeries(tuple(path for path, _ in members), truth, LPS_TO_RAS @ lps)
