"""Attention inside the windows of a map, shifted ones too.

Source: Liu et al., Swin Transformer, arXiv 2103.14030, section 3.2. A token attends to the tokens
of its own cell of a lattice of windows that starts at `shift`; rolling is how that is computed, and
tokens that meet only by the roll do not see one another. The backends' contract is in
`attention_ops`, with `window_q` = `window_k` and `shift`; the lattice is in `windows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, empty  # not torch: a backend of this package has that name

from medplat_kernels.attention_ops import check, check_bias, register
from medplat_kernels.windows import PLACES, along

__all__ = ["example", "window_attention"]

_attend = register("window_attention", PLACES, lambda k, places: math.prod(places[1]))


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | Sequence[int],
    shift: int | Sequence[int] = 0,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v in each window.

    Args:
        q: (B, h, H, W, d), or (B, h, D, H, W, d).
        k: As q.
        v: As q.
        window: Side of a window in tokens, one number or one an axis.
        shift: The lattice of windows starts here, 0 <= shift < window, one number or one an axis;
            cells cut by the border of the map are smaller.
        bias: (h, n, n), n the tokens of a window, row-major, by their place in the rolled window.
        scale: Factor of the products; 1 / sqrt(d) unless given.
        backend: "triton", "numba" or "torch"; the first that can run it unless given.

    Returns:
        Shape, type and memory order of q.

    Raises:
        ValueError: Shapes, types and windows do not go together.
        BackendError: The backend asked for can't run this call.
    """
    check(q, k, v, (2, 3))
    if q.shape != k.shape:
        raise ValueError(f"q and k differ in shape: {tuple(q.shape)} and {tuple(k.shape)}")
    dims = q.dim() - 3
    side = along("window", window, dims)
    by = along("shift", shift, dims, least=0)
    if any(s >= w for s, w in zip(by, side, strict=True)):
        raise ValueError(f"shift must be smaller than the window {side}, got {shift}")
    check_bias(q, bias, math.prod(side), math.prod(side))
    return _attend(q, k, v, bias, (side, side, by), scale, backend)


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    q = empty(1, 1, 8, 8, 16, device=device)
    return q, q, q, None, (4, 4), (4, 4), (0, 0)
