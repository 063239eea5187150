"""nnmamba: a residual 3-D U-Net whose blocks add a Mamba mixer over four flips of their input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.conv import ChannelsLastConv3d
from medplat.blocks.padding import require_multiple
from medplat.blocks.ssm import MambaMixer
from medplat.errors import ModelError
from medplat.types import Card, Count, Task

MULTIPLE = 16
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))  # none, channels, tokens, both
SIX, SIXTEEN = Task("segment", 3, 1, 6), Task("segment", 3, 1, 16)
PAPER = {"head": "paper_repo"}
SMALL = {"channels": 4, "state": 4, "reduction": 1}

CARD = Card(
    title="nnMamba: a U-Net with siamese Mamba layers",
    paper=(
        "Gong, Kang, Wang, Wan, Li: nnMamba: 3D Biomedical Image Segmentation, Classification and "
        "Landmark Detection with State Space Model, 2024; arXiv 2402.03526"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released segmentation network hold under "
        "test with head paper_repo and 6 or 16 classes. Not verified: the default head, whose "
        "logits may be negative and whose count differs, and the twins with ssm off or removed, "
        "which are this project's. The authors report Dice 93.46 90.74 85.72 on BraTS23 (nnU-Net "
        "93.31 90.24 85.18). That the scan helps is not established: in nnU-Net's own table, "
        "the only independent one, a net of another design did as well without its Mamba blocks."
    ),
    upstream_licence="none stated: written from a description; no weights are distributed",
    counts=(
        Count("6 classes, paper_repo", SIX, PAPER, 15_944_958),
        Count("6 classes, paper_repo, twin", SIX, {**PAPER, "ssm": "off"}, 15_878_654),
        Count("6 classes, paper_repo, removed", SIX, {**PAPER, "ssm": "removed"}, 15_184_254),
        Count("16 classes, paper_repo", SIXTEEN, PAPER, 15_959_598),
        Count("6 classes", SIX, {}, 15_944_988),
    ),
    deviations=(
        "head logits, the default: a 1x1x1 convolution in place of the last batch norm and ReLU, "
        "behind which no logit can be negative",
        "open in the description and chosen here: flips are undone before their mean; the risen "
        "map comes first where it meets the skip; corners are not aligned when it rises",
        "an image that is no multiple of 16 is refused",
    ),
    spatial_dims=(3,),
    multiple=MULTIPLE,
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(32, ge=2, description="Channels at half the size; each level doubles.")
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    reduction: int = Field(16, ge=1, description="How much narrower the skips' attention is.")
    head: Literal["logits", "paper_repo"] = Field(
        "logits", description="paper_repo: ends in batch norm and ReLU, as the released code."
    )
    ssm: Literal["on", "off", "removed"] = Field(
        "on", description="off: the twin without the recurrence; removed: without the Mamba layers."
    )


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class DoubleConv(nn.Module):
    """Twice: 3x3x3 convolution, batch norm, ReLU; or a 1x1x1 convolution for the last two."""

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, linear_end: bool = False
    ) -> None:
        super().__init__()
        end: list[nn.Module] = [nn.BatchNorm3d(channels), nn.ReLU()]
        self.conv = nn.Sequential(
            ChannelsLastConv3d(in_channels, channels, 3, stride=stride, padding=1),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            ChannelsLastConv3d(channels, channels, 3, padding=1),
            *([nn.Conv3d(channels, channels, 1)] if linear_end else end),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, Ci, x, y, z) -> (B, Co, x, y, z), each side over the stride."""
        out: Tensor = self.conv(x)
        return out


