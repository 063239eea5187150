"""The causal convolution with SiLU against torch's grouped convolution and a slice.

Not called causal_conv1d: mamba_ssm looks for a package of that name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Case, Cases, close
from torch import Tensor
from torch.nn.functional import conv1d, silu

from medplat_kernels import causal_conv1d_fn

CONV1D = "F.conv1d and slice"


def _case(batch: int, channels: int, length: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        torch.manual_seed(0)
        x = torch.randn(batch, channels, length, device=device)
        weight, bias = torch.randn(channels, 4, device=device), torch.randn(channels, device=device)

        def with_torch() -> Tensor:
            y = conv1d(x, weight[:, None], bias, padding=3, groups=channels)[..., :length]
            return silu(y)

        return Case(
            title=f"causal convolution of 4 and SiLU, ({batch}, {channels}, {length}), forward",
            variants={
                "medplat": lambda: causal_conv1d_fn(x, weight, bias, "silu"),
                CONV1D: with_torch,
            },
            same=close(1e-5),
            goals={CONV1D: 6},
            operator="causal_conv1d",
        )

    return make


CASES: Cases = {"13824": _case(1, 192, 13824)}
