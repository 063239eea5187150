"""The low-pass DCT and its inverse as two torch operators, each the gradient of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medplat_kernels import dispatch
from medplat_kernels.attention_ops import autocast_type
from medplat_kernels.flops import formula
from medplat_kernels.torch_operator import torch_operator


def wide_under_autocast(x: Tensor) -> Tensor:
    """float32 under autocast: the first coefficient is sqrt(H W) times the mean."""
    if autocast_type(x.device) and x.dtype != torch.float64:
        return x.float()
    return x


@torch_operator("dct_lowpass_forward")
def dct_lowpass_forward(x: Tensor, keep: Sequence[int], backend: str) -> Tensor:
    """The kept coefficients."""
    return _run("forward", x, keep, backend)


@torch_operator("dct_lowpass_backward")
def idct_forward(c: Tensor, shape: Sequence[int], backend: str) -> Tensor:
    """The map of kept coefficients."""
    return _run("backward", c, shape, backend)


def _run(what: str, x: Tensor, sizes: Sequence[int], backend: str) -> Tensor:
    if x.numel() == 0 or 0 in sizes:
        return x.new_zeros((*x.shape[:2], *sizes))
    name = dispatch.choose("dct2_lowpass", x.device, (x,), backend)
    dispatch.ran("dct2_lowpass", name)
    with dispatch.without_autocast(x.device):
        out: Tensor = getattr(dispatch.module("dct2_lowpass", name), what)(x, tuple(sizes))
    return out


@dct_lowpass_forward.register_fake
@idct_forward.register_fake
def _(x: Tensor, sizes: Sequence[int], backend: str) -> Tensor:
    return x.new_empty((*x.shape[:2], *sizes))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape, ctx.backend = list(inputs[0].shape[2:]), inputs[2]


dct_lowpass_forward.register_autograd(
    lambda ctx, grad: (idct_forward(grad, ctx.shape, ctx.backend), None, None),
    setup_context=_setup_context,
)
idct_forward.register_autograd(
    lambda ctx, grad: (dct_lowpass_forward(grad, ctx.shape, ctx.backend), None, None),
    setup_context=_setup_context,
)


@formula("dct_lowpass_forward", "dct_lowpass_backward")
def _flops(x: Sequence[int], sizes: Sequence[int], *_: object, **__: object) -> int:
    now, total = list(x), 0
    for axis in reversed(range(len(sizes))):
        total += 2 * math.prod(now) * sizes[axis]
        now[2 + axis] = sizes[axis]
    return total