class SiameseMamba(nn.Module):
    """The mean of one mixer over the tokens, their channels flipped, their sequence, and both."""

    def __init__(self, channels: int, state: int, ssm: Literal["on", "off"]) -> None:
        super().__init__()
        self.nin = nn.Conv3d(channels, channels, 1, bias=False)
        self.nin2 = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)
        self.mamba = MambaMixer(channels, state=state, ssm=ssm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> the same."""
        x = F.relu(self.norm(self.nin(x)))
        mixed = self.siamese(x.flatten(2).transpose(1, 2))
        mixed = torch.unflatten(mixed.transpose(1, 2), 2, x.shape[2:])
        return F.relu(self.norm2(self.nin2(mixed + x)))

    def siamese(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> the same; what was flipped is flipped back before the mean."""
        mixed = self.mamba(torch.cat([tokens.flip(one) for one in FLIPS])).chunk(len(FLIPS))
        back = [part.flip(one) for part, one in zip(mixed, FLIPS, strict=True)]
        return torch.stack(back).mean(0)


class Block(nn.Module):
    """Two convolutions beside the input; what a Mamba layer makes of the input may be added."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        wider = in_channels != channels
        stride = 2 if wider else 1
        self.conv1 = ChannelsLastConv3d(
            in_channels, channels, 3, stride=stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = ChannelsLastConv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.mamba_layer: SiameseMamba | None = None
        self.downsample: nn.Module = nn.Identity()
        if wider:
            narrow = nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(narrow, nn.BatchNorm3d(channels))

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, Ci, x, y, z) -> (B, Co, x, y, z), half the size where the channels differ."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out = out if added is None else out + added
        return F.relu(out + self.downsample(x))


class Stage(nn.Sequential):
    """Residual blocks at half the size; one Mamba layer, kept in the second, serves all but one."""

    def __init__(self, channels: int, config: Config) -> None:
        first = Block(channels, 2 * channels)
        super().__init__(first, *(Block(2 * channels, 2 * channels) for _ in range(2)))
        if config.ssm != "removed":
            self[1].mamba_layer = SiameseMamba(2 * channels, config.state, config.ssm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> (B, 2C, x/2, y/2, z/2)."""
        first, *mixed = self
        layer: Any = mixed[0].mamba_layer
        x = first(x)
        for block in mixed:
            x = block(x, None if layer is None else layer(x))
        return x


class SkipAttention(nn.Module):
    """A skip, each channel weighed by what its mean says."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.layer1, self.layer2 = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> the same."""
        weight = torch.sigmoid(self.layer2(F.relu(self.layer1(x.mean((2, 3, 4))))))
        return x * weight[:, :, None, None, None]


class NnMamba(nn.Module):
    """Four levels down and up, from half the size."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(4)]
        self.in_conv = DoubleConv(task.in_channels, widths[0], 2)
        for level, width in enumerate(widths[:3], start=1):
            self.add_module(f"layer{level}", Stage(width, config))
            self.add_module(f"att{level}", SkipAttention(width, config.reduction))
            up = DoubleConv(3 * width, width)
            self.add_module(f"conv{8 - level}", up)
        end = config.head == "logits"
        self.conv8 = DoubleConv(widths[0], task.out_channels, linear_end=end)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z), sides multiples of 16 -> logits (B, K, x, y, z).

        Raises:
            DataError: A side is no multiple of 16.
        """
        require_multiple(x, MULTIPLE)
        x = self.in_conv(x)
        skips: list[Tensor] = []
        for level in (1, 2, 3):
            skips.append(self.get_submodule(f"att{level}")(x))
            x = self.get_submodule(f"layer{level}")(x)
        for level in (3, 2, 1):
            both = torch.cat([_doubled(x), skips[level - 1]], 1)
            x = self.get_submodule(f"conv{8 - level}")(both)
        logits: Tensor = self.conv8(_doubled(x))
        return logits


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return NnMamba(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without those of the Mamba layer's second home: a stage's blocks share one.

    Raises:
        ModelError: The two homes hold different numbers.
    """
    kept = {}
    for name, tensor in state.items():
        stage, dot, rest = name.partition(".2.mamba_layer.")
        if not dot:
            kept[name] = tensor
            continue
        own = f"{stage}.1.mamba_layer.{rest}"
        if own in state and not torch.equal(state[own], tensor):
            raise ModelError(f"{own} and {name} differ: a stage's blocks share one Mamba layer")
        kept[own] = tensor
    return kept
