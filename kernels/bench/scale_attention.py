"""Attention in many tiny sequences: DuoFormer's patches, 49 an image, 12 heads of 64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Case, Cases, close, gradients
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medplat_kernels import scale_attention

NAIVE, SDPA = "products and softmax", "torch SDPA"


def _naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v


def _case(tokens: int, grad: bool, readout: bool) -> Callable[[str], Case]:
    """All queries, or the first one alone (DuoFormer's last block)."""

    def make(device: str) -> Case:
        torch.manual_seed(0)
        shape = (98, 12, tokens, 64)
        tensors = [torch.randn(shape, device=device, requires_grad=grad) for _ in range(3)]

        def call(run: Callable[..., Any]) -> Callable[[], Any]:
            return gradients(run, *tensors) if grad else lambda: run(*tensors)

        def first(run: Callable[..., Any]) -> Callable[[], Any]:
            return call(lambda q, k, v: run(q[:, :, :1], k, v) if readout else run(q, k, v))

        asked = ", the first query" if readout else ""
        ours = partial(scale_attention, readout=0 if readout else None)
        return Case(
            title=f"scale attention {shape}{asked}, {'forward + backward' if grad else 'forward'}",
            variants={
                "medplat": call(ours),
                NAIVE: first(_naive),
                SDPA: first(scaled_dot_product_attention),
            },
            same=close(1e-4),
            goals={NAIVE: 0.95, SDPA: 0.95},
            operator="scale_attention",
        )

    return make


CASES: Cases = {
    f"tokens_{tokens}{'_first' * readout}{'_both' * grad}": _case(tokens, grad, readout)
    for readout in (False, True)
    for tokens in (5, 18, 22, 86)
    for grad in (False, True)
}
