"""The published NIfTI files: (slice, row, column), identity affine, spacing in the table alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medplat import nifti
from medplat.errors import Refused
from medplat.types import Array, Geometry, Volume
from medplat_datasets import _breastdcedl_layout as layout
from medplat_datasets._breastdcedl_table import Patient

GEOMETRY_FROM_TABLE = "GEOMETRY_FROM_TABLE"
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


def find(root: Path) -> dict[tuple[str, int | None], Path]:
    """The published files below a folder by pid and phase; None stands for the mask.

    Raises:
        Refused: Two files bear one name.
    """
    found: dict[tuple[str, int | None], Path] = {}
    for path in sorted(root.rglob("*.nii*")):
        name = layout.parse(path.name)
        if name is None:
            continue
        key = name.pid, name.phase
        if key in found:
            raise Refused("AMBIGUOUS_INPUT", f"{name.pid}: {path.name} is there twice")
        found[key] = path
    return found


def is_bare(volume: Volume) -> bool:
    """Whether a file is as published: identity affine and voxels of 1 mm."""
    return bool(np.array_equal(volume.geometry.affine, np.eye(4)))


def read_published(
    path: Path, patient: Patient, spacing_overrides: Mapping[str, float] | None = None
) -> Volume:
    """Read one published file.

    A file with a true affine is read as any other. One with the identity becomes (x, y, z) with the
    spacing of the table; where it lies in the patient is unknown.

    Args:
        path: An image of one phase, or a mask.
        patient: Its row of the table.
        spacing_overrides: In-plane spacing in mm by pid, over the table's.

    Returns:
        (x, y, z); the narrowest integers that hold the values, uint8 for a mask.

    Raises:
        Refused: NO_GEOMETRY, MIXED_SHAPE, LABEL_EMPTY, LABEL_UNKNOWN_VALUE or LABEL_OUTSIDE.
        DataError: The file cannot be read as NIfTI.
    """
    name = layout.parse(path.name)
    if name is None or name.pid != patient.pid:
        raise Refused("NO_GEOMETRY", f"{path.name} is not a published file of {patient.pid}")
    volume = nifti.read(path)
    if volume.array.ndim != 3:
        raise Refused("MIXED_SHAPE", f"{path.name}: one phase has three axes, this file has four")
    if is_bare(volume):
        volume = _placed(volume, patient, spacing_overrides or {})
    elif volume.geometry.orientation == "unknown" and GEOMETRY_FROM_TABLE not in str(
        volume.metadata.get("codes", "")
    ):
        raise Refused("NO_GEOMETRY", f"{path.name}: neither the identity nor a true affine")
    array = whole_numbers(volume.array, path.name)
    if name.phase is None:
        array = _checked_mask(array, patient)
    return replace(volume, array=array)


def _placed(volume: Volume, patient: Patient, overrides: Mapping[str, float]) -> Volume:
    in_plane = overrides.get(patient.pid) or patient.number("xy_spacing")
    along = patient.slice_mm
    if not in_plane or not along:
        column = "slice_thick" if in_plane else "xy_spacing"
        raise Refused(
            "NO_GEOMETRY",
            f"{patient.where}: {patient.pid}: {column} is blank or 0; "
            "give the spacing in dataset.spacing_overrides",
        )
    slices, wide = patient.index("n_z"), patient.index("n_xy")
    cropped = patient.index("mask_start") == 2 and patient.index("mask_end") == (slices or 0) + 1
    stated = (
        slices and slices + (4 if cropped else 0),
        *((None, None) if cropped else (wide,) * 2),
    )
    for own, expected in zip(volume.array.shape, stated, strict=True):
        if expected and own != expected:
            raise Refused(
                "MIXED_SHAPE",
                f"{patient.where}: {patient.pid}: the file is {volume.array.shape}, the table says "
                f"{stated[0]} slices of {wide} x {wide}",
            )
    array = volume.array.transpose(2, 1, 0)
    x, y, z = array.shape
    affine = np.diag([in_plane, in_plane, along, 1.0])
    place = Geometry(affine, (x, y, z), orientation="unknown")
    return replace(volume, array=array, geometry=place, metadata={"codes": [GEOMETRY_FROM_TABLE]})


def whole_numbers(array: Array, name: str) -> Array:
    """The same values in the narrowest integer type.

    Raises:
        Refused: A value is not whole.
    """
    if array.dtype.kind == "f":
        wrong = np.argwhere(~np.isfinite(array) | (array != np.rint(array)))
        if len(wrong):
            place = tuple(int(one) for one in wrong[0])
            raise Refused("NO_GEOMETRY", f"{name}: voxel {place} is {array[place]:g}, not whole")
    low, high = array.min(), array.max()
    for kind in _INTEGERS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.asarray(array.astype(kind))
    return array


def _checked_mask(mask: Array, patient: Patient) -> Array:
    pid = patient.pid
    if not mask.any():
        raise Refused("LABEL_EMPTY", f"{pid}: no voxel of the mask is set")
    if not np.isin(mask, (0, 1)).all():
        raise Refused("LABEL_UNKNOWN_VALUE", f"{pid}: the mask holds other values than 0 and 1")
    end = patient.index("mask_end")
    if end is not None and end >= mask.shape[2]:
        text = f"the table's mask ends at slice {end}, the file has {mask.shape[2]}"
        raise Refused("LABEL_OUTSIDE", f"{patient.where}: {pid}: {text}")
    return mask.astype(np.uint8)


def stored(
    path: Path, folder: Path, patient: Patient, spacing_overrides: Mapping[str, float]
) -> tuple[Path, tuple[int, ...], bool]:
    """A file fit for the loaders: the file itself, or a copy with the table's spacing.

    Args:
        path: A published file.
        folder: Where copies go.
        patient: Its row of the table.
        spacing_overrides: In-plane spacing in mm by pid.

    Returns:
        The file to read, its shape (x, y, z), and whether its geometry came from the table.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    copy = folder / f"{stem}.nii.gz"
    status = path.stat()
    stated = [patient.cells.get(name) for name in ("xy_spacing", "slice_space", "slice_thick")]
    made_of = {
        "made_of": [status.st_size, status.st_mtime_ns, spacing_overrides.get(patient.pid), *stated]
    }
    before = nifti.read_sidecar(copy) if copy.is_file() else {}
    if before.get("made_of") == made_of["made_of"]:
        return copy, tuple(before["shape"]), True
    volume = read_published(path, patient, spacing_overrides)
    if volume.geometry.orientation == "known":
        return path, volume.array.shape, False
    content = {
        **made_of,
        "codes": [GEOMETRY_FROM_TABLE],
        "shape": list(volume.array.shape),
        "geometry": {"affine": volume.geometry.affine.tolist(), "orientation": "unknown"},
    }
    nifti.sidecar_path(copy).unlink(missing_ok=True)
    nifti.write(volume, copy)
    nifti.write_json(nifti.sidecar_path(copy), content)
    return copy, volume.array.shape, True


def same_shape(shapes: Sequence[tuple[int, ...]], pid: str) -> None:
    """Refuse images and mask of different shape.

    Raises:
        Refused: MIXED_SHAPE.
    """
    if len(set(shapes)) > 1:
        shown = " and ".join(str(one) for one in sorted(set(shapes)))
        raise Refused("MIXED_SHAPE", f"{pid}: phases and mask differ in shape: {shown}")
