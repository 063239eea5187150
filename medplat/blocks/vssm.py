"""The stages of VMamba's first version: patches in, blocks, merging; and the way back up.

Source: Liu et al., VMamba, arXiv 2401.10166v1, section 4.3; patch merging: Liu et al., Swin
Transformer, arXiv 2103.14030; patch expanding: Cao et al., Swin-Unet, arXiv 2105.05537. Maps are
channels-last, (B, H, W, C); names of parameters as in VM-UNet and Swin-UMamba.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medplat.blocks.ss2d import Switch, VSSBlock


class PatchEmbed(nn.Module):
    """Convolution whose stride is its kernel, then LayerNorm."""

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H / patch, W / patch, channels)."""
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class PatchMerging(nn.Module):
    """The four voxels of each 2x2 square side by side, LayerNorm, linear map to twice C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W even -> (B, H / 2, W / 2, 2C)."""
        phases = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(phases, -1)))
        return out


class PatchExpand(nn.Module):
    """Linear map to `rows` channels, laid out as factor x factor voxels, LayerNorm."""

    def __init__(self, channels: int, rows: int, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, rows, bias=False)
        self.norm = nn.LayerNorm(rows // factor**2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, factor * H, factor * W, rows / factor^2)."""
        batch, height, width, _ = x.shape
        square = self.expand(x).view(batch, height, width, self.factor, self.factor, -1)
        spread = square.transpose(2, 3).reshape(
            batch, height * self.factor, width * self.factor, -1
        )
        out: Tensor = self.norm(spread)
        return out


class Stage(nn.Module):
    """Blocks at one resolution, with a change of resolution before or after them."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        upsample: nn.Module | None = None,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        if self.upsample is not None:
            x = self.upsample(x)
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class VssmEncoder(nn.Module):
    """Patches and four stages of Swin-UMamba; keeps what each stage gives before it is merged."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depths: Sequence[int],
        *,
        patch: int,
        state: int = 16,
        drop_path: float = 0.0,
        ssm: Switch = "on",
    ) -> None:
        """The stages have channels, 2 * channels, 4 * channels ... channels.

        Args:
            in_channels: Of the image.
            channels: Of the first stage.
            depths: Blocks of each stage.
            patch: Side of a patch.
            state: N, states of a channel.
            drop_path: Of the last block; rises linearly from 0.
            ssm: See `SS2D`.
        """
        super().__init__()
        widths = [channels * 2**level for level in range(len(depths))]
        self.patch_embed = PatchEmbed(in_channels, channels, patch)
        self.layers = nn.ModuleList(
            Stage(blocks(width, drops, state=state, ssm=ssm))
            for width, drops in zip(widths, rising(drop_path, depths), strict=True)
        )
        self.downsamples = nn.ModuleList(PatchMerging(fine) for fine, _ in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the stages' maps, finest first, each (B, h, w, c)."""
        x = self.patch_embed(x)
        maps: list[Tensor] = []
        for level, layer in enumerate(self.layers):
            x = layer(x if level == 0 else self.downsamples[level - 1](x))
            maps.append(x)
        return maps


def blocks(
    channels: int, drop_paths: Sequence[float], *, state: int = 16, ssm: Switch = "on"
) -> list[VSSBlock]:
    """One VSSBlock for each number of `drop_paths`."""
    return [VSSBlock(channels, state=state, drop_path=chance, ssm=ssm) for chance in drop_paths]


def rising(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Chances that rise linearly from 0 at the first block to `last`, stage by stage."""
    chances = [last * at / max(1, sum(depths) - 1) for at in range(sum(depths))]
    starts = [sum(depths[:level]) for level in range(len(depths))]
    return [chances[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def initialise(network: nn.Module) -> None:
    """Linear layers: weights normal with deviation 0.02, cut at 2, bias 0; LayerNorm: 1 and 0.

    The step sizes of SS2D are bare parameters, which this does not touch.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
