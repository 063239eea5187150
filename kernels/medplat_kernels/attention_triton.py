"""Launches the Triton attention kernels for the operators whose queries see a tile of keys.

Backends `window_attention.triton`, `window_cross_attention.triton`, `scale_attention.triton` and
`neighborhood_attention.triton` are these functions with a `Tiling`; contract in `attention_ops`.
Triton is imported at the first launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDEST = 128  # of a head
TILES = {1: (1, 1, 64), 2: (1, 8, 8), 3: (4, 4, 4)}  # of queries in a neighborhood, by axes
PROGRAMS = 1024  # for the gradient of a bias: enough for any GPU, few enough to add up
MOST_PROGRAMS = 2**31 - 1


@dataclass(frozen=True)
class Tiling:
    """Which keys a query sees; tuples are along (z, y, x).

    Attributes:
        near: Neighborhoods; else windows.
        queries: Side of a window of queries, or of a tile of them.
        keys: Side of a window of keys, or the kernel size.
        move: Shift of the windows, or the dilation.
        tiles: Number of windows or tiles along each axis.
    """

    near: bool
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    move: tuple[int, ...]
    tiles: tuple[int, ...]


def windows(
    shape: Sequence[int], window_q: Sequence[int], window_k: Sequence[int], shift: Sequence[int]
) -> Tiling:
    """Windows on a map of `shape` queries."""
    number = [-(-size // side) for size, side in zip(shape, window_q, strict=True)]
    return Tiling(False, _zyx(window_q, 1), _zyx(window_k, 1), _zyx(shift, 0), _zyx(number, 1))


def neighborhoods(
    shape: Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int]
) -> Tiling:
    """Neighborhoods on a map of `shape` queries; each remainder of the dilation has own tiles."""
    tile = TILES[len(shape)]
    sides = tile[3 - len(shape) :]
    number = [
        step * -(-size // step // side)
        for size, side, step in zip(shape, sides, dilation, strict=True)
    ]
    return Tiling(True, tile, _zyx(kernel_size, 1), _zyx(dilation, 1), _zyx(number, 1))


def _zyx(given: Sequence[int], fill: int) -> tuple[int, ...]:
    return (*[fill] * (3 - len(given)), *given)


def too_large(q: Tensor, tiling: Tiling) -> str | None:
    """What of these heads and tiles the kernels can't hold; None where they can."""
    if q.shape[-1] > WIDEST:
        return f"triton attention takes heads of {WIDEST} at most, got {q.shape[-1]}"
    tokens = max(math.prod(tiling.queries), math.prod(tiling.keys))
    programs = q.shape[0] * q.shape[1] * math.prod(tiling.tiles) * -(-tokens // 16)
    if programs > MOST_PROGRAMS:
        return f"triton would need {programs} programs, {MOST_PROGRAMS} is the most"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, tiling: Tiling, scale: float
) -> tuple[Tensor, Tensor]:
    """Output as q, and lse (batch, heads, *tokens) in float32."""
    from . import attention_triton_kernels as kernels

    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    constants = _constants(tiling, q, "forward")
    programs = -(-math.prod(tiling.queries) // constants["BLOCK_Q"]) * _slabs(q, tiling)
    kernels.tile_attention_forward_kernel[(programs,)](
        q, k, v, bias, out, lse, _strides(q), _strides(k), _strides(v), _strides(out),
        q.shape[1], _size(q), _size(k), tiling.tiles, scale, tiling.near, **constants,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    tiling: Tiling, scale: float, bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and, where asked for, the bias (float32)."""
    from . import attention_triton_kernels as kernels

    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    inner = torch.empty_like(lse)
    shape = (q.shape[1], _size(q), _size(k), tiling.tiles, scale)
    read = (_strides(grad), _strides(q), _strides(k), _strides(v))
    constants = _constants(tiling, q, "backward_queries")
    programs = -(-math.prod(tiling.queries) // constants["BLOCK_Q"]) * _slabs(q, tiling)
    kernels.tile_attention_backward_queries_kernel[(programs,)](
        grad, q, k, v, bias, out, lse, inner, dq, *read, _strides(out), _strides(dq),
        *shape, tiling.near, **constants,
    )  # fmt: skip
    constants = _constants(tiling, q, "backward_keys")
    own = tiling.queries if tiling.near else tiling.keys
    programs = -(-math.prod(own) // constants["BLOCK_K"]) * _slabs(q, tiling)
    kernels.tile_attention_backward_keys_kernel[(programs,)](
        grad, q, k, v, bias, lse, inner, dk, dv, *read, _strides(dk), _strides(dv),
        *shape, tiling.near, **constants,
    )  # fmt: skip
    if bias is None or not bias_grad:
        return dq, dk, dv, None
    constants = _constants(tiling, q, "backward_bias")
    heads, nq, nk = bias.shape
    pairs = heads * -(-nq // constants["BLOCK_Q"]) * -(-nk // constants["BLOCK_K"])
    splits = max(1, min(q.shape[0] * math.prod(tiling.tiles), PROGRAMS // pairs))
    parts = lse.new_empty((splits, *bias.shape))
    kernels.tile_attention_backward_bias_kernel[(splits * pairs,)](
        grad, q, k, v, bias, lse, inner, parts, *read, q.shape[0], *shape, splits, **constants,
    )  # fmt: skip
    return dq, dk, dv, parts.sum(0)


def blocks(tiling: Tiling, width: int, wide: bool, kernel: str) -> tuple[int, int, int]:
    """Queries and keys that a program holds at a time, and its warps.

    Chosen so that no kernel spills and all but one stay within 128 registers (the compile gate).

    Args:
        tiling: Which keys a query sees.
        width: Of a head.
        wide: The maps are float32.
        kernel: "forward", "backward_queries", "backward_keys" or "backward_bias".
    """
    small = width > 64 if wide else kernel == "backward_keys"
    most = 16 if small else 32
    keys = most if tiling.near else math.prod(tiling.keys)
    warps = 8 if wide or kernel == "backward_bias" else 4
    return block(math.prod(tiling.queries), most), block(keys, most), warps


def block(tokens: int, most: int) -> int:
    """A power of two from 16, the least that a product of matrices takes, to `most`."""
    return int(min(most, max(16, 1 << (tokens - 1).bit_length())))


def _constants(tiling: Tiling, q: Tensor, kernel: str) -> dict[str, Any]:
    width = q.shape[-1]
    block_q, block_k, warps = blocks(tiling, width, q.dtype == torch.float32, kernel)
    return {
        "QUERIES": tiling.queries, "KEYS": tiling.keys, "MOVE": tiling.move, "D": width,
        "BLOCK_D": block(width, WIDEST), "BLOCK_Q": block_q, "BLOCK_K": block_k,
        "num_warps": warps, "enable_fp_fusion": True,
    }  # fmt: skip


def _slabs(q: Tensor, tiling: Tiling) -> int:
    return q.shape[0] * q.shape[1] * math.prod(tiling.tiles)


def _size(x: Tensor) -> tuple[int, ...]:
    return _zyx(x.shape[2:-1], 1)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of batch, head, z, y, x; axes that the map lacks have stride 0."""
    batch, head, *places, _ = x.stride()
    return batch, head, *_zyx(places, 0)
