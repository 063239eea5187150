"""duoformer: attention among the scales of each patch, then among the patches of a picture."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medplat.blocks.attention import SelfAttention
from medplat.blocks.conv import BATCH, CONV
from medplat.errors import DataError
from medplat.types import Card, Count, Task

TRUNKS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet50": ("bottleneck", (3, 4, 6, 3), (64, 128, 256, 512)),
    "tiny": ("basic", (1, 1, 1, 1), (8, 16, 32, 64)),
}
SMALL = {"trunk": "tiny", "scales": (2, 3), "width": 32, "heads": 4, "depth": 2, "image_size": 64}
TCGA = {"trunk": "resnet50", "scales": (0, 1, 2, 3)}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}

CARD = Card(
    title="DuoFormer: scale-wise and patch-wise attention on a convolutional trunk",
    paper=(
        "Tang et al.: DuoFormer: Leveraging Hierarchical Representations by Local and Global "
        "Attention Vision Transformer, MIDL 2025, PMLR 301:1495-1507; arXiv 2407.13920, 2506.12982"
    ),
    fidelity="verified",
    why=(
        "The paper's three parameter counts, the names and shapes of its state dict, the order of "
        "the tokens inside a patch, the locality of the scale attention and the bare global "
        "attention hold under test. The heads of the fine-tuned TCGA run are not stated; they do "
        "not change the count."
    ),
    upstream_licence="no licence file, all rights reserved; weights are pickled modules, not used",
    counts=(
        Count("Utah, fine-tuned", Task("classify", 2, 3, 4), {}, 91_220_036),
        Count("TCGA, frozen trunk", Task("classify", 2, 3, 3), {**TCGA, "depth": 8}, 148_187_715),
        Count("TCGA, fine-tuned", Task("classify", 2, 3, 3), {**TCGA, "depth": 12}, 185_988_675),
        Count("2-D tiny", Task("classify", 2, 3, 2), SMALL, 181_898),
        Count("3-D tiny", Task("classify", 3, 1, 2), SMALL, 462_506),
    ),
    deviations=(
        "a frozen trunk also keeps the running statistics of its batch norms",
        "3-D beside 2-D: patches of 512, 64, 8 and 1 tokens",
        "fc_norm is kept for its names and, as in the original, not applied",
    ),
    kinds=("classify",),
    multiple=32,
    fixed_size=True,
    unused=("vision_transformer.fc_norm.*",),
)


class Config(BaseModel):
    """Keys of `model` in a workflow; the defaults are the paper's run on the Utah data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trunk: Literal["resnet18", "resnet50", "tiny"] = Field(
        "resnet18", description="Convolutional trunk."
    )
    freeze_trunk: bool = Field(False, description="Train only what follows the trunk.")
    scales: tuple[Literal[0, 1, 2, 3], ...] = Field(
        (1, 3), min_length=1, description="Stages of the trunk whose positions become tokens."
    )
    token: Literal["channel", "random", "first", "average"] = Field(
        "channel",
        description="What stands for a patch after the local blocks: a token made of all stages, "
        "a learnt one, the stage-3 token, or the mean of the tokens.",
    )
    width: int = Field(768, ge=1, description="Channels of a token.")
    heads: int = Field(8, ge=1, description="Attention heads.")
    depth: int = Field(6, ge=1, description="Local blocks, and global blocks.")
    mlp_ratio: int = Field(4, ge=1, description="Hidden width of the local feed-forward part.")
    image_size: int = Field(
        224, ge=32, multiple_of=32, description="Side of the pictures, fixed by the positions."
    )
    stage2_order: Literal["column", "row"] = Field(
        "column", description="Order of the four stage-2 tokens of a patch, 2-D; column: original."
    )
    global_residual: bool = Field(
        False, description="Layer norm and residual in the global blocks; the original has none."
    )
    operator: Literal["on", "off"] = Field(
        "on", description="off, the twin: no scale attention, stage-3 tokens go on alone."
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.width} channels")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("scales names a stage twice")
        if self.token == "first" and 3 not in self.scales:
            raise ValueError("token first is the stage-3 token: add 3 to scales")
        return self


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "operator": "off"})


class ScaleBlock(nn.Module):
    """Pre-norm transformer block among the tokens of one patch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(patches, S, D) -> (patches, S, D)."""
        x = x + self.attn(self.norm1(x))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        out: Tensor = x + self.mlp["fc2"](hidden)
        return out


