"""Neighborhood attention against one big masked attention and against gathered keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from harness import Case, Cases, close
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medplat_kernels import neighborhood_attention

DENSE, GATHER = "torch SDPA, dense mask", "gathered keys"


def _neighbors(shape: tuple[int, ...], kernel: int) -> Tensor:
    """Numbers of the keys of each query, (tokens, kernel^axes); NATTEN's rule."""
    along = [[range(min(max(i - kernel // 2, 0), n - kernel), n) for i in range(n)] for n in shape]
    rows = []
    for place in itertools.product(*map(range, shape)):
        number = torch.zeros(1, dtype=torch.int64)
        for axis, i in enumerate(place):
            keys = torch.tensor(along[axis][i][:kernel])
            number = (number[:, None] * shape[axis] + keys).flatten()
        rows.append(number)
    return torch.stack(rows)


def _case(
    shape: tuple[int, ...], kernel: int, width: int, goals: dict[str, float], rounds: int
) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 4, *shape, width, device=device) for _ in range(3))
        table = _neighbors(shape, kernel).to(device)
        flat = [x.flatten(2, -2) for x in (q, k, v)]

        def gather() -> Tensor:
            queries, keys, values = flat[0], flat[1][:, :, table], flat[2][:, :, table]
            scores = torch.einsum("bhnd,bhnkd->bhnk", queries * width**-0.5, keys)
            return torch.einsum("bhnk,bhnkd->bhnd", scores.softmax(-1), values).view_as(q)

        variants = {"medplat": lambda: neighborhood_attention(q, k, v, kernel), GATHER: gather}
        if DENSE in goals:
            mask = torch.zeros(len(table), len(table), dtype=torch.bool, device=device)
            mask.scatter_(1, table, True)
            variants[DENSE] = lambda: scaled_dot_product_attention(*flat, attn_mask=mask).view_as(q)
        return Case(
            title=f"neighborhood attention, {shape}, kernel {kernel}, 4 heads of {width}, forward",
            variants=variants,
            same=close(1e-5),
            goals=goals,
            operator="neighborhood_attention",
            rounds=rounds,
        )

    return make


CASES: Cases = {
    "plane": _case((56, 56), 7, 32, {DENSE: 4, GATHER: 4}, 7),
    "space": _case((24, 24, 24), 5, 16, {GATHER: 4}, 7),
}
