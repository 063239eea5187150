"""The Mamba-2 scan as it is defined: one loop over time. For tests only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mamba_chunk_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """Output and final states; arguments as in `mamba_chunk_scan_combined`, in the dtype of x."""
    batch, _, heads, width = x.shape
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    B, C = (each.repeat_interleave(heads // each.shape[2], 2) for each in (B, C))
    h = x.new_zeros(batch, heads, width, B.shape[3]) if initial_states is None else initial_states
    outputs = []
    steps = zip(*(each.unbind(1) for each in (x, dt, B, C)), strict=True)
    for t, (x_t, dt_t, B_t, C_t) in enumerate(steps):
        if seq_idx is not None and t > 0:
            h = h * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        added = (dt_t[..., None] * x_t)[..., None] * B_t[:, :, None]
        h = torch.exp(dt_t * A)[..., None, None] * h + added
        outputs.append((h * C_t[:, :, None]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + x * (D if D.dim() == 2 else D.unsqueeze(-1))
    return (y if z is None else y * F.silu(z)), h
