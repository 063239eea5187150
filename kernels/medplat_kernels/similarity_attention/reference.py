"""Similarity attention by its definition."""

from __future__ import annotations

import torch


def similarity_attention_reference(
    t: torch.Tensor,
    v: torch.Tensor,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `similarity_attention` computes: logit (Bt, T) and map (Bt, T, N)."""
    texts, tokens = _unit(t).expand(len(v), -1, -1), _unit(v)
    cosines = texts @ tokens.mT
    scores = cosines / temperature
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)
    pooled = _unit(weights @ tokens)
    return (texts * pooled).sum(-1), cosines


def _unit(x: torch.Tensor) -> torch.Tensor:
    zero = (x == 0).all(-1, keepdim=True)
    return torch.where(zero, 0.0, x / torch.where(zero, 1.0, x).norm(dim=-1, keepdim=True))
