"""Attention in windows: windows of one map (Swin), and of two maps in step (WAU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Cases, close, gradients
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medplat_kernels import window_cross_attention

NAIVE, SDPA = "products and softmax", "torch SDPA"


def _windows(x: Tensor, side: int) -> Tensor:
    """(1, h, H, W, d) cut into (windows, h, side * side, d), as users' modules do."""
    _, heads, height, width, d = x.shape
    split = x.reshape(heads, height // side, side, width // side, side, d)
    return split.permute(1, 3, 0, 2, 4, 5).reshape(-1, heads, side * side, d)


def _back(tokens: Tensor, side: int, height: int, width: int) -> Tensor:
    heads, d = tokens.shape[1], tokens.shape[-1]
    split = tokens.reshape(height // side, width // side, heads, side, side, d)
    return split.permute(2, 0, 3, 1, 4, 5).reshape(1, heads, height, width, d)


def _naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT + bias).softmax(-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _case(sides: tuple[int, int], grad: bool, windows: int = 22) -> Callable[[str], Case]:
    """`windows` x `windows` windows of sides[0]^2 queries and sides[1]^2 keys; 4 heads of 32."""
    side_q, side_k = sides

    def make(device: str) -> Case:
        torch.manual_seed(0)
        nq, nk = side_q**2, side_k**2
        size = windows * side_q
        q = torch.randn(1, 4, size, size, 32, device=device)
        k, v = (
            torch.randn(1, 4, windows * side_k, windows * side_k, 32, device=device) for _ in "kv"
        )
        tensors = [x.requires_grad_(grad) for x in (q, k, v, torch.randn(4, nq, nk, device=device))]

        def cut(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
                parts = (_windows(q, side_q), _windows(k, side_k), _windows(v, side_k))
                return _back(attend(*parts, bias), side_q, size, size)

            return run

        def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return window_cross_attention(q, k, v, side_q, side_k, bias)

        def call(run: Callable[..., Any]) -> Callable[[], Any]:
            return gradients(run, *tensors) if grad else lambda: run(*tensors)

        what = "forward + backward" if grad else "forward"
        return Case(
            title=f"window attention, {windows**2} windows, 4 heads of 32, {nq} x {nk}, {what}",
            variants={"medplat": call(ours), NAIVE: call(cut(_naive)), SDPA: call(cut(_sdpa))},
            same=close(1e-4),
            goals={NAIVE: 0.95, SDPA: 0.95},
            operator="window_cross_attention",
        )

    return make


CASES: Cases = {
    "keys_16": _case((8, 4), False),
    "keys_16_both": _case((8, 4), True),
    "keys_4_both": _case((8, 2), True),
    "keys_49": _case((7, 7), False),
    "keys_49_both": _case((7, 7), True),
}
