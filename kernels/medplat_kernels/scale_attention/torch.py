"""Scale attention in torch operations."""

from __future__ import annotations

from typing import Any

import torch

from medplat_kernels import small_attention
from medplat_kernels.dispatch import Verdict, verdict


def can_run(*_: Any, raise_error: bool = False) -> Verdict:
    """Always."""
    return verdict(None, raise_error, "torch runs every type and device")


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: None, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and sums; see `attention_ops`."""
    return small_attention.forward(q, k, v, None, None, scale)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: None,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    scale: float,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of q, k and v; see `attention_ops`."""
    return small_attention.backward(grad, q, k, v, None, None, out, lse, scale, bias_grad)
