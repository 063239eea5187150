"""Similarity attention in two products that read the tokens as they are.

Norms are applied to the rows and columns of the small (texts, tokens) matrices, so that the unit
tokens are never written. The gradient of the normalisation needs v^ . dv^ for each token, which is
a sum over texts of what is at hand.
"""

from __future__ import annotations

from typing import Any

import torch

from medplat_kernels.attention_ops import wide
from medplat_kernels.dispatch import Verdict, verdict

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def can_run(*_: Any, raise_error: bool = False) -> Verdict:
    """Always."""
    return verdict(None, raise_error, "torch runs every type and device")


def forward(
    t: torch.Tensor, v: torch.Tensor, temperature: torch.Tensor, mask: torch.Tensor | None
) -> Results:
    """logit, map, pooled, lse, inverse: see the package."""
    t, v = (x.to(wide(x.dtype)) for x in (t, v))
    texts, inverse = t * _inverse_norm(t).unsqueeze(-1), _inverse_norm(v)
    if len(texts) == 1:
        products = (v.flatten(0, 1) @ texts[0].mT).view(*v.shape[:2], -1)
    else:
        products = v @ texts.mT
    cosines = v.new_empty(len(v), t.shape[1], v.shape[1])
    torch.mul(products.mT, inverse.unsqueeze(1), out=cosines)
    scores = _scores(cosines, temperature, mask)
    weights = scores.softmax(-1)
    lse = scores.amax(-1) - weights.amax(-1).log_()  # the largest weight is 1 / the sum
    if mask is not None:
        nothing = ~mask.any(-1, keepdim=True)
        weights.masked_fill_(nothing.unsqueeze(-1), 0.0)
        lse.masked_fill_(nothing, float("-inf"))
    pooled = weights.mul_(inverse.unsqueeze(1)) @ v
    unit = pooled * _inverse_norm(pooled).unsqueeze(-1)
    return (texts * unit).sum(-1), cosines, pooled, lse, inverse


def backward(
    grad_logit: torch.Tensor,
    grad_map: torch.Tensor,
    t: torch.Tensor,
    v: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    logit: torch.Tensor,
    map: torch.Tensor,
    pooled: torch.Tensor,
    lse: torch.Tensor,
    inverse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of t, v and the temperature."""
    tokens = v.to(lse.dtype)
    inverse_t, inverse_p = (_inverse_norm(x.to(lse.dtype)).unsqueeze(-1) for x in (t, pooled))
    texts, unit = t.to(lse.dtype) * inverse_t, pooled * inverse_p
    pull = grad_logit.unsqueeze(-1)
    to_pooled = (texts - unit * logit.unsqueeze(-1)).mul_(inverse_p).mul_(pull)
    norms = inverse.unsqueeze(1)
    weights = _weights(_scores(map, temperature, mask), lse)
    to_weights = (to_pooled @ tokens.mT).mul_(norms)
    shared = weights * to_weights
    to_scores = shared - weights * shared.sum(-1, keepdim=True)
    dtemperature = -(to_scores * map).sum() / temperature**2
    to_map = to_scores.div_(temperature).add_(grad_map)
    along = (to_map * map).add_(shared).sum(1)
    to_texts = torch.baddbmm(unit * pull, to_map * norms, tokens)
    left = torch.cat([to_map, weights], 1).mul_(norms).mT
    right = torch.cat([texts.expand_as(to_pooled), to_pooled], 1)
    dv = torch.baddbmm(tokens * (-along * inverse**2).unsqueeze(-1), left, right)
    if len(t) == 1:
        to_texts = to_texts.sum(0, keepdim=True)
    dt = (to_texts - texts * (texts * to_texts).sum(-1, keepdim=True)) * inverse_t
    return dt.to(t.dtype), dv.to(v.dtype), dtemperature


def _inverse_norm(x: torch.Tensor) -> torch.Tensor:
    """1 / |row|, 0 for a row of zeros."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    return torch.where(norm > 0, 1 / norm, 0.0)


def _scores(
    cosines: torch.Tensor, temperature: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    scores = cosines / temperature
    return scores if mask is None else scores.masked_fill_(~mask[:, None], float("-inf"))


def _weights(scores: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Softmax, written over `scores`; 0 where every token is masked."""
    return scores.sub_(lse.clamp(min=torch.finfo(lse.dtype).min).unsqueeze(-1)).exp_()
