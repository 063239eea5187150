"""Neighborhood attention: each query sees the window of keys around it.

Source: Hassani et al., Neighborhood Attention Transformer, arXiv 2204.07143, and Dilated
Neighborhood Attention Transformer, arXiv 2209.15001. NATTEN's rule: at the border the window is
shifted inward, so that every query has kernel_size^n keys. Along an axis of L tokens with kernel
size K and dilation 1, query i sees keys s..s+K-1, s = min(max(i - K // 2, 0), L - K). With dilation
the rule holds among the tokens i % dilation, i % dilation + dilation, ... alone. The backends'
contract is in `attention_ops`, with `kernel_size` and `dilation`; bias is always None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, empty  # not torch: a backend of this package has that name

from medplat_kernels.attention_ops import check, register
from medplat_kernels.windows import along

__all__ = ["example", "neighborhood_attention"]

_attend = register(
    "neighborhood_attention", ("kernel_size", "dilation"), lambda k, places: math.prod(places[0])
)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over the neighborhood of each query.

    Args:
        q: (B, h, H, W, d), or (B, h, D, H, W, d).
        k: As q.
        v: As q.
        kernel_size: Keys along each axis, one number or one an axis.
        dilation: Step between them; kernel_size * dilation must fit each axis.
        scale: Factor of the products; 1 / sqrt(d) unless given.
        backend: "triton", "numba" or "torch"; the first that can run it unless given.

    Returns:
        Shape, type and memory order of q.

    Raises:
        ValueError: Shapes, types and sizes do not go together.
        BackendError: The backend asked for can't run this call.
    """
    check(q, k, v, (2, 3))
    if q.shape != k.shape:
        raise ValueError(f"q and k differ in shape: {tuple(q.shape)} and {tuple(k.shape)}")
    dims = q.dim() - 3
    kernel, step = along("kernel_size", kernel_size, dims), along("dilation", dilation, dims)
    shape = tuple(q.shape[2:-1])
    if any(0 < n < a * b for n, a, b in zip(shape, kernel, step, strict=True)):
        raise ValueError(f"kernel_size {kernel} times dilation {step} does not fit a map {shape}")
    return _attend(q, k, v, None, (kernel, step), scale, backend)


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    q = empty(1, 1, 8, 8, 16, device=device)
    return q, q, q, None, (3, 3), (1, 1)
