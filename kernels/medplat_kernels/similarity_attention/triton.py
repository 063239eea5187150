"""Similarity attention on a GPU; see `triton_kernels` for what runs there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medplat_kernels import attention_triton
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.triton_device import refusal

WIDEST = 1024
BLOCK_T, BLOCK_N = 16, 16
PROGRAMS = 264  # two for each multiprocessor of the largest GPUs
LEAST = 64  # tokens of a split


def can_run(
    t: Tensor, v: Tensor, temperature: Tensor, mask: Any, *, raise_error: bool = False
) -> Verdict:
    """On CUDA devices from compute capability 8.0, and in Triton's interpreter."""
    reason = refusal(v)
    if not reason and v.shape[-1] > WIDEST:
        reason = f"triton similarity attention takes tokens of {WIDEST} at most, got {v.shape[-1]}"
    return verdict(reason, raise_error, "triton makes the map and the pooling in one walk")


def forward(
    t: Tensor, v: Tensor, temperature: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logit, map, pooled, lse, inverse: see the package."""
    from . import triton_kernels

    (images, tokens, width), texts = v.shape, t.shape[1]
    unit = _unit(t.float())[0].expand(images, -1, -1).contiguous()
    programs = images * -(-texts // BLOCK_T)
    splits = max(1, min(-(-PROGRAMS // programs), tokens // LEAST))
    per_split = -(-tokens // (splits * BLOCK_N)) * BLOCK_N
    cosines = unit.new_empty((images, texts, tokens))
    inverse = unit.new_empty((images, tokens))
    parts = unit.new_empty((splits, images, texts, width))
    tops, totals = unit.new_empty((2, splits, images, texts))
    triton_kernels.similarity_attention_forward_kernel[(splits * programs,)](
        unit, v, temperature, _bytes(mask), cosines, inverse, parts, tops, totals,
        images, texts, tokens, per_split, **constants(width, 16),
    )  # fmt: skip
    top = tops.amax(0)
    factors = torch.exp2(tops - torch.where(top == float("-inf"), 0.0, top))
    total = (factors * totals).sum(0)
    pooled = (factors.unsqueeze(-1) * parts).sum(0)
    pooled /= torch.where(total == 0, 1.0, total).unsqueeze(-1)
    lse = (top + total.log2()) * torch.log(total.new_full((), 2.0))
    return (unit * _unit(pooled)[0]).sum(-1), cosines, pooled, lse, inverse


def backward(
    grad_logit: Tensor, grad_map: Tensor, t: Tensor, v: Tensor, temperature: Tensor,
    mask: Tensor | None, logit: Tensor, map: Tensor, pooled: Tensor, lse: Tensor, inverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of t, v and the temperature."""
    from . import triton_kernels

    (images, tokens, width), texts = v.shape, t.shape[1]
    unit, inverse_t = _unit(t.float())
    unit = unit.expand(images, -1, -1).contiguous()
    pooled_unit, inverse_p = _unit(pooled)
    pull = grad_logit.unsqueeze(-1)
    to_pooled = (unit - pooled_unit * logit.unsqueeze(-1)) * inverse_p * pull
    blocks, steps = -(-texts // BLOCK_T), -(-tokens // BLOCK_N)
    to_map, dv = torch.empty_like(map), torch.empty_like(v)
    along = map.new_empty((blocks, images, tokens))
    heats = map.new_empty(images * blocks * steps)
    counts, how, mask = (images, texts, tokens), constants(width, 8), _bytes(mask)
    triton_kernels.similarity_attention_backward_map_kernel[(images * blocks * steps,)](
        to_pooled, v, temperature, mask, map, inverse, lse, grad_map, to_map, along, heats,
        *counts, **how,
    )  # fmt: skip
    parts = -(-width // how["BLOCK_D"])
    triton_kernels.similarity_attention_backward_tokens_kernel[(images * steps * parts,)](
        unit, to_pooled, v, temperature, mask, map, inverse, lse, to_map, along, dv,
        *counts, **how,
    )  # fmt: skip
    to_texts = torch.baddbmm(pooled_unit * pull, to_map * inverse.unsqueeze(1), v.float())
    if len(t) == 1:
        to_texts = to_texts.sum(0, keepdim=True)
    unit = unit[: len(t)]
    dt = (to_texts - unit * (unit * to_texts).sum(-1, keepdim=True)) * inverse_t
    return dt.to(t.dtype), dv, -heats.sum() / temperature**2


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and reciprocal norms; zeros for rows of zeros."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0.0)
    return x * inverse, inverse


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def constants(width: int, warps: int) -> dict[str, Any]:
    """How a kernel is launched; one stage, since loads ahead of time would need registers."""
    return {
        "D": width, "BLOCK_D": attention_triton.block(width, 128), "BLOCK_T": BLOCK_T,
        "BLOCK_N": BLOCK_N, "num_warps": warps, "num_stages": 1, "enable_fp_fusion": True,
    }  # fmt: skip
