"""Ways back up in a U-Net, all called with the coarse map and the skip that fixes the size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medplat.blocks.conv import CONV, TRANSPOSED, linear_upsample


class LinearUp(nn.Module):
    """1x1 convolution, then linear interpolation to the size of the skip."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.below = CONV[spatial_dims](in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, *h), (B, Cs, *H) -> (B, Co, *H)."""
        return linear_upsample(self.below(x), skip.shape[2:])


class TransposedUp(nn.Module):
    """Transposed convolution, kernel 2 and stride 2."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = TRANSPOSED[spatial_dims](in_channels, out_channels, 2, stride=2)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, *h), (B, Cs, *2h) -> (B, Co, *2h)."""
        risen: torch.Tensor = self.up(x)
        return risen


class PixelShuffleUp(nn.Module):
    """1x1 convolution to 2^d times the channels, which are then laid out in space."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dims = spatial_dims
        self.below = CONV[spatial_dims](in_channels, out_channels * 2**spatial_dims, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, *h), (B, Cs, *2h) -> (B, Co, *2h)."""
        y: torch.Tensor = self.below(x)
        batch, channels, *shape = y.shape
        y = y.reshape(batch, channels // 2**self.dims, *[2] * self.dims, *shape)
        order = [n for axis in range(self.dims) for n in (2 + self.dims + axis, 2 + axis)]
        return y.permute(0, 1, *order).reshape(batch, -1, *[2 * size for size in shape])


class AttentionGate(nn.Module):
    """Additive attention gate on a skip at its own size (Oktay et al., arXiv 1804.03999)."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv, inner = CONV[spatial_dims], max(1, channels // 2)
        self.below = conv(channels, inner, 1)
        self.lateral = conv(channels, inner, 1, bias=False)
        self.weight = conv(inner, 1, 1)

    def forward(self, y: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Up-sampled map and skip, both (B, C, *H) -> the skip, weighted (B, C, *H)."""
        weight: torch.Tensor = self.weight(F.relu(self.below(y) + self.lateral(skip)))
        return skip * weight.sigmoid()
