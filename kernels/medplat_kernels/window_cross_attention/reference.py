"""Window attention as one dense attention over all tokens, with a mask by cells of the lattice."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def window_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_q: Sequence[int],
    window_k: Sequence[int],
    shift: Sequence[int],
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """What `window_cross_attention` and, with `shift`, `window_attention` compute.

    Args:
        q: (B, h, *spatial_q, d).
        k: (B, h, *spatial_k, d).
        v: As k.
        window_q: Side of a window of q along each axis.
        window_k: Side of a window of k.
        shift: Where the lattice starts.
        bias: (h, nq, nk).
        scale: 1 / sqrt(d) unless given.

    Returns:
        (B, h, *spatial_q, d).
    """
    cell_q, place_q = _cells(q.shape[2:-1], window_q, shift)
    cell_k, place_k = _cells(k.shape[2:-1], window_k, shift)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q.flatten(2, -2) @ k.flatten(2, -2).mT
    if bias is not None:
        scores = scores + bias[:, place_q[:, None], place_k[None]]
    scores = scores.masked_fill(cell_q[:, None] != cell_k[None], float("-inf"))
    return (scores.softmax(-1) @ v.flatten(2, -2)).view_as(q)


def _cells(
    shape: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token, row-major: the number of its cell, and its place in the rolled window."""
    cell, place = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for size, side, start in zip(shape, window, shift, strict=True):
        along = torch.arange(size) - start
        cell = cell[:, None] * (-(-size // side) + 1) + along.div(side, rounding_mode="floor") + 1
        cell = cell.flatten()
        place = (place[:, None] * side + along % side).flatten()
    return cell, place
