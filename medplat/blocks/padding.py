"""Padding at the far end of every axis, so that any input size fits a network that halves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from medplat.errors import DataError


def pad_far_end(x: torch.Tensor, multiple: int | Sequence[int]) -> torch.Tensor:
    """Zeros behind the last voxel of each axis, up to the next multiple.

    Args:
        x: (B, C, *spatial).
        multiple: One number for all axes, or one for each.

    Returns:
        (B, C, *padded), `x` itself where nothing is missing; cut back with `crop_to`.
    """
    shape = x.shape[2:]
    steps = [multiple] * len(shape) if isinstance(multiple, int) else list(multiple)
    missing = [-size % step for size, step in zip(shape, steps, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [n for axis in reversed(missing) for n in (0, axis)])


def crop_to(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The first voxels of each axis: (B, C, *spatial) -> (B, C, *shape)."""
    for axis, size in enumerate(shape, start=2):
        x = x.narrow(axis, 0, size)
    return x


def pad_for_levels(x: torch.Tensor, multiple: int | Sequence[int]) -> torch.Tensor:
    """`pad_far_end`, and where the coarsest map would be a single voxel, two along the last axis.

    Instance normalisation has no meaning on one voxel and torch refuses it.
    """
    padded = pad_far_end(x, multiple)
    steps = [multiple] * (x.ndim - 2) if isinstance(multiple, int) else list(multiple)
    if list(padded.shape[2:]) == steps:
        padded = F.pad(padded, [0, steps[-1]])
    return padded


def require_multiple(x: torch.Tensor, multiple: int) -> None:
    """Refuse a size that the network would cut: (B, C, *spatial) in whole multiples, or not at all.

    Raises:
        DataError: A side is no multiple; the sentence names the next size that is.
    """
    shape = x.shape[2:]
    if any(size % multiple for size in shape):
        fitting = [-(-size // multiple) * multiple for size in shape]
        raise DataError(
            f"the network takes sides that are multiples of {multiple}, the image is "
            f"{'x'.join(map(str, shape))}: pad or resize it, to {'x'.join(map(str, fitting))} "
            "for instance"
        )