class GlobalBlock(nn.Module):
    """Attention among the patches; alone, unless `global_residual`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn = SelfAttention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=1e-6) if config.global_residual else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + patches, D) -> the same."""
        out: Tensor = self.attn(x) if self.norm is None else x + self.attn(self.norm(x))
        return out


class ScaleToken(nn.ModuleDict):
    """One token a patch out of the maps of all four stages."""

    def __init__(self, dims: int, channels: tuple[int, ...], width: int) -> None:
        conv, c0, c1 = CONV[dims], channels[0], channels[1]
        sizes = (sum(channels), width, width, width)
        units = [
            nn.Sequential(
                OrderedDict(
                    conv=conv(size, width, 3, padding=1), norm=BATCH[dims](width), act=nn.ReLU()
                )
            )
            for size in sizes
        ]
        super().__init__(
            {
                "chann_proj1": nn.Sequential(
                    OrderedDict(
                        conv1=conv(c0, c0, 3, stride=2, padding=1),
                        conv2=conv(c0, c0, 3, stride=2, padding=1),
                        pool=POOL[dims](2),
                    )
                ),
                "chann_proj2": nn.Sequential(
                    OrderedDict(conv1=conv(c1, c1, 3, stride=2, padding=1), pool=POOL[dims](2))
                ),
                "chann_proj3": POOL[dims](2),
                "chann_proj_all": nn.Sequential(OrderedDict(nConvs=nn.Sequential(*units))),
            }
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of stages 0 to 3 -> (B, patches, 1, D), patches row-major."""
        small = [self[f"chann_proj{at + 1}"](one) for at, one in enumerate(maps[:3])]
        token: Tensor = self["chann_proj_all"](torch.cat([*small, maps[3]], dim=1))
        return token.flatten(2).transpose(1, 2).unsqueeze(2)


class Projection(nn.Module):
    """A 1x1 convolution for each stage in use, and its positions sorted by patch."""

    def __init__(self, config: Config, dims: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = (3,) if config.operator == "off" else tuple(sorted(config.scales)[::-1])
        self.by_column = config.stage2_order == "column" and dims == 2
        for stage in self.scales:
            head = CONV[dims](channels[stage], config.width, 1)
            nn.init.kaiming_normal_(head.weight)
            nn.init.normal_(cast(Tensor, head.bias), std=1e-6)
            self.add_module(f"proj_heads{stage}", head)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of stages 0 to 3 -> tokens (B, patches, tokens, D), stage 3 first."""
        patches = maps[3].shape[2:]
        heads = [(stage, self.get_submodule(f"proj_heads{stage}")) for stage in self.scales]
        return torch.cat(
            [
                by_patch(head(maps[stage]), patches, columns=stage == 2 and self.by_column)
                for stage, head in heads
            ],
            dim=2,
        )


def by_patch(x: Tensor, patches: Sequence[int], *, columns: bool = False) -> Tensor:
    """(B, D, *spatial) -> (B, patches, positions inside a patch, D), both row-major.

    Args:
        x: A map whose sides are multiples of `patches`.
        patches: Patches along each axis.
        columns: Positions inside a patch column by column, 2-D.
    """
    dims = len(patches)
    cut = [size for n, side in zip(patches, x.shape[2:], strict=True) for size in (n, side // n)]
    outer, inner = [2 + 2 * axis for axis in range(dims)], [3 + 2 * axis for axis in range(dims)]
    y = x.reshape(*x.shape[:2], *cut).permute(0, *outer, *(inner[::-1] if columns else inner), 1)
    return y.reshape(x.shape[0], math.prod(patches), -1, x.shape[1])


class Transformer(nn.Module):
    """The two attentions, their positions, and the linear layer to logits."""

    def __init__(self, config: Config, dims: int, length: int, classes: int) -> None:
        super().__init__()
        width, patches = config.width, (config.image_size // 32) ** dims
        local = config.depth if config.operator == "on" else 0
        self.average = config.token == "average" and config.operator == "on"
        self.pos_embed_for_scale: nn.Parameter | None = None
        if config.operator == "on":
            self.pos_embed_for_scale = nn.Parameter(torch.zeros(1, 1, length, width))
            nn.init.trunc_normal_(self.pos_embed_for_scale, std=0.036)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.036))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.036)
        self.scaleBlocks = nn.Sequential(*(ScaleBlock(config) for _ in range(local)))
        self.blocks = nn.Sequential(*(GlobalBlock(config) for _ in range(config.depth)))
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)  # never applied, see CARD
        self.head = nn.Linear(width, classes)

    def local(self, x: Tensor) -> Tensor:
        """Tokens (B, patches, S, D) -> one token a patch (B, patches, D)."""
        if self.pos_embed_for_scale is not None:
            x = x + self.pos_embed_for_scale
        x = self.scaleBlocks(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.mean(2) if self.average else x[:, :, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, patches, S, D) -> logits (B, K)."""
        patches = self.local(x)
        cls = self.cls_token.expand(len(patches), -1, -1)
        y = self.blocks(torch.cat([cls, patches], dim=1) + self.pos_embed)
        logits: Tensor = self.head(y[:, 0])
        return logits


class DuoFormer(nn.Module):
    """Trunk, tokens of all scales, the two attentions.

    Attributes:
        input_size: The only size it takes.
    """

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        dims = task.spatial_dims
        block, layers, widths = TRUNKS[config.trunk]
        expansion = 4 if block == "bottleneck" else 1
        channels = tuple(expansion * one for one in widths)
        self.input_size = (config.image_size,) * dims
        self.frozen = config.freeze_trunk
        self.resnet_projector = trunk(block, layers, widths, dims, task.in_channels)
        self.resnet_projector.requires_grad_(not self.frozen)
        self.projection = Projection(config, dims, channels)
        token = config.token if config.operator == "on" else "first"
        self.scale_token = ScaleToken(dims, channels, config.width) if token == "channel" else None
        self.channel_token: nn.Parameter | None = None
        if token == "random":
            self.channel_token = nn.Parameter(torch.empty(1, 1, 1, config.width).normal_(std=0.036))
        length = sum((2**dims) ** (3 - stage) for stage in self.projection.scales)
        length += token in ("channel", "random")
        self.vision_transformer = Transformer(config, dims, length, task.out_channels)

    def train(self, mode: bool = True) -> DuoFormer:
        """As of every module, but a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.resnet_projector.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) of exactly `input_size` -> logits (B, K)."""
        if tuple(x.shape[2:]) != self.input_size:
            raise DataError(
                f"duoformer was built for {'x'.join(map(str, self.input_size))}, the image is "
                f"{'x'.join(map(str, x.shape[2:]))}: resize it, or set model.image_size"
            )
        logits: Tensor = self.vision_transformer(self.tokens(x))
        return logits

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> tokens (B, patches, S, D), the scale token first."""
        maps = stages(self.resnet_projector, x)
        tokens: Tensor = self.projection(maps)
        if self.scale_token is not None:
            return torch.cat([self.scale_token(maps), tokens], dim=2)
        if self.channel_token is not None:
            own = self.channel_token.expand(*tokens.shape[:2], -1, -1)
            return torch.cat([own, tokens], dim=2)
        return tokens


