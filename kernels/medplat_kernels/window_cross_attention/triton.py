"""Window attention on a GPU: `attention_triton` with windows."""

from __future__ import annotations

from typing import Any

import torch

from medplat_kernels import attention_triton as kernel
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.triton_device import refusal


def can_run(
    q: torch.Tensor,
    k: Any,
    v: Any,
    bias: Any,
    window_q: tuple[int, ...],
    window_k: tuple[int, ...],
    shift: tuple[int, ...],
    *,
    raise_error: bool = False,
) -> Verdict:
    """On CUDA devices from compute capability 8.0, and in Triton's interpreter."""
    reason = refusal(q) or kernel.too_large(q, _tiling(q, window_q, window_k, shift))
    return verdict(reason, raise_error, "triton reads q, k and v in place")


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
    return kernel.forward(q, k, v, bias, _tiling(q, window_q, window_k, shift), scale)


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor, *,
    window_q: tuple[int, ...], window_k: tuple[int, ...], shift: tuple[int, ...], scale: float,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the bias; see `attention_ops`."""
    tiling = _tiling(q, window_q, window_k, shift)
    return kernel.backward(grad, q, k, v, bias, out, lse, tiling, scale, bias_grad)


def _tiling(
    q: torch.Tensor, window_q: tuple[int, ...], window_k: tuple[int, ...], shift: tuple[int, ...]
) -> kernel.Tiling:
    return kernel.windows(q.shape[2:-1], window_q, window_k, shift)
