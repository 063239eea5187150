"""Window attention up-sampling: the decoder operator of `wau_unet`.

After Li et al., arXiv 2106.10637, of which only abstracts could be read: the shape of the operator
is ours. Queries come from the encoder's skip, keys and values from the coarser map below, inside
local windows, and linear up-sampling is the residual.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from medplat.blocks.conv import CONV, linear_upsample
from medplat_kernels.window_cross_attention import window_cross_attention

Bias = Literal["relative", "none"]


def relative_index(window: int, dims: int) -> torch.Tensor:
    """Place in the bias table of each pair of query and key.

    Along one axis query i and key j, which lies at 2j, meet at i - 2j + window - 2, a number from 0
    to 2 * window - 3; the axes are combined row-major.

    Returns:
        (window^dims, (window / 2)^dims) int64: queries, keys.
    """
    axis = torch.arange(window)[:, None] - 2 * torch.arange(window // 2)[None] + window - 2
    index = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(dims):
        index = index[:, None, :, None] * (2 * window - 2) + axis[None, :, None, :]
        index = index.flatten(0, 1).flatten(1, 2)
    return index


class WindowAttentionUp(nn.Module):
    """Up-sampling by a factor of two, guided by the skip.

    With zero-initialised output layers, as it starts, the block is exactly a 1x1 convolution and
    linear up-sampling.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels C of the coarse map.
        skip_channels: Channels Cs of the skip.
        out_channels: Channels Co of the result.
        heads: Attention heads; they divide Co.
        window: Side M of a window in voxels of the skip, even.
        mlp_ratio: Hidden width of the feed-forward part, in Co.
        bias: Learned bias by relative position, or none.
        zero_init: Start as plain linear up-sampling.
    """

    index: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        heads: int,
        window: int,
        mlp_ratio: int = 2,
        bias: Bias = "relative",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if window < 2 or window % 2:
            raise ValueError(f"window must be even and positive, not {window}")
        if out_channels % heads:
            raise ValueError(f"{heads} heads do not divide {out_channels} channels")
        self.dims, self.heads, self.window = spatial_dims, heads, window
        self.below = CONV[spatial_dims](in_channels, out_channels, 1)
        self.lateral = nn.Linear(skip_channels, out_channels)  # a 1x1 convolution, on tokens
        self.norm_query = nn.LayerNorm(out_channels)
        self.norm_key = nn.LayerNorm(out_channels)
        self.query = nn.Linear(out_channels, out_channels)
        self.key_value = nn.Linear(out_channels, 2 * out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.norm_feed = nn.LayerNorm(out_channels)
        last = nn.Linear(mlp_ratio * out_channels, out_channels)
        self.feed = nn.Sequential(
            nn.Linear(out_channels, mlp_ratio * out_channels), nn.GELU(), last
        )
        if bias == "relative":
            self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 2) ** spatial_dims))
            index = relative_index(window, spatial_dims)
            self.register_buffer("index", index, persistent=False)
        else:
            self.register_parameter("bias", None)
        if zero_init:
            for layer in (self.out, last):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, *h) and (B, Cs, *H) -> (B, Co, *H), with H = 2h or 2h - 1 along each axis.

        Raises:
            ValueError: The sizes do not fit.
        """
        low, high = x.shape[2:], skip.shape[2:]
        if any(big not in (2 * small, 2 * small - 1) for small, big in zip(low, high, strict=True)):
            raise ValueError(
                f"the skip must have twice the voxels of the map below, or one less, "
                f"along each axis: {tuple(high)} does not fit {tuple(low)}"
            )
        y = self.below(x)
        return linear_upsample(y, high) + self.attention(y, skip)

    def attention(self, y: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The branch beside the residual: y (B, Co, *h), skip (B, Cs, *H) -> (B, Co, *H)."""
        q = self._split(self.query(self.norm_query(self.lateral(skip.movedim(1, -1)))))
        pair = self.key_value(self.norm_key(y.movedim(1, -1))).chunk(2, dim=-1)
        k, v = (self._split(part) for part in pair)
        attended = window_cross_attention(q, k, v, self.window, self.window // 2, self._bias())
        a = self.out(attended.movedim(1, -2).flatten(-2))
        a = a + self.feed(self.norm_feed(a))
        return torch.movedim(a, -1, 1)

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, *spatial, Co) -> (B, heads, *spatial, Co / heads)."""
        split = tokens.view(*tokens.shape[:-1], self.heads, tokens.shape[-1] // self.heads)
        return split.movedim(-2, 1)

    def _bias(self) -> torch.Tensor | None:
        """(heads, window^d, (window / 2)^d): heads, queries, keys."""
        if self.bias is None:
            return None
        return self.bias[:, self.index]
