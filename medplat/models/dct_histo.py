"""dct_histo: attention over the low frequencies of a map, beside a mobile convolution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medplat.blocks.attention import SelfAttention
from medplat.blocks.conv import BATCH, CONV
from medplat.errors import DataError
from medplat.types import Card, Count, Task
from medplat_kernels.dct2_lowpass import dct_lowpass, idct

SMALL = {"channels": (16, 32), "depths": (1, 1), "kept": (4, 4), "heads": (2, 4)}
SMALL_3D = {**SMALL, "kept": (2, 2)}

CARD = Card(
    title="DCT-HistoTransformer: attention in the frequency domain beside a mobile convolution",
    paper=(
        "Ranjbar, Mohebbi, Cherakhloo, Vosoughi Vahdat: DCT-HistoTransformer: Efficient "
        "Lightweight Vision Transformer with DCT Integration for histopathological image analysis, "
        "ICBME 2024; arXiv 2410.19166"
    ),
    fidelity="reconstruction",
    why=(
        "Only the abstract could be read: stacked blocks of two branches, attention over the low "
        "frequencies of a two-dimensional DCT and a mobile convolution. Depth, widths, the kept "
        "share of frequencies, the way back from them, the fusion of the branches and the "
        "parameter count are not stated there and are choices made here; no result of the paper "
        "is claimed."
    ),
    upstream_licence="none found",
    counts=(
        Count("2-D", Task("classify", 2, 3, 2), {}, 9_034_202),
        Count("2-D, twin", Task("classify", 2, 3, 2), {"operator": "off"}, 5_159_162),
        Count("2-D tiny", Task("classify", 2, 3, 2), SMALL, 30_730),
        Count("3-D tiny", Task("classify", 3, 1, 2), SMALL_3D, 38_154),
    ),
    deviations=(
        "orthonormal DCT-II; the kept coefficients are the tokens, with a learnt position each",
        "the way back is the inverse DCT, cut frequencies being zero",
        "branches are joined by a 1x1 convolution, with the block's input as residual",
        "kept frequencies per axis 14, 14, 7, 7 of maps of 56, 28, 14, 7 at 224 pixels",
        "3-D beside 2-D",
    ),
    kinds=("classify",),
)


class Config(BaseModel):
    """Keys of `model` in a workflow; one number a stage, finest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[int, ...] = Field(
        (48, 96, 192, 384), min_length=1, description="Channels of each stage."
    )
    depths: tuple[int, ...] = Field((2, 2, 4, 2), description="Blocks of each stage.")
    kept: tuple[int, ...] = Field(
        (14, 14, 7, 7), description="Kept frequencies along each axis; the maps must be as large."
    )
    heads: tuple[int, ...] = Field((2, 4, 8, 16), description="Attention heads of each stage.")
    mlp_ratio: int = Field(2, ge=1, description="Hidden width of the feed-forward part.")
    expansion: int = Field(4, ge=1, description="Hidden width of the mobile convolution.")
    operator: Literal["on", "off"] = Field(
        "on", description="off, the twin: no attention, the branch is a plain low-pass."
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        stages = len(self.channels)
        for name in ("depths", "kept", "heads"):
            if len(getattr(self, name)) != stages or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} needs {stages} positive numbers, one for each stage")
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % heads or width % 2:
                raise ValueError(f"{width} channels must be even and divided by {heads} heads")
        return self


TINY = Config.model_validate(SMALL_3D)
TWIN = Config.model_validate({**SMALL_3D, "operator": "off"})


class FrequencyAttention(nn.Module):
    """Low frequencies as tokens, a transformer block over them, and back to the map.

    Args:
        width: Channels.
        kept: Frequencies along each axis.
        dims: Axes.
        heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward part, in channels.
    """

    def __init__(self, width: int, kept: int, dims: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, kept**dims, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.norm1 = nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, c: Tensor) -> Tensor:
        """Coefficients (B, C, *kept) -> the same, each having seen the others."""
        t = c.flatten(2).transpose(1, 2)
        t = t + self.attend(self.norm1(t + self.position))
        seen: Tensor = t + self.mlp(self.norm2(t))
        return seen.transpose(1, 2).reshape(c.shape)


class MobileConv(nn.Sequential):
    """Widen, filter each channel, narrow; batch norms, no squeeze-and-excite, no residual."""

    def __init__(self, dims: int, width: int, expansion: int) -> None:
        conv, norm, hidden = CONV[dims], BATCH[dims], expansion * width
        super().__init__(
            conv(width, hidden, 1, bias=False),
            norm(hidden),
            nn.SiLU(),
            conv(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            norm(hidden),
            nn.SiLU(),
            conv(hidden, width, 1, bias=False),
            norm(width),
        )


class Block(nn.Module):
    """Both branches side by side, joined by a 1x1 convolution, and the input added."""

    def __init__(self, config: Config, dims: int, stage: int) -> None:
        super().__init__()
        width = config.channels[stage]
        self.kept = (config.kept[stage],) * dims
        self.attention: nn.Module = nn.Identity()
        if config.operator == "on":
            heads = config.heads[stage]
            self.attention = FrequencyAttention(
                width, config.kept[stage], dims, heads, config.mlp_ratio
            )
        self.mobile = MobileConv(dims, width, config.expansion)
        self.fuse = nn.Sequential(CONV[dims](2 * width, width, 1), BATCH[dims](width))

    def low(self, x: Tensor) -> Tensor:
        """The attention branch: (B, C, *spatial) -> the same, of low frequencies only."""
        return idct(self.attention(dct_lowpass(x, self.kept)), x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        both = torch.cat([self.low(x), x + self.mobile(x)], dim=1)
        out: Tensor = x + self.fuse(both)
        return out


class DctHisto(nn.Module):
    """Stem, stages of blocks, mean over space, layer norm, linear layer."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        dims, widths = task.spatial_dims, config.channels
        conv, norm = CONV[dims], BATCH[dims]
        half = widths[0] // 2
        self.stem = nn.Sequential(
            conv(task.in_channels, half, 3, stride=2, padding=1, bias=False),
            norm(half),
            nn.SiLU(),
            conv(half, widths[0], 3, stride=2, padding=1, bias=False),
            norm(widths[0]),
            nn.SiLU(),
        )
        self.down = nn.ModuleList(
            nn.Sequential(conv(a, b, 2, stride=2, bias=False), norm(b))
            for a, b in itertools.pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(config, dims, stage) for _ in range(depth)))
            for stage, depth in enumerate(config.depths)
        )
        self.kept = config.kept
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], task.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) of any size that leaves each stage its frequencies -> (B, K)."""
        shape = x.shape[2:]
        x = self.stem(x)
        for stage, blocks in enumerate(self.stages):
            self._require(stage, [side // 2 if stage else side for side in x.shape[2:]], shape)
            if stage:
                x = self.down[stage - 1](x)
            x = blocks(x)
        logits: Tensor = self.head(self.norm(x.flatten(2).mean(-1)))
        return logits

    def _require(self, stage: int, sides: Sequence[int], image: Sequence[int]) -> None:
        if min(sides) < self.kept[stage]:
            raise DataError(
                f"dct_histo keeps {self.kept[stage]} frequencies in stage {stage + 1}, whose map "
                f"is {'x'.join(map(str, sides))} for an image of {'x'.join(map(str, image))}: "
                "resize the image or set model.kept"
            )


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "classify"."""
    return DctHisto(config, task)
