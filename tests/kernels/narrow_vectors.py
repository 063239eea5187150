"""Runs in a process of its own: errors of the functions and of the scan at this process's width."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import vector_kernels as kernels

from medplat_kernels import mamba_chunk_scan_combined, scale_attention, selective_scan_fn
from medplat_kernels.vectors import LANES


def functions() -> float:
    x = torch.linspace(-8, 8, 64 * LANES)
    wide = x.double().numpy()
    expected = {
        "exp2": np.exp2(wide),
        "softplus": np.logaddexp(0, wide),
        "sigmoid": 1 / (1 + np.exp(-wide)),
    }
    worst = 0.0
    for name, value in expected.items():
        found = torch.empty_like(x)
        kernels.apply[name](x.data_ptr(), found.data_ptr(), len(x))
        worst = max(worst, float(np.abs(found.double().numpy() / value - 1).max()))
    return worst


def scan() -> tuple[float, float]:
    torch.manual_seed(0)
    shapes = ((1, 20, 77), (1, 60, 77), (60, 5), (1, 3, 5, 77), (1, 3, 5, 77), (60,), (1, 20, 77))
    u, delta, A, B, C, D, z = (torch.randn(shape) for shape in shapes)
    bias = torch.randn(60)
    inputs = [u, delta, -A.exp(), B, C, D, z, bias]

    def run(dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
        given = [each.to(dtype).requires_grad_() for each in inputs]
        out = selective_scan_fn(*given, True, order="tri3d", grid=(7, 1, 11), backend=backend)
        assert isinstance(out, torch.Tensor)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), given)]

    pairs = zip(run(torch.float32, "numba"), run(torch.float64, "torch"), strict=True)
    errors = [float((found - truth).norm() / truth.norm()) for found, truth in pairs]
    return errors[0], max(errors[1:])


def products() -> float:
    """The scan of Mamba-2 and attention, whose products end with vectors that are not full."""
    torch.manual_seed(0)
    x, dt, A = torch.randn(2, 150, 4, 21), torch.rand(2, 150, 4), -8 * torch.rand(4)
    B, C = torch.randn(2, 2, 150, 2, 19)
    q, k, v = torch.randn(3, 5, 3, 21, 20)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        out = mamba_chunk_scan_combined(*(each.to(dtype) for each in (x, dt, A, B, C)), 64)
        maps = [each.to(dtype) for each in (q, k, v)]
        return [out, scale_attention(*maps), scale_attention(*maps, readout=2)]

    pairs = zip(run(torch.float32), run(torch.float64), strict=True)
    return max(float((found - truth).norm() / truth.norm()) for found, truth in pairs)


forward, gradients = scan()
found = {"functions": functions(), "forward": forward, "gradients": gradients}
json.dump({"lanes": LANES, **found, "products": products()}, sys.stdout)
