"""Similarity attention at RadZero's size: 37 x 37 tokens and one, 768 wide, 14 and 64 texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Case, Cases, close
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from medplat_kernels import similarity_attention

BROADCAST, BARE = "cosine_similarity, broadcast", "two bare products"
HEAT = 0.07


def _case(texts: int, goals: dict[str, float]) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        torch.manual_seed(0)
        t = torch.randn(texts, 768, device=device)
        v = torch.randn(4, 1370, 768, device=device)

        def finish(cosines: Tensor, tokens: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            pooled = (cosines / HEAT).softmax(-1) @ tokens
            return (t * normalize(pooled, dim=-1)).sum(-1), cosines

        def broadcast() -> tuple[Tensor, Tensor]:
            cosines = cosine_similarity(t[None, :, None], v[:, None], dim=-1)
            return finish(cosines, normalize(v, dim=-1), normalize(t, dim=-1))

        unit_t, unit_v = normalize(t, dim=-1), normalize(v, dim=-1)

        def bare() -> tuple[Tensor, Tensor]:
            return finish(unit_t @ unit_v.mT, unit_v, unit_t)

        return Case(
            title=f"similarity attention, 4 x 1370 tokens of 768, {texts} texts, forward",
            variants={
                "medplat": lambda: similarity_attention(t, v, HEAT),
                BROADCAST: broadcast,
                BARE: bare,
            },
            same=close(1e-5),
            goals={**goals, BARE: 1 / 1.3},
            operator="similarity_attention",
        )

    return make


CASES: Cases = {
    "texts_14": _case(14, {BROADCAST: 3.5}),
    "texts_64": _case(64, {BROADCAST: 80}),
}
