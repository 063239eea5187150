"""The files of one case: each written to a temporary name and renamed, none left from before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medplat import nifti, paths
from medplat.dicom import seg
from medplat.errors import Refused
from medplat.infer.jobs import Job, ModelName, Number, Result, SegKind
from medplat.tasks.restore import finer
from medplat.types import Array, Geometry, Volume
from medplat.workflow.schema import ClassifyTask, RestoreTask, SegmentTask

NAMES = (
    "seg.nii.gz",
    "seg.dcm",
    "seg.png",
    "map.nii.gz",
    "map.png",
    "restored.nii.gz",
    "restored.png",
    "result.json",
    "overlay.png",
)
Overlay = Callable[[Volume, Array, Path], None]
"""Draws the contours of a mask (x, y, z) over a volume into a PNG file, whole or not at all."""


def clear(folder: Path) -> None:
    """Delete what an earlier run left of this case, torn temporary files too."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir():
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def write_segment(
    job: Job,
    mask: Array,
    volume: Volume,
    task: SegmentTask,
    model: ModelName,
    kind: SegKind,
    overlay: Overlay,
) -> Result:
    """Write a mask as NIfTI, DICOM SEG or PNG, with its volumes and its picture.

    Args:
        job: The case.
        mask: (x, y, z) label values on the source's own grid.
        volume: The first input, for the picture and the grid.
        task: The labels.
        model: Named in the DICOM object and in result.json.
        kind: What `seg.dcm` is.
        overlay: Draws overlay.png.

    Raises:
        OSError: A file cannot be written.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    result = Result("done")
    voxel_ml = _voxel_ml(job, volume.geometry)
    labels = []
    for label in task.labels:
        count = int((mask == label.value).sum())
        volume_ml = None if voxel_ml is None else round(count * voxel_ml, 6)
        result.numbers[f"{label.name}_ml"] = volume_ml
        labels.append(
            {"name": label.name, "value": label.value, "n_voxels": count, "volume_ml": volume_ml}
        )
    if job.kind == "picture":
        _write_png(mask, job.folder / "seg.png")
    else:
        nifti.write(Volume(mask, volume.geometry), job.folder / "seg.nii.gz")
    _write_dicom(job, mask, task, model, kind, result)
    overlay(volume, mask, job.folder / "overlay.png")
    if not mask.any():
        result.notes.append("nothing was found: the mask is empty")
    write_result(job, result, model, {"task": "segment", "labels": labels})
    return result


def write_classify(job: Job, probabilities: Array, task: ClassifyTask, model: ModelName) -> Result:
    """Write the probability of each class."""
    result = Result("done")
    named: dict[str, Number | None] = {
        name: round(float(value), 6)
        for name, value in zip(task.classes, probabilities, strict=True)
    }
    result.numbers = {f"{name}_probability": value for name, value in named.items()}
    write_result(job, result, model, {"task": "classify", "probabilities": named})
    return result


def finer_volume(volume: Volume, task: RestoreTask) -> Volume:
    """The volume on the grid of the task's output, each voxel repeated; itself without a factor."""
    if task.upscale == 1:
        return volume
    array, geometry = volume.array, volume.geometry
    for axis in range(task.spatial_dims):
        array = array.repeat(task.upscale, axis)
    shape = (array.shape[0], array.shape[1], array.shape[2])
    affine = finer(geometry.affine, task.upscale, task.spatial_dims)
    return replace(volume, array=array, geometry=replace(geometry, affine=affine, shape=shape))


def write_restore(
    job: Job, values: Array, volume: Volume, task: RestoreTask, model: ModelName
) -> Result:
    """Write a restored image: float32 NIfTI, or a picture of the source's depth.

    Args:
        job: The case.
        values: (C, x, y, z) in the source's own values, on the grid of `finer_volume`.
        volume: The first input.
        task: Its factor says on which grid.
        model: Named in result.json.

    Raises:
        OSError: A file cannot be written.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    result = Result("done")
    geometry = finer_volume(volume, task).geometry
    if job.kind == "picture":
        depth = np.iinfo(np.uint16 if volume.array.dtype.itemsize > 1 else np.uint8)
        pixels = values.round().clip(0, depth.max).astype(depth.dtype)
        _write_png(pixels[0] if len(pixels) == 1 else pixels, job.folder / "restored.png")
    else:
        nifti.write(Volume(values[0], geometry), job.folder / "restored.nii.gz")
    if job.kind == "dicom":
        result.notes.append("the restored image is written as NIfTI only, not as DICOM")
    write_result(job, result, model, {"task": "restore", "upscale": task.upscale})
    return result


def write_result(job: Job, result: Result, model: ModelName, more: Mapping[str, Any]) -> None:
    """Write result.json, also of a case that was rejected or failed; fills `result.outputs`."""
    content = {
        "case": job.case,
        "patient": job.patient,
        "status": result.status,
        "error": {"code": result.code, "message": result.message} if result.code else None,
        "model": {
            "name": model.name,
            "version": model.version,
            "weights_sha256": model.weights_sha256,
        },
        "inputs": job.used,
        "not_taken": job.left,
        "input_sha256": job.input_sha256,
        **more,
        "notes": result.notes,
    }
    nifti.write_json(job.folder / "result.json", content)
    result.outputs = [
        {"path": f"{job.folder.name}/{name}", "sha256": file_sha256(job.folder / name)}
        for name in NAMES
        if (job.folder / name).is_file()
    ]


def write_failure(job: Job, result: Result, model: ModelName) -> None:
    """Leave result.json alone of a case that did not succeed, if that can be written."""
    try:
        clear(job.folder)
        write_result(job, result, model, {})
    except OSError:
        result.outputs = []


def intact(out: Path, outputs: list[dict[str, str]]) -> bool:
    """Whether every recorded output is there with the recorded bytes."""
    return bool(outputs) and all(
        (out / one["path"]).is_file() and file_sha256(out / one["path"]) == one["sha256"]
        for one in outputs
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _voxel_ml(job: Job, geometry: Geometry) -> float | None:
    """None where a voxel has no volume: pictures and radiographs."""
    flat = geometry.orientation == "unknown" and geometry.shape[2] == 1
    if job.kind == "picture" or flat:
        return None
    return float(abs(np.linalg.det(geometry.affine[:3, :3]))) / 1000.0


def _write_dicom(
    job: Job, mask: Array, task: SegmentTask, model: ModelName, kind: SegKind, result: Result
) -> None:
    take = job.takes[0]
    if take.plan is None:
        return
    try:
        seg.write(
            mask,
            take.plan,
            task.labels,
            job.folder / "seg.dcm",
            kind=kind,
            model=model.name,
            version=model.version,
            weights_sha256=model.weights_sha256,
            phase=take.phase or 0,
        )
    except Refused as error:
        result.notes.append(error.message)


def _write_png(pixels: Array, path: Path) -> None:
    """Write (x, y, 1), or (3, x, y, 1) in colour."""
    from PIL import Image

    with paths.whole(path) as part:
        Image.fromarray(np.ascontiguousarray(pixels[..., 0].T)).save(part, "PNG")
