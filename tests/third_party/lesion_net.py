"""lesion_net: dilated convolutions on one grid, an example of a third party's plugin."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.types import Card, Count, Task

CARD = Card(
    title="Three dilated convolutions with residuals",
    paper="none: an example",
    fidelity="inspired",
    why="An example of the contract; there is no original.",
    upstream_licence="none",
    counts=(Count("2-D", Task("segment", 2, 1, 2), {}, 15_914),),
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(24, ge=1, description="Channels.")
    context: Literal["dilated", "plain"] = Field(
        "dilated", description="Distance of a convolution's voxels: 1, 2, 4, or 1 everywhere."
    )


TINY = Config(width=4)
TWIN = Config(width=4, context="plain")


class LesionNet(nn.Module):
    """Convolutions that see ever farther, each added to its input."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        conv = nn.Conv2d if task.spatial_dims == 2 else nn.Conv3d
        width = config.width
        self.stem = conv(task.in_channels, width, 3, padding=1)
        steps = (1, 2, 4) if config.context == "dilated" else (1, 1, 1)
        self.body = nn.ModuleList(conv(width, width, 3, padding=n, dilation=n) for n in steps)
        self.head = conv(width, task.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> logits (B, K, *spatial)."""
        x = self.stem(x)
        for layer in self.body:
            x = x + torch.relu(layer(x))
        logits: Tensor = self.head(x)
        return logits


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return LesionNet(config, task)
