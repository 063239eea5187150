"""The block as two torch operators, `medplat::mamba_inner_forward` and `_backward`.

Tokens of K orders are (Bt, K, channels, L), or (Bt, L, K, channels) where channels are last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medplat_kernels.causal_conv1d.ops import causal_conv1d_backward, causal_conv1d_forward
from medplat_kernels.selective_scan.ops import (
    checkpoint_size,
    selective_scan_backward,
    selective_scan_forward,
)
from medplat_kernels.torch_operator import torch_operator

from .projection import project, split_channels, weight_gradient


@torch_operator("mamba_inner_forward")
def mamba_inner_forward(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor,
    dt_proj_weight: Tensor, A: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool, orders: str, grid: Sequence[int], channels_last: bool, save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output, and the scan's checkpoints (empty unless `save`)."""
    walk = (orders, grid, channels_last)
    x, z = _halves(xz, channels_last)
    u = causal_conv1d_forward(x, conv1d_weight, conv1d_bias, None, True, *walk, backend)
    _, delta, B, C = _projected(u, x_proj_weight, dt_proj_weight, A, orders, channels_last)
    out, checkpoints, _ = selective_scan_forward(
        u, delta, A, B, C, D, z, delta_bias, None, delta_softplus, *walk, xz.dtype, save, backend
    )
    return out, checkpoints


@torch_operator("mamba_inner_backward")
def mamba_inner_backward(
    grad_out: Tensor, xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None,
    x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, checkpoints: Tensor, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the eight tensors; empty ones for those that are absent."""
    walk = (orders, grid, channels_last)
    count, axis = len(orders.split(",")), 2 if channels_last else 1
    x, z = _halves(xz, channels_last)
    u = causal_conv1d_forward(x, conv1d_weight, conv1d_bias, None, True, *walk, backend)
    low, delta, B, C = _projected(u, x_proj_weight, dt_proj_weight, A, orders, channels_last)
    du, ddelta, dA, dB, dC, dD, dz, dbias, _ = selective_scan_backward(
        grad_out, None, u, delta, A, B, C, D, z, delta_bias, None, checkpoints, delta_softplus,
        *walk, backend,
    )  # fmt: skip
    dtype = x_proj_weight.dtype
    x_proj, dt_proj = _stacked(x_proj_weight, count), _stacked(dt_proj_weight, count)
    dwide = split_channels(ddelta.to(dtype), count, channels_last)
    dlow = project(dt_proj.transpose(1, 2), dwide, channels_last)
    dgroups = (each.to(dtype) for each in (dB, dC))
    ddbc = torch.cat((dlow, *dgroups), 3 if channels_last else 2)
    tokens = split_channels(u.to(dtype), count, channels_last)
    du = du + project(x_proj.transpose(1, 2), ddbc, channels_last).reshape(u.shape).to(u.dtype)
    dx, dconv, dconv_bias, _ = causal_conv1d_backward(
        du, x, conv1d_weight, conv1d_bias, None, True, *walk, backend
    )
    dx_proj = weight_gradient(ddbc, tokens, channels_last).flatten(0, 1)
    ddt_proj = weight_gradient(dwide, low, channels_last).flatten(0, 1)
    dxz = torch.cat((dx, dz), axis)
    return dxz, dconv, dconv_bias, dx_proj, ddt_proj, dA, dD, dbias


def _halves(xz: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    x, z = xz.chunk(2, 2 if channels_last else 1)
    return x.contiguous(), z.contiguous()


def _stacked(weight: Tensor, count: int) -> Tensor:
    return torch.unflatten(weight, 0, (count, -1))


def _projected(
    u: Tensor, x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor, orders: str,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The dt before its projection, delta, B and C; the last three as the scan takes them."""
    count, states, rank = len(orders.split(",")), A.shape[1], dt_proj_weight.shape[1]
    tokens = split_channels(u.to(x_proj_weight.dtype), count, channels_last)
    dbc = project(_stacked(x_proj_weight, count), tokens, channels_last)
    low, B, C = torch.split(dbc, [rank, states, states], 3 if channels_last else 2)
    delta = project(_stacked(dt_proj_weight, count), low, channels_last).reshape(u.shape)
    return low, delta.to(u.dtype), B.to(u.dtype).contiguous(), C.to(u.dtype).contiguous()


@mamba_inner_forward.register_fake
def _(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor,
    dt_proj_weight: Tensor, A: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool, orders: str, grid: Sequence[int], channels_last: bool, save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    axis = 2 if channels_last else 1
    shape = list(xz.shape)
    shape[axis] = shape[axis] // 2
    size = checkpoint_size(xz.shape[0], A.shape[0], A.shape[1], xz.shape[3 - axis]) if save else 0
    return xz.new_empty(shape), A.new_empty(size)


@mamba_inner_backward.register_fake
def _(
    grad_out: Tensor, xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None,
    x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, checkpoints: Tensor, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    given = (xz, conv1d_weight, conv1d_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    return tuple(xz.new_empty(0) if each is None else torch.empty_like(each) for each in given)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, softplus, orders, grid, channels_last, _, backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.keywords = (softplus, orders, grid, channels_last, backend)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 14
    *tensors, checkpoints = ctx.saved_tensors
    grads = mamba_inner_backward(grad_out.contiguous(), *tensors, checkpoints, *ctx.keywords)
    wanted = zip(grads, tensors, strict=True)
    return (*(None if tensor is None else grad for grad, tensor in wanted), *(None,) * 6)


mamba_inner_forward.register_autograd(_backward, setup_context=_setup_context)
mamba_inner_backward.has_no_gradient()
