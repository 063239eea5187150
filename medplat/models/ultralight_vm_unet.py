"""ultralight_vm_unet: a U-Net of 49,457 parameters whose deep levels are four-way Mamba mixers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.padding import require_multiple
from medplat.blocks.ssm import MambaMixer
from medplat.types import Card, Count, Task

MULTIPLE = 32
PARTS = 4  # channel groups that share one mixer
PUBLISHED = Task("segment", 2, 3, 1)
SMALL = {"channels": (4, 4, 8, 8, 12, 12)}

CARD = Card(
    title="UltraLight VM-UNet: parallel vision Mamba",
    paper=(
        "Wu, Liu, Liang, Chang: UltraLight VM-UNet: Parallel Vision Mamba Significantly Reduces "
        "Parameters for Skin Lesion Segmentation, 2024; arXiv 2403.20035"
    ),
    fidelity="verified",
    why=(
        "The parameter integer, names and shapes of the released code hold under test for three "
        "input channels and one class. Not verified: other widths, and the twins with ssm off or "
        "removed, which are this project's. The authors report 0.049 M parameters and Dice .9091 "
        "on a data set that the table does not name. That the scan helps is not established: in "
        "nnU-Net's own table, the only independent one, a net of another design did as well "
        "without its Mamba blocks."
    ),
    upstream_licence="MIT",
    counts=(
        Count("published", PUBLISHED, {}, 49_457),
        Count("published, twin", PUBLISHED, {"ssm": "off"}, 43_009),
        Count("published, mixers removed", PUBLISHED, {"ssm": "removed"}, 38_141),
    ),
    deviations=(
        "logits, where the original ends in a sigmoid",
        "init mamba, the default: the mixer's step sizes keep their own start, which the "
        "original's loop over linear layers overwrites (init paper_repo)",
        "an image that is no multiple of 32 is refused",
    ),
    spatial_dims=(2,),
    multiple=MULTIPLE,
)

Six = tuple[int, int, int, int, int, int]


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Six = Field(
        (8, 16, 24, 32, 48, 64), description="Channels of the six levels, multiples of 4."
    )
    bridge: bool = Field(True, description="Attention over space and channels in the skips.")
    init: Literal["mamba", "paper_repo"] = Field(
        "mamba", description="paper_repo: also the step sizes of the scan start like linear layers."
    )
    ssm: Literal["on", "off", "removed"] = Field(
        "on", description="off: the twin without the recurrence; removed: without the mixers."
    )


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class ParallelMamba(nn.Module):
    """Four groups of channels through one mixer, between two uses of one layer norm."""

    def __init__(
        self, in_channels: int, out_channels: int, ssm: Literal["on", "off", "removed"]
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = None if ssm == "removed" else MambaMixer(in_channels // PARTS, ssm=ssm)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, Co, H, W)."""
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        parts = torch.cat(tokens.chunk(PARTS, -1))
        mixed = self.skip_scale * parts
        if self.mamba is not None:
            mixed = mixed + self.mamba(parts)
        out: Tensor = self.proj(self.norm(torch.cat(mixed.chunk(PARTS), -1)))
        return torch.unflatten(out.transpose(1, 2), 2, x.shape[2:])


class SpatialAttention(nn.Module):
    """One weight a pixel, out of the mean and the largest value over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_conv2d = nn.Sequential(nn.Conv2d(2, 1, 7, padding=9, dilation=3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W)."""
        weight: Tensor = self.shared_conv2d(
            torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        )
        return weight


class ChannelAttention(nn.Module):
    """One weight a channel of each map, out of the means of all of them."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = len(channels)
        self.get_all_att = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        for level, width in enumerate(channels, start=1):
            self.add_module(f"att{level}", nn.Linear(sum(channels), width))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> weights (B, C_i, 1, 1)."""
        means = torch.cat([x.mean((2, 3)) for x in maps], 1)
        seen = self.get_all_att(means[:, None])[:, 0]
        linears = [self.get_submodule(f"att{level}") for level in range(1, self.levels + 1)]
        return [torch.sigmoid(linear(seen))[:, :, None, None] for linear in linears]


class Bridge(nn.Module):
    """The five skips, weighed over space and then over channels."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.catt = ChannelAttention(channels)
        self.satt = SpatialAttention()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> maps of the same shapes."""
        spatial = [self.satt(x) * x for x in maps]
        both = [x + y for x, y in zip(spatial, maps, strict=True)]
        weights = self.catt(both)
        return [w * x + s for w, x, s in zip(weights, both, spatial, strict=True)]


class UltraLightVMUNet(nn.Module):
    """Three convolutional and three mixing levels down, and the same up, with added skips."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        c = config.channels
        widths = (task.in_channels, *c)
        for level in range(1, 7):
            conv = _level(widths[level - 1], widths[level], level <= 3, config)
            self.add_module(f"encoder{level}", nn.Sequential(conv))
        self.scab = Bridge(c[:5]) if config.bridge else None
        for level in range(1, 6):
            conv = _level(c[6 - level], c[5 - level], level >= 4, config)
            self.add_module(f"decoder{level}", nn.Sequential(conv))
            self.add_module(f"ebn{level}", nn.GroupNorm(PARTS, c[level - 1]))
            self.add_module(f"dbn{level}", nn.GroupNorm(PARTS, c[5 - level]))
        self.final = nn.Conv2d(c[0], task.out_channels, 1)
        _initialise(self, config.init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K, H, W).

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        part = self.get_submodule
        skips: list[Tensor] = []
        for level in range(1, 6):
            x = part(f"ebn{level}")(part(f"encoder{level}")(x))
            x = F.gelu(F.max_pool2d(x, 2))
            skips.append(x)
        x = F.gelu(part("encoder6")(x))
        if self.scab is not None:
            skips = self.scab(skips)
        for level in range(1, 6):
            x = part(f"dbn{level}")(part(f"decoder{level}")(x))
            x = F.gelu(x if level == 1 else _doubled(x)) + skips[5 - level]
        return _doubled(self.final(x))


def _level(
    in_channels: int, out_channels: int, plain: bool, config: Config
) -> nn.Conv2d | ParallelMamba:
    if plain:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return ParallelMamba(in_channels, out_channels, config.ssm)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _initialise(network: nn.Module, init: str) -> None:
    """The original's start, which spares the step sizes of the scan unless `paper_repo`."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if init == "mamba" and name.endswith("dt_proj"):
                continue
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            fan = module.kernel_size[0] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        elif isinstance(module, nn.Conv2d):
            fan = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return UltraLightVMUNet(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One class becomes background and class.

    The logit of the background is 0, so that the softmax of the two is the original's sigmoid.
    """
    for name in ("final.weight", "final.bias"):
        if name in state and state[name].shape[0] == 1:
            state = {**state, name: torch.cat([torch.zeros_like(state[name]), state[name]])}
    return state
