"""Parts of nnU-Net's residual U-Net, in the two forms of block that U-Mamba uses.

Names of parameters are those of dynamic_network_architectures and of U-Mamba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.conv import CONV, CONV3, NORM

SLOPE = 0.01


def same(kernel: Sequence[int]) -> list[int]:
    """Padding that keeps the size of a map under an odd kernel."""
    return [side // 2 for side in kernel]


class ConvNorm(nn.Module):
    """Convolution with bias, then instance norm with weights."""

    def __init__(self, dims: int, channels: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = CONV3[dims](channels, channels, kernel, padding=same(kernel))  # type: ignore[arg-type]
        self.norm = NORM[dims](channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        out: Tensor = self.norm(self.conv(x))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions beside the block's own input, channels and size kept."""

    def __init__(self, dims: int, channels: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dims, channels, kernel)
        self.conv2 = ConvNorm(dims, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        inner = F.leaky_relu(self.conv1(x), SLOPE)
        return F.leaky_relu(self.conv2(inner) + x, SLOPE)


class ProjectedResidualBlock(nn.Module):
    """Two convolutions, the first with a stride, beside a 1x1 convolution without a norm."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | int = 1,
    ) -> None:
        super().__init__()
        conv, norm, padding = CONV3[dims], NORM[dims], same(kernel)
        self.conv1 = conv(in_channels, channels, kernel, stride=stride, padding=padding)  # type: ignore[arg-type]
        self.norm1 = norm(channels, affine=True)
        self.conv2 = conv(channels, channels, kernel, padding=padding)  # type: ignore[arg-type]
        self.norm2 = norm(channels, affine=True)
        self.conv3 = CONV[dims](in_channels, channels, 1, stride=stride)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, Ci, *spatial) -> (B, Co, *spatial / stride)."""
        inner = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(inner)) + self.conv3(x), SLOPE)


class NearestUp(nn.Module):
    """Nearest neighbours, then a 1x1 convolution."""

    def __init__(self, dims: int, in_channels: int, channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = CONV[dims](in_channels, channels, 1)
        self.stride = [float(step) for step in stride]

    def forward(self, x: Tensor) -> Tensor:
        """(B, Ci, *spatial) -> (B, Co, *spatial * stride)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=self.stride, mode="nearest"))
        return out


def he_start(network: nn.Module) -> None:
    """He's normal start for a leaky slope of 0.01 on spatial convolutions, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def halved(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Size of a map after a convolution with this stride."""
    return tuple(math.ceil(side / step) for side, step in zip(size, stride, strict=True))
