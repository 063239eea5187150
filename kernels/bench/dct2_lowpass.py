"""The low band of the DCT: pruned products against a whole DCT by FFT, cropped."""

from __future__ import annotations

import math

import torch
from harness import Case, Cases, close
from torch import Tensor

from medplat_kernels import dct2_lowpass

FFT, WHOLE = "FFT and crop", "whole product and crop"


def _dct_by_fft(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis from the FFT of its even extension (Makhoul 1980)."""
    size = x.shape[-1]
    ordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    angle = -math.pi * torch.arange(size, device=x.device) / (2 * size)
    turned = (torch.fft.fft(ordered) * torch.polar(torch.ones_like(angle), angle)).real
    turned = turned * math.sqrt(2 / size)
    return torch.cat([turned[..., :1] / math.sqrt(2), turned[..., 1:]], -1)


def _lowpass(device: str) -> Case:
    torch.manual_seed(0)
    x = torch.randn(16, 192, 56, 56, device=device)
    basis = _dct_by_fft(torch.eye(56, device=device)).mT.contiguous()
    return Case(
        title="dct2_lowpass, (16, 192, 56, 56) to 14 x 14, forward",
        variants={
            "medplat": lambda: dct2_lowpass(x, 14, 14),
            FFT: lambda: _dct_by_fft(_dct_by_fft(x).mT).mT[..., :14, :14],
            WHOLE: lambda: (basis @ x @ basis.mT)[..., :14, :14],
        },
        same=close(1e-5),
        goals={FFT: 22},
        operator="dct2_lowpass",
    )


CASES: Cases = {"56_to_14": _lowpass}
