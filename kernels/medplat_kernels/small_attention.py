"""Softmax attention inside many small independent groups of tokens, in torch operations.

The windows, tiles and sequences of the attention operators end up here. Few keys: plain products,
keys before queries, since a softmax along a last axis of 8 or 16 is slow on a CPU. Many keys on a
CPU: torch's fused kernel. Sums run in float32, and in float64 for float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .attention_ops import wide

FUSED_FROM = 32  # keys; below, products are as fast as torch's fused kernel or faster
FUSED_QUERIES = 3  # and so they are below so many queries
SCORES = 1 << 20  # elements of the largest matrix of scores held at a time on a CPU


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k^T + bias + mask) v in each group.

    Args:
        q: (groups, heads, nq, d).
        k: (groups, heads, nk, d); one key at least.
        v: As k.
        bias: (heads, nq, nk), the same in all groups.
        mask: (windows, nq or 1, nk), 0 or -inf, for group g that of window g % windows; each row
            has a 0.
        scale: Factor of the products.

    Returns:
        The output (groups, heads, nq, d) and the logarithm of the sum of exponentials of each
        query, (groups, heads, nq) in the type of sums.
    """
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=wide(q.dtype))
    for part in _parts(q, k):
        if fused(q, k):
            a, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[part], k[part], v[part], attn_mask=_added(bias, mask, part, q.dtype), scale=scale
            )
        else:
            weights = _scores(q[part], k[part], bias, mask, part, scale)
            top = weights.amax(-2, keepdim=True)
            total = weights.sub_(top).exp_().sum(-2, keepdim=True)
            weights.div_(total)
            a = weights.mT @ v[part].to(weights.dtype)
            sums = (total.log_().add_(top)).squeeze(-2)
        if a.shape == out.shape and a.stride() == out.stride() and a.dtype == out.dtype:
            return a, sums.contiguous()
        out[part] = a
        lse[part] = sums
    return out, lse


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor | None,
    lse: torch.Tensor,
    scale: float,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of `forward` for q, k, v and, where `bias_grad`, the bias (in the type of sums).

    `out` is read only where `fused(q, k)` and may be None elsewhere.
    """
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dbias = None
    if bias is not None and bias_grad:
        dbias = torch.zeros_like(bias, dtype=lse.dtype)
    for part in _parts(q, k):
        if out is not None and dbias is None and fused(q, k):
            added = _added(bias, mask, part, q.dtype)
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(x[part] for x in (grad, q, k, v, out, lse)),
                0.0,
                False,
                attn_mask=added,
                scale=scale,
            )
            dq[part], dk[part], dv[part] = grads
            continue
        g, query, key, value = (x[part].to(lse.dtype) for x in (grad, q, k, v))
        weights = _scores(query, key, bias, mask, part, scale)
        weights.sub_(lse[part].unsqueeze(-2)).exp_()
        found_v = weights @ g
        slope = _products(value, g)
        slope.sub_((slope * weights).sum(-2, keepdim=True)).mul_(weights)
        if dbias is not None:
            dbias += slope.sum(0).mT
        slope.mul_(scale)
        found_q, found_k = slope.mT @ key, slope @ query
        if len(g) == len(grad):
            return found_q, found_k, found_v, dbias
        dq[part], dk[part], dv[part] = found_q, found_k, found_v
    return dq, dk, dv, dbias


def fused(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether torch's fused kernel is taken, by the number of keys and queries."""
    return q.device.type == "cpu" and k.shape[2] >= FUSED_FROM and q.shape[2] >= FUSED_QUERIES


def _parts(q: torch.Tensor, k: torch.Tensor) -> Iterator[slice]:
    """Groups taken at a time: all of them where that is little memory, or not on a CPU."""
    groups, heads, nq, _ = q.shape
    step = groups
    if q.device.type == "cpu":
        step = max(1, SCORES // max(1, heads * nq * k.shape[2]))
    for start in range(0, groups, max(1, step)):
        yield slice(start, min(groups, start + step))


def _scores(
    q: torch.Tensor,
    k: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    part: slice,
    scale: float,
) -> torch.Tensor:
    """(groups, heads, nk, nq): keys before queries."""
    dtype = wide(q.dtype)
    scores = _products(k.to(dtype), q.to(dtype)).mul_(scale)
    if bias is not None:
        scores += bias.mT.to(dtype)
    if mask is not None:
        scores += _window_masks(mask, part).mT.to(dtype)
    return scores


def _products(k: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(groups, heads, nk, nq); few rows are faster on the left side of a product."""
    return (q @ k.mT).mT if q.shape[2] < FUSED_QUERIES else k @ q.mT


def _added(
    bias: torch.Tensor | None, mask: torch.Tensor | None, part: slice, dtype: torch.dtype
) -> torch.Tensor | None:
    """Bias and mask as one tensor that torch's fused kernel takes."""
    if mask is None:
        return None if bias is None else bias.to(dtype)[None]
    masks = _window_masks(mask, part)
    return (masks if bias is None else masks + bias).to(dtype)


def _window_masks(mask: torch.Tensor, part: slice) -> torch.Tensor:
    """(groups or 1, 1, nq or 1, nk): the masks of the groups of `part`."""
    if mask.shape[0] == 1:
        return mask[:, None]
    groups = torch.arange(part.start, part.stop, device=mask.device) % mask.shape[0]
    return mask[groups][:, None]
