"""What a Mamba block computes between its two projections: one call against its parts in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Case, Cases, close, gradients
from torch import Tensor
from torch.nn.functional import conv1d, silu, softplus

from medplat_kernels import mamba_inner, selective_scan_fn

PARTS = "conv1d, products, our torch scan"
RECURRENCE = "conv1d, products, a step at a time"


def _composed(
    scan: Callable[..., Tensor], xz: Tensor, taps: Tensor, tap_bias: Tensor, project: Tensor,
    steps: Tensor, A: Tensor, D: Tensor, bias: Tensor,
) -> Tensor:  # fmt: skip
    """The same arithmetic, an operation after the other."""
    x, z = xz.chunk(2, 1)
    channels, rank, length = x.shape[1], steps.shape[1], x.shape[2]
    padding = taps.shape[-1] - 1
    x = silu(conv1d(x, taps, tap_bias, padding=padding, groups=channels)[..., :length])
    dt, B, C = (project @ x).split([rank, A.shape[1], A.shape[1]], 1)
    return scan(x, softplus(steps @ dt + bias[:, None]), A, B, C, D) * silu(z)


def _recurrence(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    state, out = A.new_zeros(u.shape[0], *A.shape), []
    for step in range(u.shape[2]):
        inputs = (dt[..., step] * u[..., step]).unsqueeze(-1) * B[:, None, :, step]
        state = torch.exp(dt[..., step, None] * A) * state + inputs
        out.append((state @ C[..., step, None])[..., 0])
    return torch.stack(out, -1) + D[:, None] * u


def _case(channels: int, length: int, grad: bool) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        generator = torch.Generator().manual_seed(0)
        rank, states = max(1, channels // 32), 16

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = scale * torch.randn(shape, generator=generator)
            return drawn.to(device).requires_grad_(grad)

        A = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
        tensors = [
            normal(1, 2 * channels, length), normal(channels, 1, 4, scale=0.5), normal(channels),
            normal(rank + 2 * states, channels, scale=channels**-0.5),
            normal(channels, rank, scale=0.1), A.requires_grad_(grad), normal(channels),
            (normal(channels) - 4).detach().requires_grad_(grad),
        ]  # fmt: skip

        def call(run: Callable[..., Any]) -> Callable[[], Any]:
            return gradients(run, *tensors) if grad else lambda: run(*tensors)

        scans = {PARTS: partial(selective_scan_fn, backend="torch")}
        if not grad:
            scans[RECURRENCE] = _recurrence
        what = "forward + backward" if grad else "forward"
        return Case(
            title=f"mamba_inner (1, 2 x {channels}, {length}), 16 states, {what}",
            variants={
                "medplat": call(mamba_inner),
                **{name: call(partial(_composed, scan)) for name, scan in scans.items()},
            },
            same=close(1e-3 if grad else 1e-4),
            operator="selective_scan",
        )

    return make


CASES: Cases = {
    "forward": _case(96, 4096, grad=False),
    "both": _case(96, 4096, grad=True),
    "channels_384": _case(384, 1024, grad=False),
}
