"""The scan as two torch operators, `medplat::selective_scan_forward` and `_backward`.

They are what autograd, torch.compile and autocast see; the arguments are those of the contract in
the package's docstring, with the orders as one string, names separated by commas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medplat_kernels import dispatch, scan_orders
from medplat_kernels.torch_operator import torch_operator

CHECKPOINT_STEPS = 64


def checkpoint_size(batch: int, channels: int, states: int, length: int) -> int:
    """Elements of the saved states: one state every `CHECKPOINT_STEPS` steps."""
    return batch * channels * states * ((length + CHECKPOINT_STEPS - 1) // CHECKPOINT_STEPS)


@torch_operator("selective_scan_forward")
def selective_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, out_dtype: torch.dtype, save: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, checkpoints (empty unless `save`) and last state."""
    if u.numel() == 0:
        out, checkpoints, last = _shapes(u, A, orders, channels_last, out_dtype, save)
        return out, checkpoints, last.zero_() if initial_state is None else initial_state.clone()
    name = dispatch.choose("selective_scan", u.device, (u, A, _groups(B, channels_last)), backend)
    with dispatch.without_autocast(u.device):
        result: tuple[Tensor, Tensor, Tensor] = dispatch.module("selective_scan", name).forward(
            u, delta, A, B, C, D, z, delta_bias, initial_state,
            delta_softplus=delta_softplus, orders=scan_orders.found(orders), grid=tuple(grid),
            channels_last=channels_last, out_dtype=out_dtype, save=save,
        )  # fmt: skip
    dispatch.ran("selective_scan", name)
    return result


@torch_operator("selective_scan_backward")
def selective_scan_backward(
    grad_out: Tensor, grad_last_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, checkpoints: Tensor, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the nine tensors of the forward pass; empty ones for those that are absent."""
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if u.numel() == 0:
        grads: tuple[Tensor | None, ...] = _gradients(*given)
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if initial_state is not None and grad_last_state is not None:
            grads = (*grads[:8], grad_last_state.clone())
    else:
        groups = _groups(B, channels_last)
        name = dispatch.choose("selective_scan", u.device, (u, A, groups), backend)
        with dispatch.without_autocast(u.device):
            grads = dispatch.module("selective_scan", name).backward(
                grad_out, grad_last_state, *given, checkpoints,
                delta_softplus=delta_softplus, orders=scan_orders.found(orders), grid=tuple(grid),
                channels_last=channels_last,
            )  # fmt: skip
    du, ddelta, dA, dB, dC, dD, dz, dbias, dstate = (
        u.new_empty(0) if gradient is None else gradient for gradient in grads
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dstate


@selective_scan_forward.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, out_dtype: torch.dtype, save: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _shapes(u, A, orders, channels_last, out_dtype, save)


@selective_scan_backward.register_fake
def _(
    grad_out: Tensor, grad_last_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, checkpoints: Tensor, delta_softplus: bool, orders: str,
    grid: Sequence[int], channels_last: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _gradients(u, delta, A, B, C, D, z, delta_bias, initial_state)


def _gradients(*given: Tensor | None) -> tuple[Tensor, ...]:
    like = given[0]
    assert like is not None
    return tuple(like.new_empty(0) if t is None else torch.empty_like(t) for t in given)


def _groups(B: Tensor, channels_last: bool) -> int:
    return B.shape[2 if channels_last else 1]


def _shapes(
    u: Tensor, A: Tensor, orders: str, channels_last: bool, out_dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels, states = A.shape
    batch, length = u.shape[0], u.shape[1 if channels_last else 2]
    width = channels // len(orders.split(","))
    shape = (batch, length, width) if channels_last else (batch, width, length)
    size = checkpoint_size(batch, channels, states, length) if save else 0
    return (
        u.new_empty(shape, dtype=out_dtype),
        A.new_empty(size),
        A.new_empty((batch, channels, states)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, orders, grid, channels_last, out_dtype, _, backend = inputs
    out, checkpoints, _ = output
    ctx.save_for_backward(*tensors, checkpoints)
    ctx.keywords = (softplus, orders, grid, channels_last, backend)
    ctx.out_shape, ctx.out_dtype = out.shape, out_dtype
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_out: Tensor | None, _: Tensor | None, grad_last_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    if grad_out is None:
        grad_out = tensors[0].new_zeros(ctx.out_shape, dtype=ctx.out_dtype)
    if grad_last_state is not None:
        grad_last_state = grad_last_state.contiguous()
    grads = selective_scan_backward(
        grad_out.contiguous(), grad_last_state, *tensors, checkpoints, *ctx.keywords
    )
    wanted = zip(grads, tensors, strict=True)
    return (*(None if tensor is None else grad for grad, tensor in wanted), *(None,) * 7)


selective_scan_forward.register_autograd(_backward, setup_context=_setup_context)
selective_scan_backward.has_no_gradient()
