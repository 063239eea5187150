"""Window attention on CPU with explicit vectors: one group a cell of the lattice."""

from __future__ import annotations

import math

from torch import Tensor

from medplat_kernels import attention_numba
from medplat_kernels.dispatch import Verdict


def can_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
    *,
    raise_error: bool = False,
) -> Verdict:
    """Whether this backend can run a call."""
    return attention_numba.can_run(q, math.prod(window_q), math.prod(window_k), raise_error)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and sums; see `attention_ops`."""
    return attention_numba.forward(
        q,
        k,
        v,
        bias,
        _groups(q, k, window_q, window_k, shift),
        window_q=window_q,
        window_k=window_k,
        step=(1, 1, 1),
        near=False,
        scale=scale,
    )


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
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
        _groups(q, k, window_q, window_k, shift),
        window_q=window_q,
        window_k=window_k,
        step=(1, 1, 1),
        near=False,
        scale=scale,
        bias_grad=bias_grad,
    )


def _groups(
    q: Tensor,
    k: Tensor,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
) -> attention_numba.Groups:
    shapes = tuple(q.shape[2:-1]), tuple(k.shape[2:-1])
    return attention_numba.windows(*shapes, window_q, window_k, shift)
