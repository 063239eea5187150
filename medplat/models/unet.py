"""unet: MONAI's U-Net, the baseline that every other plugin is measured against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from medplat.blocks.padding import crop_to, pad_for_levels
from medplat.errors import WorkflowError
from medplat.types import Card, Count, Task

if TYPE_CHECKING:
    from monai.networks.nets import UNet

SMALL = {"channels": (8, 16, 32), "strides": (2, 2), "residual_units": 1}

CARD = Card(
    title="U-Net with residual units, as MONAI builds it",
    paper=(
        "Kerfoot, Clough, Oksuz, Lee, King, Schnabel: Left-Ventricle Quantification Using Residual "
        "U-Net, STACOM 2018, LNCS 11395, doi 10.1007/978-3-030-12029-0_40"
    ),
    fidelity="verified",
    why=(
        "The network is monai.networks.nets.UNet itself; for classify, its encoder followed by the "
        "mean over space and one linear layer."
    ),
    upstream_licence="Apache-2.0 (MONAI); no weights are used",
    counts=(
        Count("2-D", Task("segment", 2, 1, 3), {}, 1_625_496),
        Count("3-D", Task("segment", 3, 1, 3), {}, 4_807_482),
        Count("3-D tiny", Task("segment", 3, 1, 3), SMALL, 35_455),
        Count("2-D, classify", Task("classify", 2, 3, 4), {}, 1_310_270),
    ),
    deviations=(
        "the input is padded at the far end to the network's multiple and the logits cut back",
        "classify: head of this project",
        "restore: the network's output, times a gain that starts at 0.01, is added to the input",
    ),
    kinds=("segment", "classify", "restore"),
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256), min_length=2, description="Channels of each level, finest first."
    )
    strides: tuple[int, ...] | None = Field(
        None, description="Stride of each level but the last; None: 2 everywhere."
    )
    residual_units: int = Field(2, ge=0, description="Convolutions of a residual unit; 0: plain.")
    norm: Literal["instance", "batch"] = Field("instance", description="Normalisation layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in every convolution.")

    @model_validator(mode="after")
    def _strides_fit(self) -> Config:
        if self.strides is not None and len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"strides needs {len(self.channels) - 1} numbers, one less than channels"
            )
        return self


TINY = Config.model_validate(SMALL)
TWIN: Config | None = None


class Segmenter(nn.Module):
    """The whole network, for any input size."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K, *spatial)."""
        return crop_to(self.network(pad_for_levels(x, self.multiple)), x.shape[2:])


class Restorer(Segmenter):
    """The whole network, beside the first channels of its input; starts near the input itself."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__(network, multiple)
        self.gain = nn.Parameter(torch.full((1,), 0.01))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> image (B, K, *spatial)."""
        change = super().forward(x)
        return x[:, : change.shape[1]] + self.gain * change


class Classifier(nn.Module):
    """The encoder, the mean over space, a linear layer."""

    def __init__(self, network: nn.Module, multiple: int, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.multiple = nn.Sequential(*_encoder(network)), multiple
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        features: torch.Tensor = self.encoder(pad_for_levels(x, self.multiple))
        logits: torch.Tensor = self.head(features.flatten(2).mean(-1))
        return logits


def _encoder(network: UNet) -> list[nn.Module]:
    """The way down of MONAI's nested U-Net: each level is (down, skip over the rest, up)."""
    level: Any = network.model
    stages: list[nn.Module] = []
    while isinstance(level, nn.Sequential) and hasattr(level[1], "submodule"):
        stages.append(level[0])
        level = level[1].submodule
    return [*stages, level]


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment", "restore" or "classify"."""
    if task.upscale > 1:
        raise WorkflowError(
            [f"task.upscale: unet gives images of the input's size, not {task.upscale} times"]
        )
    from monai.networks.nets import UNet  # seconds that `medplat check` does not need

    strides = config.strides or (2,) * (len(config.channels) - 1)
    network = UNet(
        spatial_dims=task.spatial_dims,
        in_channels=task.in_channels,
        out_channels=task.out_channels,
        channels=config.channels,
        strides=strides,
        num_res_units=config.residual_units,
        norm=config.norm,
        dropout=config.dropout,
    )
    multiple = math.prod(strides)
    if task.kind == "restore":
        return Restorer(network, multiple)
    if task.kind == "segment":
        return Segmenter(network, multiple)
    return Classifier(network, multiple, config.channels[-1], task.out_channels)
