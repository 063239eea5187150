"""The real CT of the tests: its missing UIDs filled in, and its voxels in the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.uid import generate_uid


def with_uids(source: Path, target: Path) -> list[Any]:
    """A copy of the CT, whose UIDs are empty, with UIDs filled in."""
    target.mkdir()
    found = []
    for path in sorted(source.iterdir()):
        dataset = dcmread(path, force=True)
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[path.name]
        )
        if not dataset.get("FrameOfReferenceUID"):
            dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
        dataset.save_as(target / path.name)
        found.append(dataset)
    return found


def points(dataset: Any, mask: Any, position: Any) -> Any:
    """LPS positions of the set voxels of one plane, by IOP, IPP and PixelSpacing."""
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(one) for one in dataset.PixelSpacing)
    j, i = np.nonzero(mask)
    return np.array(position, float) + np.outer(i * columns, row) + np.outer(j * rows, column)


def seg_points(path: Path) -> Any:
    """LPS positions of the set voxels of a SEG, frame by frame, as pydicom gives it."""
    found = dcmread(path)
    shared = found.SharedFunctionalGroupsSequence[0]
    plane = shared.PlaneOrientationSequence[0]
    plane.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
    frames = zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True)
    return np.vstack(
        [
            points(plane, frame > 0, own.PlanePositionSequence[0].ImagePositionPatient)
            for own, frame in frames
        ]
    )


def affine_of(images: list[Any]) -> Any:
    """(column, row, slice) -> LPS mm in float64, from the headers, slices along the normal."""
    row, column = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(one) for one in images[0].PixelSpacing)
    positions = np.array([one.ImagePositionPatient for one in images], float)
    positions = positions[np.argsort(positions @ np.cross(row, column))]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * columns, column * rows
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return affine
