"""mambair: MambaIR, selective scans with channel attention, for denoising and super-resolution."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.ss2d import SS2D, drop_path_of
from medplat.blocks.vssm import Stage, initialise, rising
from medplat.errors import WorkflowError
from medplat.types import Card, Count, Task

RGB_MEAN = (0.4488, 0.4371, 0.4040)
HEAD_CHANNELS = 64
LIGHT = {"channels": 60, "depths": (6, 6, 6, 6), "state": 10, "light": True}
SR = {"expand": 2.0}
SMALL = {"channels": 12, "depths": (1, 1), "state": 4, "squeeze": 3}

CARD = Card(
    title="MambaIR: selective scans and channel attention for image restoration",
    paper=(
        "Guo, Li, Dai, Ouyang, Ren, Xia: MambaIR: A Simple Baseline for Image Restoration with "
        "State-Space Model, ECCV 2024; arXiv 2402.15648"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test for denoising, "
        "super-resolution by 2 and the light model by 2 and 4, all with three channels. Not "
        "verified: any other size or number of channels, and the twin with ssm off, which is this "
        "project's. The authors' figures are on photographs (Urban100, noise 25: PSNR 32.99); "
        "none is on medical images."
    ),
    upstream_licence="Apache-2.0 (code and weights)",
    counts=(
        Count("denoise", Task("restore", 2, 3, 3), {}, 15_777_507),
        Count("denoise, twin", Task("restore", 2, 3, 3), {"ssm": "off"}, 13_475_811),
        Count("sr x2", Task("restore", 2, 3, 3, 2), SR, 20_421_863),
        Count("sr x2, twin", Task("restore", 2, 3, 3, 2), {**SR, "ssm": "off"}, 16_585_703),
        Count("light x2", Task("restore", 2, 3, 3, 2), LIGHT, 905_016),
        Count("light x2, twin", Task("restore", 2, 3, 3, 2), {**LIGHT, "ssm": "off"}, 628_536),
        Count("light x4", Task("restore", 2, 3, 3, 4), LIGHT, 924_492),
    ),
    deviations=(
        "the colours' mean is a buffer that is not stored, so that keys stay the original's",
        "the light model can also denoise, with the head of the large one",
    ),
    kinds=("restore",),
    spatial_dims=(2,),
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(180, ge=4, description="Channels throughout; light 60.")
    depths: tuple[int, ...] = Field(
        (6, 6, 6, 6, 6, 6), min_length=1, description="Blocks of each residual group; light 6 x 4."
    )
    state: int = Field(16, ge=1, description="States of a channel in the scan; light 10.")
    expand: float = Field(
        1.2, gt=0, description="Inner channels of a scan, in channels; super-resolution 2."
    )
    squeeze: int = Field(30, ge=1, description="Channels to one of the channel attention.")
    light: bool = Field(
        False, description="Depthwise convolutions, and one convolution as up-sampling head."
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Chance of dropping the last block's scan; linear from 0."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class ChannelAttention(nn.Module):
    """Each channel times a weight made of the channels' means."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        inner = max(1, channels // squeeze)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        weighted: Tensor = x * self.attention(x)
        return weighted


class ConvBlock(nn.Module):
    """Two convolutions through a third of the channels (light: half), then channel attention."""

    def __init__(self, channels: int, squeeze: int, light: bool) -> None:
        super().__init__()
        inner = channels // (2 if light else 3)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, inner, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(inner, channels, 3, padding=1),
        ]
        if light:
            layers = [
                nn.Conv2d(channels, inner, 1),
                nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
                nn.GELU(),
                nn.Conv2d(inner, channels, 1),
                nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels),
            ]
        self.cab = nn.Sequential(*layers, ChannelAttention(channels, squeeze))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = self.cab(x)
        return out


class RestorationBlock(nn.Module):
    """Scan, then convolutions; both beside a skip with a weight for each channel."""

    def __init__(self, config: Config, drop_path: float) -> None:
        super().__init__()
        width, ssm = config.channels, config.ssm
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.ln_1 = nn.LayerNorm(width)
        self.self_attention = SS2D(width, state=config.state, expand=config.expand, ssm=ssm)
        self.drop_path = drop_path_of(drop_path)
        self.conv_blk = ConvBlock(width, config.squeeze, config.light)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x * self.skip_scale + self.drop_path(self.self_attention(self.ln_1(x)))
        near = self.conv_blk(self.ln_2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = x * self.skip_scale2 + near
        return out


class Group(nn.Module):
    """Blocks and a convolution, + input."""

    def __init__(self, config: Config, drop_paths: list[float]) -> None:
        super().__init__()
        self.residual_group = Stage(RestorationBlock(config, chance) for chance in drop_paths)
        self.conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        near: Tensor = self.conv(self.residual_group(x).permute(0, 3, 1, 2))
        return near.permute(0, 2, 3, 1) + x


class MambaIR(nn.Module):
    """Shallow features, groups of blocks beside them, and the head of the task."""

    mean: Tensor

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        width, colours = config.channels, task.in_channels
        self.conv_first = nn.Conv2d(colours, width, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        self.layers = nn.ModuleList(
            Group(config, chances) for chances in rising(config.drop_path, config.depths)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.residual = task.upscale == 1
        if config.light and not self.residual:
            self.head = ["upsample"]
            self.upsample = upsampling(width, colours * task.upscale**2, task.upscale)
        elif not self.residual:
            self.head = ["conv_before_upsample", "upsample", "conv_last"]
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(width, HEAD_CHANNELS, 3, padding=1), nn.LeakyReLU()
            )
            steps = [3] if task.upscale == 3 else [2] * (task.upscale // 2)
            self.upsample = nn.Sequential(
                *(
                    layer
                    for step in steps
                    for layer in upsampling(HEAD_CHANNELS, HEAD_CHANNELS * step**2, step)
                )
            )
            self.conv_last = nn.Conv2d(HEAD_CHANNELS, colours, 3, padding=1)
        else:
            self.head = ["conv_last"]
            self.conv_last = nn.Conv2d(width, colours, 3, padding=1)
        mean = RGB_MEAN if colours == len(RGB_MEAN) else (0.0,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any size, values about 0 to 1 -> (B, C, upscale * H, upscale * W)."""
        x = x - self.mean
        shallow = self.conv_first(x)
        deep = self.patch_embed["norm"](shallow.permute(0, 2, 3, 1))
        for layer in self.layers:
            deep = layer(deep)
        out = self.conv_after_body(self.norm(deep).permute(0, 3, 1, 2)) + shallow
        for name in self.head:
            out = self.get_submodule(name)(out)
        restored: Tensor = (out + x if self.residual else out) + self.mean
        return restored


def upsampling(channels: int, rows: int, factor: int) -> nn.Sequential:
    """A convolution to factor^2 times the channels, which are then laid out in space."""
    return nn.Sequential(nn.Conv2d(channels, rows, 3, padding=1), nn.PixelShuffle(factor))


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "restore".

    Raises:
        WorkflowError: Other channels are asked for than those that come in.
    """
    if task.in_channels != task.out_channels:
        raise WorkflowError(
            [
                f"model: mambair gives back the channels that it gets, here {task.in_channels}, "
                f"and {task.out_channels} are asked for: give it one input"
            ]
        )
    return MambaIR(config, task)
