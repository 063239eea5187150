"""Derivatives that the operators lack are refused; torch itself would answer with zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import medplat_kernels as kernels

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: kernels.scale_attention(x, x, x),
    "window": lambda x: kernels.window_attention(*(x[None],) * 3, 2),
    "similarity": lambda x: kernels.similarity_attention(x[0], x, 0.1)[1],
    "dct": lambda x: kernels.dct2_lowpass(x[None], 2, 2),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_forward_mode_is_refused(name: str) -> None:
    x = torch.randn(2, 4, 6, 8) if name in ("scale", "window") else torch.randn(2, 6, 8)
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(CALLS[name], (x,), (x,))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(2, 4, 6, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(CALLS["scale"](x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="can't be differentiated again"):
        torch.autograd.grad(grad.square().sum(), x)
