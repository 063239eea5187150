"""Scale attention, one product after the other."""

from __future__ import annotations

import torch


def scale_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    readout: int | None = None,
) -> torch.Tensor:
    """What `scale_attention` computes: (M, h, S, d) -> (M, h, S, d), or (M, h, 1, d)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = (scale * q @ k.mT).softmax(-1) @ v
    return out if readout is None else out[:, :, readout, None]
