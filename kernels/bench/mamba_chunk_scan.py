"""Mamba-2's scan in chunks against the recurrence, a step at a time."""

from __future__ import annotations

import torch
from harness import Case, Cases, close
from torch import Tensor

from medplat_kernels import mamba_chunk_scan_combined

SEQUENTIAL = "a step at a time"


def _sequential(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """One group: h = exp(dt A) h + dt x B^T, y = h C; all batches and heads at a time."""
    batch, length, heads, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1])
    out = []
    for step in range(length):
        decay = torch.exp(dt[:, step] * A)[..., None, None]
        inputs = (dt[:, step, :, None] * x[:, step])[..., None] * B[:, step, :, None]
        state = decay * state + inputs
        out.append((state @ C[:, step, 0, :, None])[..., 0])
    return torch.stack(out, 1)


def _case(device: str) -> Case:
    torch.manual_seed(0)
    length, heads, width, states = 13824, 6, 64, 64
    x = torch.randn(1, length, heads, width, device=device)
    dt = torch.rand(1, length, heads, device=device) * 0.1
    A = -torch.rand(heads, device=device) * 8 - 0.1
    B, C = (torch.randn(1, length, 1, states, device=device) for _ in range(2))
    return Case(
        title=f"mamba_chunk_scan (1, {length}, {heads}, {width}, {states}), forward",
        variants={
            "medplat, chunks of 64": lambda: mamba_chunk_scan_combined(x, dt, A, B, C, 64),
            SEQUENTIAL: lambda: _sequential(x, dt, A, B, C),
        },
        same=close(1e-4),
        goals={SEQUENTIAL: 20},
        operator="mamba_chunk_scan",
    )


CASES: Cases = {"13824": _case}
