"""Similarity attention as two torch operators, `medplat::<name>_forward` and `_backward`.

Arguments and results are those of the contract in the package's docstring.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medplat_kernels import dispatch
from medplat_kernels.attention_ops import wide
from medplat_kernels.torch_operator import torch_operator

NAME = "similarity_attention"
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def as_temperature(given: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A scalar tensor, through which a gradient flows to a tensor.

    Raises:
        ValueError: A tensor of more than one element, or a number that is not positive.
    """
    if isinstance(given, Tensor):
        if given.numel() != 1:
            raise ValueError(f"temperature must have one element, got {tuple(given.shape)}")
        return given.to(device, dtype).reshape(())
    if not given > 0:
        raise ValueError(f"temperature must be positive, got {given}")
    return torch.full((), given, device=device, dtype=dtype)


@torch_operator(f"{NAME}_forward")
def similarity_attention_forward(
    t: Tensor, v: Tensor, temperature: Tensor, mask: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logit, map, pooled, lse, inverse."""
    if t.numel() == 0 or v.numel() == 0:
        logit, cosines, pooled, lse, inverse = (x.zero_() for x in _results(t, v))
        return logit, cosines, pooled, lse.fill_(float("-inf")), inverse
    name = dispatch.choose(NAME, v.device, (t, v, temperature, mask), backend)
    dispatch.ran(NAME, name)
    with dispatch.without_autocast(v.device):
        result: Results = dispatch.module(NAME, name).forward(t, v, temperature, mask)
    return result


@torch_operator(f"{NAME}_backward")
def similarity_attention_backward(
    grad_logit: Tensor, grad_map: Tensor, t: Tensor, v: Tensor, temperature: Tensor,
    mask: Tensor | None, logit: Tensor, map: Tensor, pooled: Tensor, lse: Tensor,
    inverse: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of t, v and the temperature."""
    if t.numel() == 0 or v.numel() == 0:
        return torch.zeros_like(t), torch.zeros_like(v), torch.zeros_like(temperature)
    name = dispatch.choose(NAME, v.device, (t, v, temperature, mask), backend)
    with dispatch.without_autocast(v.device):
        dt, dv, dtemperature = dispatch.module(NAME, name).backward(
            grad_logit, grad_map, t, v, temperature, mask, logit, map, pooled, lse, inverse
        )
    return dt, dv, dtemperature


@similarity_attention_forward.register_fake
def _(t: Tensor, v: Tensor, temperature: Tensor, mask: Tensor | None, backend: str) -> Results:
    return _results(t, v)


@similarity_attention_backward.register_fake
def _(
    grad_logit: Tensor, grad_map: Tensor, t: Tensor, v: Tensor, temperature: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(t), torch.empty_like(v), torch.empty_like(temperature)


def _results(t: Tensor, v: Tensor) -> Results:
    batch, tokens, width = v.shape
    texts = t.shape[1]
    dtype = wide(v.dtype)
    return (
        v.new_empty((batch, texts), dtype=dtype),
        v.new_empty((batch, texts, tokens), dtype=dtype),
        v.new_empty((batch, texts, width), dtype=dtype),
        v.new_empty((batch, texts), dtype=dtype),
        v.new_empty((batch, tokens), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, grad_logit: Tensor, grad_map: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dt, dv, dtemperature = similarity_attention_backward(
        grad_logit.contiguous(), grad_map.contiguous(), *ctx.saved_tensors, ctx.backend
    )
    return dt, dv, dtemperature, None, None


similarity_attention_forward.register_autograd(_backward, setup_context=_setup_context)
similarity_attention_backward.has_no_gradient()
