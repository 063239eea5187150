"""Neighborhood attention on CPU with explicit vectors: one group a tile of queries."""

from __future__ import annotations

import math

from torch import Tensor

from medplat_kernels import attention_numba
from medplat_kernels.dispatch import Verdict


def can_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    raise_error: bool = False,
) -> Verdict:
    """Whether this backend can run a call."""
    side = attention_numba.TILE[len(kernel_size)]
    keys = math.prod(side + kernel - 1 for kernel in kernel_size)
    return attention_numba.can_run(q, side ** len(kernel_size), keys, raise_error)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and sums; see `attention_ops`."""
    return attention_numba.forward(
        q,
        k,
        v,
        bias,
        attention_numba.neighborhoods(tuple(q.shape[2:-1]), kernel_size, dilation),
        window_q=kernel_size,
        window_k=kernel_size,
        step=dilation,
        near=True,
        scale=scale,
    )


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    out: Tensor,
    lse: Tensor,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    scale: float,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and the bias; see `attention_ops`."""
    return attention_numba.backward(
        grad,
        q,
        k,
        v,
        bias,
        lse,
        attention_numba.neighborhoods(tuple(q.shape[2:-1]), kernel_size, dilation),
        window_q=kernel_size,
        window_k=kernel_size,
        step=dilation,
        near=True,
        scale=scale,
        bias_grad=bias_grad,
    )
