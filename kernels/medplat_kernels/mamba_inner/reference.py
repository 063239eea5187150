"""The block from the references of its parts, differentiated by autograd. For tests only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medplat_kernels.causal_conv1d.reference import causal_conv1d_reference
from medplat_kernels.scan_orders import names_of
from medplat_kernels.selective_scan.reference import selective_scan_reference


def mamba_inner_reference(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    delta_softplus: bool = True,
    layout: str = "bdl",
) -> Tensor:
    """Arguments as in `mamba_inner`: the sum of one block an order, computed in the dtype of xz."""
    xz = xz.transpose(1, 2) if layout == "bld" else xz
    x, z = xz.chunk(2, 1)
    names, states, rank = names_of(order), A.shape[1], dt_proj_weight.shape[1]
    total = torch.zeros_like(x)
    for k, name in enumerate(names):

        def own(stacked: Tensor, k: int = k) -> Tensor:
            return stacked.chunk(len(names))[k]

        def own_if_given(stacked: Tensor | None, k: int = k) -> Tensor | None:
            return None if stacked is None else stacked.chunk(len(names))[k]

        u = causal_conv1d_reference(
            x, own(conv1d_weight).flatten(1), own_if_given(conv1d_bias), "silu",
            order=name, grid=grid,
        )  # fmt: skip
        low, B, C = torch.split(own(x_proj_weight) @ u, [rank, states, states], 1)
        out, _ = selective_scan_reference(
            u, own(dt_proj_weight) @ low, own(A), B, C, own_if_given(D), z,
            own_if_given(delta_bias), delta_softplus, order=name, grid=grid,
        )  # fmt: skip
        total = total + out
    return total.transpose(1, 2) if layout == "bld" else total
