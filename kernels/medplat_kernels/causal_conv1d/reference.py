"""The causal convolution as it is defined, tap by tap. For tests only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.scan_orders import find, names_of


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_states: Tensor | None = None,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    layout: str = "bdl",
) -> Tensor:
    """Arguments as in `causal_conv1d_fn`, computed in the dtype of x."""
    x = x.transpose(1, 2) if layout == "bld" else x
    names, (batch, width, length), taps = names_of(order), x.shape, weight.shape[1]
    outputs = []
    for k, name in enumerate(names):
        rows = slice(k * width, (k + 1) * width)
        order_k = find(name)
        before = x.new_zeros(batch, width, taps - 1)
        before = before if initial_states is None else initial_states[:, rows]
        seen = torch.cat((before, x[:, :, order_k.positions(grid or (length,))]), 2)
        y = torch.zeros_like(x)
        for tap in range(taps):
            y = y + weight[rows, tap, None] * seen[:, :, tap : tap + length]
        y = y if bias is None else y + bias[rows, None]
        outputs.append(y[:, :, order_k.inverse(grid or (length,))])
    out = torch.cat(outputs, 1)
    out = F.silu(out) if activation == "silu" else out
    return out.transpose(1, 2) if layout == "bld" else out
