"""swin_umamba_dagger: Swin-UMamba with VMamba blocks on the way up too; half the parameters."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.padding import require_multiple
from medplat.blocks.vssm import PatchExpand, Stage, VssmEncoder, blocks, initialise, rising
from medplat.types import Card, Count, Task

MULTIPLE = 32
PUBLISHED = Task("segment", 2, 1, 13)
SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "depth_up": 1, "state": 4}

CARD = Card(
    title="Swin-UMamba dagger: VMamba encoder and VMamba decoder",
    paper=(
        "Liu, Yang, Zhou, Xi, Yu, Yu, Liang, Shi, Zhang, Zheng, Wang: Swin-UMamba: Mamba-Based "
        "UNet with ImageNet-Based Pretraining, MICCAI 2024; arXiv 2402.03302"
    ),
    fidelity="verified",
    why=(
        "Parameter integer, names and shapes of the released code hold under test for one input "
        "channel and 13 classes. Not verified: any other size, the chances of stochastic depth "
        "on the way up (here they fall from the deepest block to 0), and the twin with ssm off, "
        "which is this project's. That the scan helps is not established independently."
    ),
    upstream_licence="Apache-2.0 (code and weights); MIT (VMamba's ImageNet weights)",
    counts=(
        Count("published", PUBLISHED, {}, 27_496_948),
        Count("published, twin", PUBLISHED, {"ssm": "off"}, 21_746_164),
    ),
    deviations=("an image that is no multiple of 32 is refused",),
    spatial_dims=(2,),
    multiple=MULTIPLE,
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depths: tuple[int, int, int, int] = Field(
        (2, 2, 9, 2), description="Blocks of each encoder stage, finest first."
    )
    depth_up: int = Field(2, ge=1, description="Blocks of each decoder stage.")
    channels: int = Field(96, ge=4, description="Channels of the first stage; each next doubles.")
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="Chance of dropping the deepest block's branch; linear from 0."
    )
    deep_supervision: bool = Field(
        True, description="Heads at full size, 1/4, 1/8 and 1/16; false: at full size alone."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class Decoder(nn.Module):
    """Expand, join with the skip, back to the skip's channels, blocks; logits at each size."""

    def __init__(self, config: Config, widths: list[int], classes: int) -> None:
        super().__init__()
        steps = list(pairwise(widths[::-1]))
        drops = rising(config.drop_path, [config.depth_up] * len(steps))[::-1]
        self.expand_layers = nn.ModuleList(PatchExpand(low, 2 * low) for low, _ in steps)
        self.expand_layers.append(PatchExpand(widths[0], 16 * widths[0], 4))
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * high, high) for _, high in steps)
        self.stages = nn.ModuleList(
            Stage(blocks(high, chances[::-1], state=config.state, ssm=config.ssm))
            for (_, high), chances in zip(steps, drops, strict=True)
        )
        supervised = [high for _, high in steps] if config.deep_supervision else []
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(width, classes, 1) for width in [*supervised, widths[0]]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The encoder's maps, finest first -> what the heads see, coarsest first (B, h, w, c)."""
        x, seen = maps[-1], []
        for level, skip in enumerate(maps[-2::-1]):
            joined = torch.cat([self.expand_layers[level](x), skip], -1)
            x = self.stages[level](self.concat_back_dim[level](joined))
            seen.append(x)
        return [*seen, self.expand_layers[-1](x)]


class SwinUMambaDagger(nn.Module):
    """VMamba encoder and decoder, logits at up to four sizes."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(4)]
        self.vssm_encoder = VssmEncoder(
            task.in_channels,
            config.channels,
            config.depths,
            patch=4,
            state=config.state,
            drop_path=config.drop_path,
            ssm=config.ssm,
        )
        self.decoder = Decoder(config, widths, task.out_channels)
        self.deep_supervision = config.deep_supervision
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K, H, W).

        With deep supervision a list: the logits at H, H/4, H/8 and H/16.

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        seen = self.decoder(self.vssm_encoder(x))
        heads = self.decoder.seg_layers
        logits = [
            head(one.permute(0, 3, 1, 2))
            for head, one in zip(heads, seen[-len(heads) :], strict=True)
        ]
        return logits[::-1] if self.deep_supervision else logits[0]


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return SwinUMambaDagger(config, task)
