"""medmamba: MedMamba, a classifier; half of each block is convolution, half selective scan."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.padding import require_multiple
from medplat.blocks.ss2d import SS2D, Switch, drop_path_of
from medplat.blocks.vssm import PatchEmbed, PatchMerging, Stage, initialise, rising
from medplat.types import Card, Count, Task

MULTIPLE = 32
SIX = Task("classify", 2, 3, 6)
S = {"depths": (2, 2, 8, 2)}
B = {"depths": (2, 2, 12, 2), "channels": 128}
SMALL = {"channels": 8, "depths": (1, 1, 1, 1), "state": 4}

CARD = Card(
    title="MedMamba: convolution and selective scan side by side",
    paper=(
        "Yue, Li: MedMamba: Vision Mamba for Medical Image Classification, 2024; arXiv 2403.03849"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test for T, S and B "
        "with 6 classes; it was written from a description, since that code has no licence. Not "
        "verified: any other size, and the twin with ssm off, which is this project's. The "
        "authors give accuracies without baselines (PathMNIST 95.3, BloodMNIST 97.8, RetinaMNIST "
        "54.3); that the scan helps is not established."
    ),
    upstream_licence="none: no code was used, weights are a user's own matter",
    counts=(
        Count("T", SIX, {}, 14_457_222),
        Count("T, twin", SIX, {"ssm": "off"}, 13_262_214),
        Count("S", SIX, S, 18_625_158),
        Count("S, twin", SIX, {**S, "ssm": "off"}, 16_975_494),
        Count("B", SIX, B, 39_864_838),
        Count("B, twin", SIX, {**B, "ssm": "off"}, 36_721_158),
    ),
    deviations=("an image that is no multiple of 32 is refused",),
    kinds=("classify",),
    spatial_dims=(2,),
    multiple=MULTIPLE,
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depths: tuple[int, int, int, int] = Field(
        (2, 2, 4, 2), description="Blocks of each stage: T 2-2-4-2, S 2-2-8-2, B 2-2-12-2."
    )
    channels: int = Field(
        96, ge=4, multiple_of=2, description="Channels of the first stage: T and S 96, B 128."
    )
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Chance of dropping the last block's scan; linear from 0."
    )
    ssm: Literal["on", "off"] = Field("on", description="off: the twin without the recurrence.")


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class SplitBlock(nn.Module):
    """Convolutions on the first half of the channels, SS2D on the second, shuffled, + input."""

    def __init__(self, channels: int, *, state: int, drop_path: float, ssm: Switch) -> None:
        super().__init__()
        half = channels // 2
        self.ln_1 = nn.LayerNorm(half, eps=1e-6)
        self.self_attention = SS2D(half, state=state, ssm=ssm)
        self.drop_path = drop_path_of(drop_path)
        self.conv33conv33conv11 = nn.Sequential(
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        near, far = x.chunk(2, -1)
        near = self.conv33conv33conv11(near.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        far = self.drop_path(self.self_attention(self.ln_1(far)))
        # Stacked on a last axis of two: a channel of the one half, then one of the other.
        return torch.stack([near, far], -1).flatten(-2) + x


class MedMamba(nn.Module):
    """Patches, four stages, the mean over space, a linear layer."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(4)]
        self.patch_embed = PatchEmbed(task.in_channels, widths[0], 4)
        drops = rising(config.drop_path, config.depths)
        merges = [PatchMerging(fine) for fine, _ in pairwise(widths)]
        self.layers = nn.ModuleList(
            Stage(
                (
                    SplitBlock(width, state=config.state, drop_path=chance, ssm=config.ssm)
                    for chance in chances
                ),
                downsample=merge,
            )
            for width, chances, merge in zip(widths, drops, [*merges, None], strict=True)
        )
        self.head = nn.Linear(widths[-1], task.out_channels)
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W multiples of 32 -> logits (B, K).

        Raises:
            DataError: H or W is no multiple of 32.
        """
        require_multiple(x, MULTIPLE)
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "classify"."""
    return MedMamba(config, task)
