"""Scale attention on a GPU: `attention_triton` with a sequence as one window."""

from __future__ import annotations

from typing import Any

import torch

from medplat_kernels import attention_triton as kernel
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.triton_device import refusal


def can_run(
    q: torch.Tensor, k: torch.Tensor, v: Any, bias: None, *, raise_error: bool = False
) -> Verdict:
    """On CUDA devices from compute capability 8.0, and in Triton's interpreter."""
    reason = refusal(q) or kernel.too_large(q, _tiling(q, k))
    return verdict(reason, raise_error, "triton reads q, k and v in place")


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: None, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and sums; see `attention_ops`."""
    return kernel.forward(q, k, v, None, _tiling(q, k), scale)


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: None,
    out: torch.Tensor, lse: torch.Tensor, *,
    scale: float, bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the bias; see `attention_ops`."""
    tiling = _tiling(q, k)
    return kernel.backward(grad, q, k, v, None, out, lse, tiling, scale, bias_grad)


def _tiling(q: torch.Tensor, k: torch.Tensor) -> kernel.Tiling:
    return kernel.windows(q.shape[2:-1], q.shape[2:-1], k.shape[2:-1], (0,))
