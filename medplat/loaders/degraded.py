"""Cases of restore: the clean image, what is made of it, and training pairs out of both.

Images stay (C, x, y, z), also of 2-D tasks, whose pairs are single slices. What is fixed for a case
is drawn from (seed, case), what is fresh for an example from (seed, epoch, case, patch).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medplat import degrade
from medplat.errors import DataError
from medplat.tasks import restore
from medplat.types import Array, Geometry
from medplat.workflow.schema import TrainWorkflow


def prepare(done: Mapping[str, Any], workflow: TrainWorkflow, *, training: bool) -> dict[str, Any]:
    """What training and measuring need of a transformed case.

    Args:
        done: `case`, `patient`, `image` (C, x, y, z) after the transforms; where the reference is
            a file of its own, its channels are the last ones.
        workflow: The train workflow.
        training: Whether pairs are made of it, or it is predicted and measured as a whole.

    Returns:
        For training `image` and `reference` on the network's scale, or, where each example is
        degraded anew, `clean` and how; else `image`, `truth` in its own values, `ends`, `geometry`.

    Raises:
        DataError: The degradation cannot be done, or the case is too small for the factor.
    """
    task, kept = restore.section(workflow), {key: done[key] for key in ("case", "patient")}
    image = done["image"]
    affine = np.asarray(image.affine, np.float64)
    values = np.ascontiguousarray(np.asarray(image), np.float32)
    if task.reference == "label":
        channels = workflow.inputs[0].channels
        bad, clean = values[:-channels], values[-channels:]
    else:
        clean = _whole_blocks(values, task.upscale, task.spatial_dims, str(done["case"]))
        bad = spoil(clean, affine, workflow, _fixed(workflow, str(done["case"])))
    ends = restore.value_range(bad, task)
    reference = clean[: workflow.inputs[0].channels]
    if not training:
        geometry = Geometry(affine, (clean.shape[1], clean.shape[2], clean.shape[3]))
        low = torch.from_numpy(restore.to_scale(bad, ends))
        shown = MetaTensor(low, affine=torch.from_numpy(affine))
        return {**kept, "image": shown, "truth": reference, "ends": ends, "geometry": geometry}
    if task.reference == "image" and task.fresh:
        level = degrade.signal_level(clean)
        return {**kept, "clean": clean, "affine": affine, "ends": ends, "level": level}
    return {**kept, "image": _scaled(bad, ends), "reference": _scaled(reference, ends)}


def pair(
    prepared: Mapping[str, Any], workflow: TrainWorkflow, rng: np.random.Generator
) -> dict[str, Any]:
    """`image` and `reference`, uncut: (C, x, y) of a drawn slice, or (C, x, y, z)."""
    task = restore.section(workflow)
    fresh = "clean" in prepared
    whole = prepared["clean" if fresh else "image"]
    part = slice(None)
    if task.spatial_dims == 2:
        at = int(rng.integers(whole.shape[3]))
        part = slice(at, at + 1)
    if fresh:
        clean = whole[..., part]
        bad = spoil(clean, prepared["affine"], workflow, rng, level=prepared["level"])
        found = {
            "image": _scaled(bad, prepared["ends"]),
            "reference": _scaled(clean[: workflow.inputs[0].channels], prepared["ends"]),
        }
    else:
        found = {key: prepared[key][..., part] for key in ("image", "reference")}
    if task.spatial_dims == 2:
        return {key: value[..., 0].clone() for key, value in found.items()}
    return {key: value.clone() for key, value in found.items()}


def spoil(
    clean: Array,
    affine: Array,
    workflow: TrainWorkflow,
    rng: np.random.Generator,
    *,
    level: float | None = None,
) -> Array:
    """The degraded image of a clean one, on the coarser grid where the task has a factor."""
    task = restore.section(workflow)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    level = degrade.signal_level(clean) if level is None else level
    bad = degrade.degrade(clean, spacing, task.degrade, rng, level=level, dims=task.spatial_dims)
    return bad if task.upscale == 1 else degrade.shrink(bad, task.upscale, task.spatial_dims)


def _fixed(workflow: TrainWorkflow, case: str) -> np.random.Generator:
    return np.random.default_rng([workflow.train.seed, zlib.crc32(case.encode())])


def _scaled(values: Array, ends: tuple[float, float]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(restore.to_scale(values, ends), np.float32))


def _whole_blocks(values: Array, factor: int, dims: int, case: str) -> Array:
    """Cut at the far end, so that every side is a multiple of the factor."""
    sides = [
        side // factor * factor if axis < dims else side
        for axis, side in enumerate(values.shape[1:])
    ]
    if not all(sides):
        raise DataError(f"case {case}: {values.shape[1:]} voxels are too few for upscale {factor}")
    return values[:, : sides[0], : sides[1], : sides[2]]
