"""The low-pass DCT as one product an axis with the kept rows of the orthonormal matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from medplat_kernels.attention_ops import wide
from medplat_kernels.dispatch import Verdict, verdict


def can_run(*_: Any, raise_error: bool = False) -> Verdict:
    """Always."""
    return verdict(None, raise_error, "torch runs every type and device")


def forward(x: torch.Tensor, keep: Sequence[int]) -> torch.Tensor:
    """(B, C, *spatial) -> (B, C, *keep)."""
    kept = [matrix(n, k, wide(x.dtype), x.device) for n, k in zip(x.shape[2:], keep, strict=True)]
    return _products(x, [rows.mT for rows in kept])


def backward(c: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, C, *keep) -> (B, C, *shape): the transpose, which is the inverse with zeros filled in."""
    kept = [matrix(n, k, wide(c.dtype), c.device) for n, k in zip(shape, c.shape[2:], strict=True)]
    return _products(c, kept)


def _products(x: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """X times one matrix (size, new size) an axis, last axis first."""
    y = x.to(matrices[0].dtype)
    for axis in reversed(range(2, x.dim())):
        by = matrices[axis - 2]
        if axis == x.dim() - 1:
            y = y @ by
        else:
            y = (by.mT @ y.flatten(axis + 1)).view(
                *y.shape[:axis], by.shape[1], *y.shape[axis + 1 :]
            )
    return y.to(x.dtype).contiguous()


@functools.lru_cache(64)
def matrix(size: int, keep: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The first `keep` rows of the orthonormal DCT-II matrix of `size`, made in float64."""
    i = torch.arange(size, dtype=torch.float64)
    u = torch.arange(keep, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (i + 0.5) * u[:, None]) * math.sqrt(2 / size)
    if keep:
        rows[0] = math.sqrt(1 / size)
    return rows.to(device, dtype)
