"""Scale attention on CPU with explicit vectors: one group, the sequence, or one query of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medplat_kernels import attention_numba, pool
from medplat_kernels.dispatch import Verdict

LEAST_READ = 100_000  # numbers of keys and values that one worker reads in about 0.1 ms
WHOLE: dict[str, Any] = {"window_q": (1,), "window_k": (1,), "step": (1,), "near": False}


def can_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    *,
    raise_error: bool = False,
) -> Verdict:
    """Whether this backend can run a call; one query has a kernel without limits."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        queries, keys = attention_numba.FEWEST, 1
    return attention_numba.can_run(q, queries, keys, raise_error)


def forward(q: Tensor, k: Tensor, v: Tensor, bias: None, *, scale: float) -> tuple[Tensor, Tensor]:
    """Output and sums; see `attention_ops`."""
    if q.shape[2] > 1:
        groups = attention_numba.sequences(q.shape[2], k.shape[2])
        return attention_numba.forward(q, k, v, bias, groups, scale=scale, **WHOLE)
    from .numba_kernels import forward as kernel

    out = torch.empty_like(q)
    result = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    given = (*(x.float() for x in (q, k, v)), result, lse.unsqueeze(-1))
    _run(kernel, given, k, scale)
    return out if result is out else out.copy_(result), lse


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
    if q.shape[2] > 1:
        groups = attention_numba.sequences(q.shape[2], k.shape[2])
        return attention_numba.backward(
            grad, q, k, v, bias, lse, groups, scale=scale, bias_grad=bias_grad, **WHOLE
        )
    from .numba_kernels import backward as kernel

    grad, q, k, v = (x.float() for x in (grad, q, k, v))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    _run(kernel, (grad, q, k, v, lse.unsqueeze(-1), dq, dk, dv), k, scale)
    return dq, dk, dv, None


def _run(kernel: Callable[..., None], tensors: tuple[Tensor, ...], k: Tensor, scale: float) -> None:
    """Call a kernel of `numba_kernels` with its table, for each worker's sequences and heads."""
    from .numba_kernels import scratch_size

    sequences, heads, keys, width = k.shape
    pairs = sequences * heads
    table = np.array([(x.data_ptr(), *x.stride()[:3]) for x in tensors], np.int64)
    workers = pool.workers(pairs, 2 * k.numel(), LEAST_READ)
    scratch = torch.empty(workers, scratch_size(keys, width))

    def task(worker: int) -> None:
        first, last = (pairs * i // workers for i in (worker, worker + 1))
        address = scratch[worker].data_ptr()
        kernel(table, heads, keys, width, np.float32(scale), address, first, last)

    pool.run(task, workers)
