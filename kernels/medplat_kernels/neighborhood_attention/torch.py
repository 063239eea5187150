"""Neighborhood attention in torch operations: tiles of queries with a halo of keys.

The queries of a tile share one box of keys, tile + kernel_size - 1 along each axis, and see their
own window in it through a mask. Boxes of edge tiles are moved inward, so that all are one size.
With dilation each class of tokens i % dilation is a map of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from medplat_kernels import small_attention
from medplat_kernels.attention_ops import wide
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.windows import merge, partition

TILE = {2: 8, 3: 4}  # queries along each side of a tile


def can_run(*_: Any, raise_error: bool = False) -> Verdict:
    """Always."""
    return verdict(None, raise_error, "torch runs every type and device")


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: None,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and sums; see `attention_ops`."""
    out, lse = torch.empty_like(q), q.new_empty((*q.shape[:-1], 1), dtype=wide(q.dtype))
    for slab in _slabs(q.shape[2:-1], kernel_size, dilation):
        queries = partition(slab.of_queries(q), slab.tile, slab.still)
        keys, values = (slab.boxes(x) for x in (k, v))
        a, sums = small_attention.forward(queries, keys, values, None, slab.mask(q.device), scale)
        merge(a, slab.of_queries(out), slab.tile, slab.still)
        merge(sums.unsqueeze(-1), slab.of_queries(lse), slab.tile, slab.still)
    return out, lse.squeeze(-1)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: None,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    scale: float,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    """Gradients of q, k and v; see `attention_ops`."""
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros_like(x, dtype=wide(x.dtype)) for x in (k, v))
    for slab in _slabs(q.shape[2:-1], kernel_size, dilation):
        slopes, queries, whole, sums = (
            partition(slab.of_queries(x), slab.tile, slab.still)
            for x in (grad, q, out, lse.unsqueeze(-1))
        )
        keys, values = (slab.boxes(x).to(lse.dtype) for x in (k, v))
        grads = small_attention.backward(
            slopes.to(lse.dtype), queries.to(lse.dtype), keys, values, None, slab.mask(q.device),
            whole.to(lse.dtype), sums.squeeze(-1), scale, False,
        )  # fmt: skip
        merge(grads[0], slab.of_queries(dq), slab.tile, slab.still)
        slab.add_boxes(grads[1], dk)
        slab.add_boxes(grads[2], dv)
    return dq, dk, dv, None


class _Slab:
    """One row of tiles along the first axis, within one class of dilated tokens.

    Args:
        shape: Tokens of the class along each axis.
        kernel: Keys along each axis.
        row: Number of the row of tiles.
        steps: Offset and dilation of the class along each axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        kernel: Sequence[int],
        row: int,
        steps: Sequence[tuple[int, int]],
    ) -> None:
        side = TILE[len(shape)]
        self.tile = tuple(min(side, size) for size in shape)
        self.still = (0,) * len(shape)
        self.shape, self.kernel, self.steps = shape, kernel, steps
        self.box = [min(n, t + k - 1) for n, t, k in zip(shape, self.tile, kernel, strict=True)]
        self.first = [
            [min(max(i - k // 2, 0), n - b) for i in range(0, n, t)]
            for n, t, k, b in zip(shape, self.tile, kernel, self.box, strict=True)
        ]
        self.first[0] = self.first[0][row : row + 1]
        self.start = row * self.tile[0]

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """A view of the row's queries in (B, h, *map, d)."""
        part = self._of_class(x)
        return part.narrow(2, self.start, min(self.tile[0], self.shape[0] - self.start))

    def boxes(self, x: torch.Tensor) -> torch.Tensor:
        """The boxes of keys of (B, h, *map, d): (B * tiles, h, keys of a box, d)."""
        x = self._of_class(x)
        dims = len(self.box)
        for axis, (firsts, size) in enumerate(zip(self.first, self.box, strict=True)):
            where = 2 + 2 * axis
            x = torch.stack([x.narrow(where, first, size) for first in firsts], where)
        outer = [2 + 2 * axis for axis in range(dims)]
        inner = [3 + 2 * axis for axis in range(dims)]
        x = x.permute(0, *outer, 1, *inner, 2 + 2 * dims).flatten(0, dims)
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def add_boxes(self, boxes: torch.Tensor, to: torch.Tensor) -> None:
        """Add what `boxes` cut out, always in the same order, to (B, h, *map, d)."""
        to = self._of_class(to)
        dims, number = len(self.box), [len(firsts) for firsts in self.first]
        x = boxes.reshape(-1, *number, boxes.shape[1], *self.box, boxes.shape[-1])
        order = [n for axis in range(dims) for n in (1 + axis, 2 + dims + axis)]
        x = x.permute(0, 1 + dims, *order, 2 + 2 * dims)
        for axis in reversed(range(1, dims)):
            where = 2 + 2 * axis
            shape = [*x.shape[:where], self.shape[axis], *x.shape[where + 2 :]]
            whole = x.new_zeros(shape)
            for tile, first in enumerate(self.first[axis]):
                whole.narrow(where, first, self.box[axis]).add_(x.select(where, tile))
            x = whole
        to.narrow(2, self.first[0][0], self.box[0]).add_(x.squeeze(2))

    def mask(self, device: torch.device) -> torch.Tensor:
        """(tiles, queries, keys of a box): 0 in the window of a query, -inf outside."""
        dims = len(self.box)
        seen = torch.ones((1,) * (3 * dims), dtype=torch.bool, device=device)
        for axis in range(dims):
            size, kernel, tile = self.shape[axis], self.kernel[axis], self.tile[axis]
            firsts = torch.tensor(self.first[axis], device=device)[:, None, None]
            tiles = torch.arange(len(self.first[axis]), device=device)[:, None, None]
            start = self.start if axis == 0 else 0
            query = start + tiles * tile + torch.arange(tile, device=device)[None, :, None]
            key = firsts + torch.arange(self.box[axis], device=device)[None, None]
            left = (query.clamp(max=size - 1) - kernel // 2).clamp(0, size - kernel)
            near = (key >= left) & (key < left + kernel)
            at = [1] * (3 * dims)
            at[axis], at[dims + axis], at[2 * dims + axis] = near.shape
            seen = seen & near.view(at)
        seen = seen.flatten(2 * dims).flatten(dims, -2).flatten(0, dims - 1)
        return torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))

    def _of_class(self, x: torch.Tensor) -> torch.Tensor:
        places = (slice(offset, None, step) for offset, step in self.steps)
        return x[(slice(None), slice(None), *places)]


def _slabs(shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> Iterator[_Slab]:
    for offsets in itertools.product(*(range(step) for step in dilation)):
        steps = list(zip(offsets, dilation, strict=True))
        part = [len(range(offset, n, step)) for n, (offset, step) in zip(shape, steps, strict=True)]
        for row in range(-(-part[0] // min(TILE[len(part)], part[0]))):
            yield _Slab(part, kernel, row, steps)
