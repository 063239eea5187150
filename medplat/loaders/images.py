"""Image files to volumes, and the volumes of one case to the tensor that a model sees.

Volumes are (x, y, z[, t]), tensors (C, *spatial). A picture (PNG, JPEG) is a volume of one slice
with x the column, y the row; a colour picture's channels stand on the fourth axis. A bag of n
feature vectors is a volume of n voxels along x, its features on the fourth axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from medplat import nifti
from medplat.errors import DataError, MissingExtra, Refused
from medplat.types import Array, Geometry, Image, Volume
from medplat.workflow.schema import Input, TrainWorkflow

if TYPE_CHECKING:
    from monai.data import MetaTensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
BAG = ".safetensors"
GRID_TOLERANCE = 0.01  # of a voxel, at the corners


def is_picture(path: Path) -> bool:
    """Whether the file's name is that of a picture."""
    return path.suffix.lower() in PICTURES


def read_image(image: Image, channels: int = 1) -> Volume:
    """Read one image of a case.

    Args:
        image: A NIfTI file, and which phase of it; a picture; or a bag.
        channels: 3 reads a picture in colour.

    Raises:
        DataError: The file is absent or not what its name says.
    """
    if not image.path.is_file():
        raise DataError(f"{image.path}: no such file")
    if is_picture(image.path):
        return _read_picture(image.path, channels)
    if image.path.suffix.lower() == BAG:
        return _read_bag(image.path)
    return nifti.read(image.path, phase=image.phase)


def _read_bag(path: Path) -> Volume:
    """The tensor `features` (n, C) of a safetensors file."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise MissingExtra("a bag of features", error.name or "safetensors") from error
    try:
        features = load_file(path).get("features")
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a safetensors file that can be read") from error
    if features is None or features.ndim != 2 or not len(features):
        has = "none" if features is None else f"one of shape {features.shape}"
        raise DataError(f"{path}: needs a tensor 'features' (n, features) with n >= 1, has {has}")
    values = features.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: holds features that are not finite: compute them again")
    shape = (len(values), 1, 1)
    return Volume(values[:, None, None, :], Geometry(np.eye(4), shape, orientation="unknown"))


def _read_picture(path: Path, channels: int) -> Volume:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with Pillow.open(path) as opened:
            deep = opened.mode.startswith("I") and channels == 1
            picture = opened if deep else opened.convert("RGB" if channels == 3 else "L")
            rows = np.asarray(picture)
    except (OSError, UnidentifiedImageError, Pillow.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture that can be read") from error
    array = rows.transpose(1, 0, *range(2, rows.ndim))[:, :, None]
    shape = (array.shape[0], array.shape[1], 1)
    return Volume(array, Geometry(np.eye(4), shape, orientation="unknown"))


def real_values(volume: Volume, channels: int = 1) -> npt.NDArray[np.float32]:
    """The values stored * slope + intercept as (channels, x, y, z) float32.

    Raises:
        Refused: MIXED_SHAPE where the volume has another number of channels.
    """
    stored = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    if stored.shape[3] != channels:
        what = "phases" if channels == 1 else "channels"
        raise Refused(
            "MIXED_SHAPE",
            f"the image has {stored.shape[3]} {what}, the input takes {channels}: "
            "set the input's phase or channels",
        )
    values = np.moveaxis(stored, 3, 0).astype(np.float32)
    if volume.slope != 1.0 or volume.intercept != 0.0:
        values = values * np.float32(volume.slope) + np.float32(volume.intercept)
    return np.ascontiguousarray(values)


def same_grid(one: Geometry, other: Geometry) -> bool:
    """Whether both have the same shape and their corners lie within 0.01 voxel of one another."""
    if one.shape != other.shape:
        return False
    ends = np.array(np.meshgrid(*[(0, size - 1) for size in one.shape])).reshape(3, -1)
    corners = np.vstack([ends, np.ones(ends.shape[1])])
    apart = np.abs((one.affine - other.affine) @ corners)[:3].max()
    voxel = np.sqrt((one.affine[:3, :3] ** 2).sum(axis=0)).min()
    return bool(apart <= GRID_TOLERANCE * max(voxel, 1e-6))


def check_directions(volumes: Sequence[Volume], workflow: TrainWorkflow, where: str = "") -> None:
    """Refuse a case whose transforms ask how it lies in the patient where no file says so.

    Args:
        volumes: The images of the case.
        workflow: Its transforms and augmentation.
        where: Begins the sentence.

    Raises:
        Refused: NO_GEOMETRY.
    """
    asked = any("Orientationd" in one for one in (*workflow.transforms, *workflow.augment))
    if asked and any(one.geometry.orientation == "unknown" for one in volumes):
        raise Refused(
            "NO_GEOMETRY",
            f"{where}Orientationd needs directions in the patient, which the file does not state "
            "(published files with an identity affine, pictures): leave it out",
        )


def stack(
    volumes: Sequence[Volume],
    inputs: Sequence[Input],
    spatial_dims: int,
    register: Literal["no", "rigid"] = "no",
) -> MetaTensor:
    """Put the images of one case on the first one's grid, as the channels of one tensor.

    Args:
        volumes: One for each input, in order.
        inputs: The model's channels.
        spatial_dims: 3; 2, and then each volume is a single slice; or 1, a bag.
        register: "rigid" first aligns volumes of another frame of reference.

    Returns:
        float32 (C, x, y, z), (C, x, y) or (C, n) with the first volume's affine, (4, 4), in
        `affine`.

    Raises:
        Refused: FRAME_OF_REFERENCE where two images have different ones and `register` is "no";
            MIXED_SHAPE where they can't be put on one grid, or 2-D is asked of many slices.
    """
    import torch
    from monai.data import MetaTensor

    first = volumes[0].geometry
    channels: list[Array] = []
    for volume, wanted in zip(volumes, inputs, strict=True):
        values = real_values(volume, wanted.channels)
        channels.append(_on_grid(values, volume.geometry, first, channels, wanted.name, register))
    stacked = np.concatenate(channels)
    if spatial_dims == 1:
        if stacked.shape[2:] != (1, 1):
            raise Refused("MIXED_SHAPE", "task.spatial_dims is 1 and the input is an image: use 2")
        stacked = stacked[..., 0, 0]
    if spatial_dims == 2:
        if stacked.shape[3] != 1:
            raise Refused(
                "MIXED_SHAPE",
                f"the image has {stacked.shape[3]} slices, task.spatial_dims is 2: use 3",
            )
        stacked = stacked[..., 0]
    return MetaTensor(torch.from_numpy(stacked), affine=torch.from_numpy(first.affine.copy()))


def _on_grid(
    values: npt.NDArray[np.float32],
    own: Geometry,
    target: Geometry,
    before: Sequence[Array],
    name: str,
    register: str,
) -> npt.NDArray[np.float32]:
    """`values` (C, x, y, z) of grid `own` on grid `target`; `before` holds the first image."""
    from medplat.loaders import align

    frames = {own.frame_of_reference_uid, target.frame_of_reference_uid} - {None}
    if len(frames) > 1:
        if register != "rigid":
            raise Refused(
                "FRAME_OF_REFERENCE",
                f"input {name} has another frame of reference than the first input: "
                "set infer.register to rigid, or choose series of one frame",
            )
        return align.register(values, own, before[0][0], target)
    if same_grid(own, target):
        return values
    if "unknown" in (own.orientation, target.orientation):
        raise Refused(
            "MIXED_SHAPE",
            f"input {name} has another grid than the first input, and where it lies is unknown",
        )
    return align.resample(values, own, target)
