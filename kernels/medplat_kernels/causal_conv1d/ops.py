"""The convolution as two torch operators, `medplat::causal_conv1d_forward` and `_backward`.

The arguments are those of the contract in the package's docstring, with the orders as one string,
names separated by commas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medplat_kernels import dispatch, scan_orders
from medplat_kernels.torch_operator import torch_operator


@torch_operator("causal_conv1d_forward")
def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool,
    orders: str, grid: Sequence[int], channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    """Output of the convolution on the backend that is chosen."""
    if x.numel() == 0:
        return _output(x, weight, channels_last)
    found = scan_orders.found(orders)
    name = dispatch.choose("causal_conv1d", x.device, (x, weight, found), backend)
    with dispatch.without_autocast(x.device):
        out: Tensor = dispatch.module("causal_conv1d", name).forward(
            x, weight, bias, initial_states,
            silu=silu, orders=found, grid=tuple(grid), channels_last=channels_last,
        )  # fmt: skip
    dispatch.ran("causal_conv1d", name)
    return out


@torch_operator("causal_conv1d_backward")
def causal_conv1d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_states: Tensor | None, silu: bool, orders: str, grid: Sequence[int],
    channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the four tensors of the forward pass; empty ones for those that are absent."""
    given = (x, weight, bias, initial_states)
    if x.numel() == 0:
        return tuple(each.zero_() for each in _gradients(*given))  # type: ignore[return-value]
    found = scan_orders.found(orders)
    name = dispatch.choose("causal_conv1d", x.device, (x, weight, found), backend)
    with dispatch.without_autocast(x.device):
        grads = dispatch.module("causal_conv1d", name).backward(
            grad_out, *given,
            silu=silu, orders=found, grid=tuple(grid), channels_last=channels_last,
        )  # fmt: skip
    dx, dweight, dbias, dstates = (x.new_empty(0) if each is None else each for each in grads)
    return dx, dweight, dbias, dstates


@causal_conv1d_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool,
    orders: str, grid: Sequence[int], channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    return _output(x, weight, channels_last)


@causal_conv1d_backward.register_fake
def _(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_states: Tensor | None, silu: bool, orders: str, grid: Sequence[int],
    channels_last: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _gradients(x, weight, bias, initial_states)


def _output(x: Tensor, weight: Tensor, channels_last: bool) -> Tensor:
    batch, channels = x.shape[0], weight.shape[0]
    length = x.shape[1 if channels_last else 2]
    return x.new_empty((batch, length, channels) if channels_last else (batch, channels, length))


def _gradients(x: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(
        x.new_empty(0) if each is None else torch.empty_like(each) for each in given
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, initial_states, *ctx.keywords = inputs
    ctx.save_for_backward(x, weight, bias, initial_states)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = causal_conv1d_backward(grad_out.contiguous(), *tensors, *ctx.keywords)
    wanted = zip(grads, tensors, strict=True)
    return (*(None if tensor is None else grad for grad, tensor in wanted), *(None,) * 5)


causal_conv1d_forward.register_autograd(_backward, setup_context=_setup_context)
causal_conv1d_backward.has_no_gradient()
