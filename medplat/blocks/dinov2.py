"""The vision transformer of DINOv2, for pictures and volumes of any size.

Source: Oquab et al., DINOv2, arXiv 2304.07193. Parameters are named as in Hugging Face's `Dinov2`,
so that users' weights load by name. Positions are learnt on one grid and interpolated to others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.conv import CONV
from medplat.errors import DataError

INTERPOLATION = {2: "bicubic", 3: "trilinear"}


class Attention(nn.Module):
    """Self-attention with a linear layer each for query, key, value and output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = (
            self.attention[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.output["dense"](y)
        return out


class LayerScale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x * self.lambda1


class Layer(nn.Module):
    """Pre-norm attention and feed-forward part, each scaled and added."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, mlp_ratio * width),
                "fc2": nn.Linear(mlp_ratio * width, width),
            }
        )
        self.layer_scale2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        out: Tensor = x + self.layer_scale2(self.mlp["fc2"](hidden))
        return out


class Embeddings(nn.Module):
    """Patches as tokens, a class token in front, positions added.

    Args:
        dims: Axes of the image.
        in_channels: Of the image.
        width: Channels of a token.
        patch: Side of a patch.
        grid: Patches along each axis for which positions are learnt.
    """

    def __init__(
        self, dims: int, in_channels: int, width: int, patch: int, grid: Sequence[int]
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, tuple(grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + math.prod(grid), width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        self.patch_embeddings = nn.ModuleDict(
            {"projection": CONV[dims](in_channels, width, patch, stride=patch)}
        )

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, C, *spatial) -> (B, 1 + patches, D), patches row-major.

        Args:
            x: Sides in whole patches.
            hidden: (B, patches) bool: these are replaced by the mask token.
        """
        if any(side % self.patch for side in x.shape[2:]):
            raise DataError(
                f"the encoder takes sides that are multiples of {self.patch}, the image is "
                f"{'x'.join(map(str, x.shape[2:]))}: resize it"
            )
        tokens = cast(Tensor, self.patch_embeddings["projection"](x))
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        if hidden is not None:
            tokens = torch.where(hidden.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        cls = self.cls_token.expand(len(x), -1, -1)
        return torch.cat([cls, tokens], dim=1) + self.positions(grid)

    def positions(self, grid: Sequence[int]) -> Tensor:
        """Positions (1, 1 + patches, D) of another grid, interpolated in float32."""
        if tuple(grid) == self.grid:
            return self.position_embeddings
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        learnt = rest.float().transpose(1, 2).reshape(1, -1, *self.grid)
        mode = INTERPOLATION[len(self.grid)]
        resized = F.interpolate(learnt, size=tuple(grid), mode=mode, align_corners=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)


class Dinov2(nn.Module):
    """Embeddings, layers, and a last layer norm."""

    def __init__(
        self,
        *,
        dims: int = 2,
        in_channels: int = 3,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        patch: int = 14,
        grid: Sequence[int] = (37, 37),
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embeddings = Embeddings(dims, in_channels, width, patch, grid)
        self.encoder = nn.ModuleDict(
            {"layer": nn.Sequential(*(Layer(width, heads) for _ in range(layers)))}
        )
        self.layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, C, *spatial) -> (B, 1 + patches, D)."""
        out: Tensor = self.layernorm(self.encoder["layer"](self.embeddings(x, hidden)))
        return out
