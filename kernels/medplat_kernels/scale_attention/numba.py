"""Scale attention on CPU with explicit vectors: one group, the sequence."""

from __future__ import annotations

from torch import Tensor

from medplat_kernels import attention_numba
from medplat_kernels.dispatch import Verdict


def can_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    *,
    raise_error: bool = False,
) -> Verdict:
    """Whether this backend can run a call."""
    return attention_numba.can_run(q, q.shape[2], k.shape[2], raise_error)


def forward(q: Tensor, k: Tensor, v: Tensor, bias: None, *, scale: float) -> tuple[Tensor, Tensor]:
    """Output and sums; see `attention_ops`."""
    return attention_numba.forward(
        q,
        k,
        v,
        bias,
        attention_numba.sequences(q.shape[2], k.shape[2]),
        window_q=(1,),
        window_k=(1,),
        step=(1,),
        near=False,
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
        attention_numba.sequences(q.shape[2], k.shape[2]),
        window_q=(1,),
        window_k=(1,),
        step=(1,),
        near=False,
        scale=scale,
        bias_grad=bias_grad,
    )
