"""The low-pass DCT by its definition: a sum over tokens for each frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def dct_lowpass_reference(x: torch.Tensor, keep: Sequence[int]) -> torch.Tensor:
    """What `dct_lowpass` computes: (B, C, *spatial) -> (B, C, *keep)."""
    for axis, kept in enumerate(keep, start=2):
        x = torch.stack([_project(x, axis, frequency) for frequency in range(kept)], axis)
    return x


def idct_reference(c: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """What `idct` computes: (B, C, *keep) -> (B, C, *shape)."""
    for axis, size in enumerate(shape, start=2):
        waves = [_wave(size, frequency, c) for frequency in range(c.shape[axis])]
        parts = [
            c.select(axis, frequency).unsqueeze(axis) * _along(wave, axis, c.dim())
            for frequency, wave in enumerate(waves)
        ]
        c = torch.stack(parts).sum(0)
    return c


def _project(x: torch.Tensor, axis: int, frequency: int) -> torch.Tensor:
    wave = _wave(x.shape[axis], frequency, x)
    return (x * _along(wave, axis, x.dim())).sum(axis)


def _wave(size: int, frequency: int, like: torch.Tensor) -> torch.Tensor:
    norm = math.sqrt((1 if frequency == 0 else 2) / size)
    return torch.tensor(
        [norm * math.cos(math.pi / size * (i + 0.5) * frequency) for i in range(size)],
        dtype=like.dtype,
        device=like.device,
    )


def _along(wave: torch.Tensor, axis: int, dims: int) -> torch.Tensor:
    return wave.view([-1 if n == axis else 1 for n in range(dims)])
