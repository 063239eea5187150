"""Window attention in torch operations: cut into windows, small attentions, put back."""

from __future__ import annotations

from typing import Any

import torch

from medplat_kernels import small_attention
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.windows import mask, merge, partition


def can_run(*_: Any, raise_error: bool = False) -> Verdict:
    """Always."""
    return verdict(None, raise_error, "torch runs every type and device")


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and sums; see `attention_ops`."""
    queries = partition(q, window_q, shift)
    keys, values = (partition(x, window_k, shift) for x in (k, v))
    seen = mask(k.shape[2:-1], window_k, shift, k.device)
    out, lse = small_attention.forward(queries, keys, values, bias, seen, scale)
    sums = lse.new_empty((*q.shape[:-1], 1))
    return (
        merge(out, torch.empty_like(q), window_q, shift),
        merge(lse.unsqueeze(-1), sums, window_q, shift).squeeze(-1),
    )


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
    scale: float,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of q, k, v and the bias; see `attention_ops`."""
    slopes, queries = (partition(x, window_q, shift) for x in (grad, q))
    keys, values = (partition(x, window_k, shift) for x in (k, v))
    seen = mask(k.shape[2:-1], window_k, shift, k.device)
    whole = partition(out, window_q, shift) if small_attention.fused(queries, keys) else None
    sums = partition(lse.unsqueeze(-1), window_q, shift).squeeze(-1)
    dq, dk, dv, dbias = small_attention.backward(
        slopes, queries, keys, values, bias, seen, whole, sums, scale, bias_grad
    )
    return (
        merge(dq, torch.empty_like(q), window_q, shift),
        merge(dk, torch.empty_like(k), window_k, shift),
        merge(dv, torch.empty_like(v), window_k, shift),
        dbias,
    )
