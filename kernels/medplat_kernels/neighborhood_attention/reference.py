"""Neighborhood attention as one dense attention with a mask, by NATTEN's rule token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def neighborhood_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float | None = None,
) -> torch.Tensor:
    """What `neighborhood_attention` computes.

    Args:
        q: (B, h, *spatial, d).
        k: As q.
        v: As q.
        kernel_size: Keys along each axis.
        dilation: Step between them along each axis.
        scale: 1 / sqrt(d) unless given.

    Returns:
        (B, h, *spatial, d).
    """
    seen = torch.ones(1, 1, dtype=torch.bool)
    for size, kernel, step in zip(q.shape[2:-1], kernel_size, dilation, strict=True):
        axis = torch.zeros(size, size, dtype=torch.bool)
        for i in range(size):
            axis[i, window(i, size, kernel, step)] = True
        seen = (seen[:, None, :, None] & axis[None, :, None, :]).flatten(0, 1).flatten(1, 2)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q.flatten(2, -2) @ k.flatten(2, -2).mT
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v.flatten(2, -2)).view_as(q)


def window(i: int, size: int, kernel: int, step: int) -> list[int]:
    """The keys of query `i` along one axis of `size` tokens."""
    kin = list(range(i % step, size, step))
    first = min(max(i // step - kernel // 2, 0), len(kin) - kernel)
    return kin[first : first + kernel]
