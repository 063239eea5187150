"""vmamba: VMamba, a classifier of selective scans; vm_unet and swin_umamba are built on it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.padding import require_multiple
from medplat.blocks.ss2d import SS2D, drop_path_of
from medplat.blocks.vssm import PatchMerging, Stage, initialise, rising
from medplat.types import Card, Count, Task

MULTIPLE = 32
IMAGENET = Task("classify", 2, 3, 1000)
V2 = {"version": 2, "state": 1}
S2 = {**V2, "depths": (2, 2, 5, 2)}
S1 = {**V2, "depths": (2, 2, 8, 2), "expand": 1.0}
SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "state": 4}
# The names of the first release, as regular expressions, and those of the released code now.
FORMER = {
    r"^patch_embed\.proj\.": "patch_embed.0.",
    r"^patch_embed\.norm\.": "patch_embed.2.",
    r"(blocks\.\d+)\.ln_1\.": r"\1.norm.",
    r"(blocks\.\d+)\.self_attention\.": r"\1.op.",
    r"^norm\.": "classifier.norm.",
    r"^head\.": "classifier.head.",
}

CARD = Card(
    title="VMamba: visual state space model, versions 0 and 2",
    paper=(
        "Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Jiao, Liu: VMamba: Visual State Space Model, "
        "NeurIPS 2024; arXiv 2401.10166"
    ),
    fidelity="verified",
    why=(
        "Parameter integers of the released code hold under test for all nine models counted "
        "here, names and shapes for the three tiny ones. Not verified: any other size, and the "
        "twin with ssm off, which is this project's."
    ),
    upstream_licence="MIT (code and ImageNet weights)",
    counts=(
        Count("0, tiny", IMAGENET, {}, 22_893_448),
        Count("0, small", IMAGENET, {"depths": (2, 2, 27, 2)}, 44_417_416),
        Count("0, base", IMAGENET, {"depths": (2, 2, 27, 2), "channels": 128}, 76_254_056),
        Count("2, s2l5 tiny", IMAGENET, S2, 30_705_832),
        Count("2, s2l15 small", IMAGENET, {**S2, "depths": (2, 2, 15, 2)}, 50_147_752),
        Count(
            "2, s2l15 base", IMAGENET, {**S2, "depths": (2, 2, 15, 2), "channels": 128}, 88_557_800
        ),
        Count("2, s1l8 tiny", IMAGENET, S1, 30_249_064),
        Count("2, s1l20 small", IMAGENET, {**S1, "depths": (2, 2, 20, 2)}, 49_012_840),
        Count(
            "2, s1l20 base", IMAGENET, {**S1, "depths": (2, 2, 20, 2), "channels": 128}, 86_614_504
        ),
    ),
    deviations=(
        "an image that is no multiple of 32 is refused",
        "version 2 keeps its maps channels-last, with the same values",
    ),
    kinds=("classify",),
    spatial_dims=(2,),
    multiple=MULTIPLE,
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[0, 2] = Field(
        0, description="2: no gate, a feed-forward part, strided convolutions between the stages."
    )
    depths: tuple[int, int, int, int] = Field(
        (2, 2, 9, 2), description="Blocks of each stage, finest first."
    )
    channels: int = Field(
        96, ge=4, multiple_of=2, description="Channels of the first stage; each next doubles."
    )
    state: int = Field(16, ge=1, description="States of a channel; version 2: 1.")
    expand: float = Field(2.0, gt=0, description="Inner channels of a scan, in channels.")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="Chance of dropping the last block's branch; linear from 0."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class Permute(nn.Module):
    """Axes in another sequence."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """The axes of x as named."""
        return x.permute(*self.axes)


def channels_last() -> Permute:
    """(B, C, H, W) -> (B, H, W, C)."""
    return Permute(0, 2, 3, 1)


def channels_first() -> Permute:
    """(B, H, W, C) -> (B, C, H, W)."""
    return Permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + SS2D(LayerNorm(x)); in version 2 then + feed-forward(LayerNorm(x))."""

    def __init__(self, config: Config, channels: int, drop_path: float) -> None:
        super().__init__()
        second = config.version == 2
        self.norm = nn.LayerNorm(channels)
        self.op = SS2D(
            channels,
            state=config.state,
            expand=config.expand,
            gate=not second,
            conv_bias=not second,
            ssm=config.ssm,
        )
        self.drop_path = drop_path_of(drop_path)
        self.mlp: FeedForward | None = None
        if second:
            self.norm2, self.mlp = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class FeedForward(nn.Sequential):
    """Linear to four times the channels, GELU, linear back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.add_module("fc1", nn.Linear(channels, 4 * channels))
        self.add_module("act", nn.GELU())
        self.add_module("fc2", nn.Linear(4 * channels, channels))


class VMamba(nn.Module):
    """Patches, four stages, LayerNorm, the mean over space, a linear layer."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(4)]
        embed, merge = (
            (patches_v2, merging_v2) if config.version == 2 else (patches_v0, PatchMerging)
        )
        self.patch_embed = embed(task.in_channels, widths[0])
        merges = [merge(fine) for fine, _ in pairwise(widths)]
        drops = rising(config.drop_path, config.depths)
        self.layers = nn.ModuleList(
            Stage((Block(config, width, chance) for chance in chances), downsample=change)
            for width, chances, change in zip(widths, drops, [*merges, None], strict=True)
        )
        self.classifier = nn.ModuleDict(
            {"norm": nn.LayerNorm(widths[-1]), "head": nn.Linear(widths[-1], task.out_channels)}
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K).

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier["head"](self.classifier["norm"](x).mean((1, 2)))
        return logits


def patches_v0(in_channels: int, channels: int) -> nn.Sequential:
    """One 4x4 convolution of stride 4; (B, C, H, W) -> (B, H / 4, W / 4, channels)."""
    conv = nn.Conv2d(in_channels, channels, 4, stride=4)
    return nn.Sequential(conv, channels_last(), nn.LayerNorm(channels))


def patches_v2(in_channels: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2; (B, C, H, W) -> (B, H / 4, W / 4, channels)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
        channels_last(),
        nn.LayerNorm(channels // 2),
        channels_first(),
        nn.GELU(),
        nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        channels_last(),
        nn.LayerNorm(channels),
    )


def merging_v2(channels: int) -> nn.Sequential:
    """A 3x3 convolution of stride 2; (B, H, W, C) -> (B, H / 2, W / 2, 2C)."""
    conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
    return nn.Sequential(channels_first(), conv, channels_last(), nn.LayerNorm(2 * channels))


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "classify"."""
    return VMamba(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released weights' names as this network's: those of the first release are renamed."""
    renamed = {}
    for name, tensor in state.items():
        for former, present in FORMER.items():
            name = re.sub(former, present, name)
        renamed[name] = tensor
    return renamed
