"""swin_umamba: a VMamba encoder, and a convolutional decoder with skips at every resolution."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.padding import require_multiple
from medplat.blocks.vssm import VssmEncoder, initialise
from medplat.types import Card, Count, Task

MULTIPLE = 32
PUBLISHED = Task("segment", 2, 1, 13)
SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "state": 4}

CARD = Card(
    title="Swin-UMamba: U-Net with a VMamba encoder",
    paper=(
        "Liu, Yang, Zhou, Xi, Yu, Yu, Liang, Shi, Zhang, Zheng, Wang: Swin-UMamba: Mamba-Based "
        "UNet with ImageNet-Based Pretraining, MICCAI 2024; arXiv 2402.03302"
    ),
    fidelity="verified",
    why=(
        "Parameter integer, names and shapes of the released code hold under test for one input "
        "channel and 13 classes. Not verified: any other size, and the twin with ssm off, which "
        "is this project's. The authors report 2.72 % over U-Mamba Enc on average, with ImageNet "
        "weights; an independent comparison (nnUZoo) finds Dice .74/.78/.73/.69 for nnU-Net and "
        ".73/.78/.71/.70 for this model on abdomen MR, abdomen CT, PET and microscopy."
    ),
    upstream_licence="Apache-2.0 (code and weights); MIT (VMamba's ImageNet weights)",
    counts=(
        Count("published", PUBLISHED, {}, 59_888_644),
        Count("published, twin", PUBLISHED, {"ssm": "off"}, 55_062_532),
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
    channels: int = Field(
        96, ge=4, multiple_of=2, description="Channels of the first stage; the stem has half."
    )
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="Chance of dropping the deepest block's branch; linear from 0."
    )
    deep_supervision: bool = Field(
        True, description="Heads at the four finest resolutions; false: at the finest alone."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class SwinUMamba(nn.Module):
    """Stem, VMamba encoder on its map, residual convolutions, and logits at up to four sizes."""

    def __init__(self, config: Config, task: Task) -> None:
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        widths = [config.channels * 2**level // 2 for level in range(5)]
        usual = {"spatial_dims": 2, "kernel_size": 3, "norm_name": "instance"}
        self.stem = nn.Sequential(
            nn.Conv2d(task.in_channels, widths[0], 7, stride=2, padding=3),
            nn.InstanceNorm2d(widths[0], affine=True),
        )
        self.vssm_encoder = VssmEncoder(
            widths[0],
            config.channels,
            config.depths,
            patch=2,
            state=config.state,
            drop_path=config.drop_path,
            ssm=config.ssm,
        )
        initialise(self.vssm_encoder)
        basic = {**usual, "stride": 1, "res_block": True}
        into, out = [task.in_channels, *widths[:4]], widths
        for level in range(5):
            block = UnetrBasicBlock(in_channels=into[level], out_channels=out[level], **basic)
            self.add_module(f"encoder{level + 1}", block)
        above = [widths[0], *widths]
        for level in range(1, 6):
            block = UnetrUpBlock(
                in_channels=widths[min(level, 4)],
                out_channels=above[level],
                upsample_kernel_size=2,
                res_block=True,
                **usual,
            )
            self.add_module(f"decoder{level + 1}", block)
        self.decoder1 = UnetrBasicBlock(in_channels=widths[0], out_channels=widths[0], **basic)
        heads = widths[:4] if config.deep_supervision else widths[:1]
        self.out_layers = nn.ModuleList(
            UnetOutBlock(spatial_dims=2, in_channels=width, out_channels=task.out_channels)
            for width in heads
        )
        self.deep_supervision = config.deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K, H, W).

        With deep supervision a list: the logits at H, H/2, H/4 and H/8.

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        stem = self.stem(x)
        maps = [stem, *(one.permute(0, 3, 1, 2) for one in self.vssm_encoder(stem))]
        skips = [
            self.get_submodule(f"encoder{level + 1}")(one)
            for level, one in enumerate([x, *maps[:4]])
        ]
        risen: list[Tensor] = [maps[4]]
        for level in range(5, 0, -1):
            risen.append(self.get_submodule(f"decoder{level + 1}")(risen[-1], skips[level - 1]))
        finest_first = [self.decoder1(risen[5]), risen[4], risen[3], risen[2]]
        logits = [head(one) for head, one in zip(self.out_layers, finest_first, strict=False)]
        return logits if self.deep_supervision else logits[0]


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return SwinUMamba(config, task)
