"""vm_unet: VM-UNet, a U-Net whose every block is a selective scan over the image."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.padding import require_multiple
from medplat.blocks.ss2d import Switch
from medplat.blocks.vssm import (
    PatchEmbed,
    PatchExpand,
    PatchMerging,
    Stage,
    blocks,
    initialise,
    rising,
)
from medplat.types import Card, Count, Task

MULTIPLE = 32
DEEP = {"depths": (2, 2, 9, 2), "depths_up": (2, 9, 2, 2)}
SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "depths_up": (1, 1, 1, 1), "state": 4}
ONE, NINE = Task("segment", 2, 3, 1), Task("segment", 2, 3, 9)

CARD = Card(
    title="VM-UNet: Vision Mamba U-Net",
    paper=(
        "Ruan, Li, Xiang: VM-UNet: Vision Mamba UNet for Medical Image Segmentation, 2024; "
        "arXiv 2402.02491"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test in the three "
        "configurations counted here. Not verified: any other depth or width, and the twin with "
        "ssm off, which is this project's. No result of the paper is claimed: users of the "
        "released code report mIoU 79.2 to 80.4 on ISIC18 (paper 81.35) and Dice 75 to 79.9 on "
        "Synapse (81.08). That the scan helps is not established: in nnU-Net's own table, the "
        "only independent one, a net of the same family did as well without its Mamba blocks."
    ),
    upstream_licence="Apache-2.0 (code); MIT (VMamba's ImageNet weights)",
    counts=(
        Count("ISIC", ONE, {}, 27_427_561),
        Count("ISIC, twin", ONE, {"ssm": "off"}, 22_037_737),
        Count("ISIC, background and lesion", Task("segment", 2, 3, 2), {}, 27_427_586),
        Count("2-2-9-2, 1 class", ONE, DEEP, 44_273_833),
        Count("2-2-9-2, 1 class, twin", ONE, {**DEEP, "ssm": "off"}, 34_621_609),
        Count("2-2-9-2, background and lesion", Task("segment", 2, 3, 2), DEEP, 44_273_858),
        Count("2-2-9-2, 9 classes", NINE, DEEP, 44_274_033),
        Count("2-2-9-2, 9 classes, twin", NINE, {**DEEP, "ssm": "off"}, 34_621_809),
    ),
    deviations=(
        "logits, where the original ends in a sigmoid for one class",
        "an image that is no multiple of 32 is refused, where the original crops it in silence",
        "imported weights of one class get a second logit, 0, for the background: the same map",
    ),
    spatial_dims=(2,),
    multiple=MULTIPLE,
)

Four = tuple[int, int, int, int]


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depths: Four = Field((2, 2, 2, 2), description="Blocks of each encoder stage, finest first.")
    depths_up: Four = Field(
        (2, 2, 2, 1), description="Blocks of each decoder stage, coarsest first."
    )
    channels: int = Field(96, ge=4, description="Channels of the finest stage; each next doubles.")
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="Chance of dropping the deepest block's branch; linear from 0."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class VMUNet(nn.Module):
    """Encoder, decoder with skips that are added, and a 1x1 convolution at full size."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        ssm: Switch = config.ssm
        widths = [config.channels * 2**level for level in range(4)]
        coarse_first = widths[::-1]
        # A single channel is shown three times, so that weights of colour images fit.
        self.repeat = 3 if task.in_channels == 1 else 1
        self.patch_embed = PatchEmbed(task.in_channels * self.repeat, widths[0], 4)
        down = rising(config.drop_path, config.depths)
        up = [drops[::-1] for drops in rising(config.drop_path, config.depths_up[::-1])][::-1]
        self.layers = nn.ModuleList(
            Stage(
                blocks(width, drops, state=config.state, ssm=ssm),
                downsample=PatchMerging(width) if level < 3 else None,
            )
            for level, (width, drops) in enumerate(zip(widths, down, strict=True))
        )
        self.layers_up = nn.ModuleList(
            Stage(
                blocks(width, drops, state=config.state, ssm=ssm),
                upsample=PatchExpand(2 * width, 4 * width) if level else None,
            )
            for level, (width, drops) in enumerate(zip(coarse_first, up, strict=True))
        )
        self.final_up = PatchExpand(widths[0], 4 * widths[0], 4)
        self.final_conv = nn.Conv2d(widths[0] // 4, task.out_channels, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K, H, W).

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        x = self.patch_embed(x.repeat(1, self.repeat, 1, 1))
        skips: list[Tensor] = []
        for layer in self.layers:
            skips.append(x)
            x = layer(x)
        for level, layer in enumerate(self.layers_up):
            x = layer(x if level == 0 else x + skips[-level])
        logits: Tensor = self.final_conv(self.final_up(x).permute(0, 3, 1, 2))
        return logits


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return VMUNet(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the original's `vmunet.`; one class becomes background and class.

    The logit of the background is 0, so that the softmax of the two is the original's sigmoid.
    """
    state = {name.removeprefix("vmunet."): tensor for name, tensor in state.items()}
    for name in ("final_conv.weight", "final_conv.bias"):
        if name in state and state[name].shape[0] == 1:
            state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    return state
