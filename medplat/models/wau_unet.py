"""wau_unet: a U-Net that goes up by window attention between the skip and the map below."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from medplat.blocks.conv import CONV, CONV3, NORM
from medplat.blocks.padding import crop_to, pad_for_levels
from medplat.blocks.up import AttentionGate, LinearUp, PixelShuffleUp, TransposedUp
from medplat.blocks.window_up import WindowAttentionUp
from medplat.types import Card, Count, Task

WINDOW = {2: 8, 3: 4}
FLAT = Task("segment", 2, 1, 3)
SOLID = Task("segment", 3, 1, 3)
SMALL = {"channels": (8, 16, 32), "heads": (1, 2), "window": 4}
OTHERS = {
    "linear": LinearUp,
    "transposed": TransposedUp,
    "pixelshuffle": PixelShuffleUp,
    "attention_gate": LinearUp,
}


CARD = Card(
    title="U-Net with window attention up-sampling",
    paper=(
        "Li, Cai, Gao, Li, Hu: More than Encoder: Introducing Transformer Decoder to Upsample, "
        "BIBM 2022, pp. 1597-1602; arXiv 2106.10637"
    ),
    fidelity="reconstruction",
    why=(
        "Only the abstracts could be read: attention in windows between up-sampled features and "
        "the lateral encoder features, with linear up-sampling as residual. Window size, heads, "
        "depth, losses, recipe, parameters and the path of the residual stream are not stated "
        "there and are choices made here; no result of the paper is claimed."
    ),
    upstream_licence="none found",
    counts=(
        Count("2-D", FLAT, {}, 10_296_351),
        Count("2-D, linear twin", FLAT, {"up": "linear"}, 9_503_331),
        Count("3-D", SOLID, {}, 28_245_899),
        Count("3-D, linear twin", SOLID, {"up": "linear"}, 27_452_579),
        Count("2-D tiny", FLAT, SMALL, 39_223),
        Count("2-D tiny, linear twin", FLAT, {**SMALL, "up": "linear"}, 35_899),
        Count("3-D tiny", SOLID, SMALL, 106_979),
        Count("3-D tiny, linear twin", SOLID, {**SMALL, "up": "linear"}, 103_115),
        Count("3-D tiny, transposed", SOLID, {**SMALL, "up": "transposed"}, 107_595),
        Count("3-D tiny, pixelshuffle", SOLID, {**SMALL, "up": "pixelshuffle"}, 107_763),
        Count("3-D tiny, attention_gate", SOLID, {**SMALL, "up": "attention_gate"}, 103_461),
    ),
    deviations=(
        "queries come from the skip, keys and values from the map below, without a residual from "
        "the skip",
        "windows of 8 voxels in 2-D and 4 in 3-D, heads 32 wide, feed-forward ratio 2, bias by "
        "relative position",
        "output layers of the operator start at zero, so that training starts from the linear twin",
        "3-D beside 2-D",
    ),
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[int, ...] = Field(
        (32, 64, 128, 256, 512), min_length=2, description="Channels of each level, finest first."
    )
    heads: tuple[int, ...] | None = Field(
        None, description="Attention heads of each decoder level, finest first; None: 32 wide."
    )
    window: int | None = Field(
        None, ge=2, multiple_of=2, description="Window side in voxels; None: 8 in 2-D, 4 in 3-D."
    )
    up: Literal["wau", "linear", "transposed", "pixelshuffle", "attention_gate"] = Field(
        "wau", description="Way up; linear is the twin without attention."
    )
    bias: Literal["relative", "none"] = Field("relative", description="Bias by relative position.")
    mlp_ratio: int = Field(2, ge=1, description="Hidden width of the feed-forward part.")
    zero_init: bool = Field(True, description="Start as plain linear up-sampling.")

    @model_validator(mode="after")
    def _heads_fit(self) -> Config:
        if self.heads is None:
            return self
        if len(self.heads) != len(self.channels) - 1:
            raise ValueError(
                f"heads needs {len(self.channels) - 1} numbers, one less than channels"
            )
        for width, heads in zip(self.channels, self.heads, strict=False):
            if heads < 1 or width % heads:
                raise ValueError(f"{heads} heads do not divide {width} channels")
        return self


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "up": "linear"})


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution without bias, instance norm, leaky ReLU."""

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for width in (in_channels, out_channels):
            layers += [
                CONV3[dims](width, out_channels, 3, padding=1, bias=False),
                NORM[dims](out_channels, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


class WauUNet(nn.Module):
    """Encoder, decoder with the chosen way up, and a 1x1 convolution to logits."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        dims, widths = task.spatial_dims, config.channels
        steps = list(itertools.pairwise(widths))
        self.multiple = 2 ** len(steps)
        self.stem = DoubleConv(dims, task.in_channels, widths[0])
        self.down = nn.ModuleList(CONV[dims](a, b, 2, stride=2, bias=False) for a, b in steps)
        self.encoder = nn.ModuleList(DoubleConv(dims, b, b) for _, b in steps)
        self.up = nn.ModuleList(
            _way_up(config, dims, level, coarse, fine) for level, (fine, coarse) in enumerate(steps)
        )
        self.gate: nn.ModuleList | None = None
        if config.up == "attention_gate":
            self.gate = nn.ModuleList(AttentionGate(dims, fine) for fine, _ in steps)
        self.decoder = nn.ModuleList(DoubleConv(dims, 2 * fine, fine) for fine, _ in steps)
        self.head = CONV[dims](widths[0], task.out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) of any size -> logits (B, K, *spatial)."""
        shape = x.shape[2:]
        x = self.stem(pad_for_levels(x, self.multiple))
        skips = []
        for down, encode in zip(self.down, self.encoder, strict=True):
            skips.append(x)
            x = encode(down(x))
        for level in reversed(range(len(skips))):
            skip = skips.pop()
            risen = self.up[level](x, skip)
            if self.gate is not None:
                skip = self.gate[level](risen, skip)
            x = self.decoder[level](torch.cat([risen, skip], dim=1))
        return crop_to(self.head(x), shape)


def _way_up(config: Config, dims: int, level: int, coarse: int, fine: int) -> nn.Module:
    if config.up != "wau":
        return OTHERS[config.up](dims, coarse, fine)
    heads = config.heads[level] if config.heads else max(1, fine // 32)
    return WindowAttentionUp(
        dims,
        coarse,
        fine,
        fine,
        heads=heads,
        window=config.window or WINDOW[dims],
        mlp_ratio=config.mlp_ratio,
        bias=config.bias,
        zero_init=config.zero_init,
    )


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return WauUNet(config, task)
