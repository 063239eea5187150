"""Attention in small windows: batched products (what `wau_unet` runs) against torch's SDPA.

Forward and backward, at the two window shapes of `wau_unet`: 64 queries x 8 keys (3-D, window 4)
and 64 queries x 16 keys (2-D, window 8), with the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import harness
import torch
from torch.nn.functional import scaled_dot_product_attention

from medplat.blocks.windows import attend

HERE = Path(__file__).resolve().parent


def _step(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], torch.Tensor]:
    def once() -> torch.Tensor:
        for tensor in tensors:
            tensor.grad = None
        out = run(*tensors)
        out.sum().backward()
        return out.detach()

    return once


def _table(keys: int, windows: int = 1536, heads: int = 2, width: int = 16) -> str:
    torch.manual_seed(0)
    q = torch.randn(windows, heads, 64, width, requires_grad=True)
    k, v = (torch.randn(windows, heads, keys, width, requires_grad=True) for _ in range(2))
    bias = torch.randn(heads, 64, keys, requires_grad=True)
    rows = harness.compare(
        {
            "batched products": _step(attend, q, k, v, bias),
            "torch SDPA": _step(
                lambda q, k, v, b: scaled_dot_product_attention(q, k, v, attn_mask=b), q, k, v, bias
            ),
        },
        same=lambda one, other: torch.allclose(one, other, atol=1e-5),
    )
    title = f"window attention, {windows} windows, 64 queries x {keys} keys, forward + backward"
    return harness.report(title, rows, HERE / f"window_attention_{keys}.json")


def main() -> str:
    """Both window shapes."""
    return "\n\n".join(_table(keys) for keys in (8, 16))