def trunk(
    block: str, layers: Sequence[int], widths: Sequence[int], dims: int, in_channels: int
) -> nn.Module:
    """MONAI's ResNet with the settings under which it is torchvision's."""
    from monai.networks.nets.resnet import ResNet

    network: nn.Module = ResNet(
        block,
        list(layers),
        list(widths),
        spatial_dims=dims,
        n_input_channels=in_channels,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    return network


def stages(resnet: Any, x: Tensor) -> list[Tensor]:
    """The maps after each of the four stages."""
    x = resnet.maxpool(resnet.act(resnet.bn1(resnet.conv1(x))))
    maps = []
    for stage in range(1, 5):
        x = getattr(resnet, f"layer{stage}")(x)
        maps.append(x)
    return maps


def import_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the authors' state dicts to ours; torchvision's children may come by number."""
    numbered = {
        "0": "conv1",
        "1": "bn1",
        "4": "layer1",
        "5": "layer2",
        "6": "layer3",
        "7": "layer4",
    }

    def ours(name: str) -> str:
        name = re.sub(
            r"^resnet_projector\.(\d)\.",
            lambda match: f"resnet_projector.{numbered.get(match[1], match[1])}.",
            name,
        )
        return f"scale_token.{name}" if name.startswith("chann_proj") else name

    return {ours(name): tensor for name, tensor in state.items()}


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "classify"."""
    return DuoFormer(config, task)
