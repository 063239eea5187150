"""Layers by number of dimensions, and a 3-D convolution laid out for CPUs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
BATCH: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
NORM: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}


class ChannelsLastConv3d(nn.Conv3d):
    """`nn.Conv3d` that reads its input channels-last on a CPU: the same values, sooner.

    With fewer than 16 channels forward takes half the time and backward a third (torch 2.13, x86);
    from 16 on there is no difference. Only the convolution: torch's normalisations either copy
    back (instance norm) or lose precision in that layout (group norm, when the mean is not small).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, x, y, z) -> (B, Co, x, y, z)."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return super().forward(x)


CONV3: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: ChannelsLastConv3d}


def linear_upsample(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Bilinear or trilinear interpolation to `size`, corners not aligned."""
    mode = {4: "bilinear", 5: "trilinear"}[x.ndim]
    return F.interpolate(x, size=size, mode=mode, align_corners=False)
