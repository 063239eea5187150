"""Attention between windows of two maps that are tiled in step.

Window number w of q attends to window number w of k and v, so that a fine map can ask a coarse one:
64 queries of an 8 x 8 window against the 16 keys of the 4 x 4 window below it. Windows that hang
over the far end of a map are masked there. The backends' contract is in `attention_ops`, with
`window_q`, `window_k` and `shift` (always 0 here); the lattice of windows is in `windows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, empty  # not torch: a backend of this package has that name

from medplat_kernels.attention_ops import check, check_bias, register
from medplat_kernels.windows import PLACES, along, counts

__all__ = ["example", "window_cross_attention"]

_attend = register("window_cross_attention", PLACES, lambda k, places: math.prod(places[1]))


def window_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_q: int | Sequence[int],
    window_k: int | Sequence[int],
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v in each pair of windows.

    Args:
        q: (B, h, Hq, Wq, d), or (B, h, Dq, Hq, Wq, d).
        k: (B, h, Hk, Wk, d), likewise. Both maps have the same number of windows along each axis.
        v: As k.
        window_q: Side of a window of q in tokens, one number or one an axis.
        window_k: Side of a window of k.
        bias: (h, nq, nk), nq and nk the tokens of a window, row-major; the same in all windows.
        scale: Factor of the products; 1 / sqrt(d) unless given.
        backend: "triton", "numba" or "torch"; the first that can run it unless given.

    Returns:
        Shape, type and memory order of q.

    Raises:
        ValueError: Shapes, types and windows do not go together.
        BackendError: The backend asked for can't run this call.
    """
    check(q, k, v, (2, 3))
    dims = q.dim() - 3
    sides_q, sides_k = along("window_q", window_q, dims), along("window_k", window_k, dims)
    number_q, number_k = counts(q.shape[2:-1], sides_q), counts(k.shape[2:-1], sides_k)
    if number_q != number_k:
        raise ValueError(
            f"q has {number_q} windows along its axes and k {number_k}: choose window_q and "
            "window_k so that they are the same"
        )
    check_bias(q, bias, math.prod(sides_q), math.prod(sides_k))
    return _attend(q, k, v, bias, (sides_q, sides_k, (0,) * dims), scale, backend)


def example(device: str) -> tuple[Any, ...]:
    """What `can_run` gets for a small call."""
    q = empty(1, 1, 8, 8, 16, device=device)
    k = empty(1, 1, 4, 4, 16, device=device)
    return q, k, k, None, (8, 8), (4, 4), (0, 0)
