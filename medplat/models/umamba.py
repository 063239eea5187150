"""umamba: U-Mamba, nnU-Net's residual encoder with Mamba layers at its end or in every stage."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medplat.blocks.conv import CONV
from medplat.blocks.padding import crop_to, pad_for_levels
from medplat.blocks.residual import (
    NearestUp,
    ProjectedResidualBlock,
    ResidualBlock,
    halved,
    he_start,
)
from medplat.blocks.ssm import MambaMixer
from medplat.errors import DataError, ModelError, WorkflowError
from medplat.types import Card, Count, Task

FLAT, SOLID = Task("segment", 2, 1, 14), Task("segment", 3, 1, 14)
# By number of dimensions: features, strides and patch size of the configurations that are counted.
PUBLISHED: dict[int, tuple[tuple[int, ...], tuple[Any, ...], tuple[int, ...]]] = {
    2: ((32, 64, 128, 256, 512, 512, 512), (1, 2, 2, 2, 2, 2, 2), (320, 320)),
    3: ((32, 64, 128, 256, 320, 320), (1, 2, 2, 2, 2, (1, 2, 2)), (48, 160, 224)),
}
SMALL = {"features": (4, 6, 8, 8), "strides": (1, 2, 2, 2), "convs": 1}
REPEATED = {"all_modules.0": "conv", "all_modules.1": "norm"}

CARD = Card(
    title="U-Mamba: nnU-Net's residual U-Net with Mamba layers",
    paper=(
        "Ma, Li, Wang: U-Mamba: Enhancing Long-range Dependency for Biomedical Image "
        "Segmentation, 2024; arXiv 2401.04722"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test for Bot and "
        "Enc with the 3-D and the 2-D plan counted here. Not verified: other plans, residual "
        "true, and the twins with ssm off or removed, which are this project's. The independent "
        "line is nnU-Net's own table, Dice on BTCV, ACDC, LiTS, BraTS, KiTS, AMOS: Bot 83.51 "
        "91.79 80.40 91.26 86.22 89.13; Enc 82.41 91.22 80.27 90.91 86.34 88.38; a base without "
        "Mamba, by our reading of its label this network, 83.69 91.89 80.57 91.26 85.98 89.04."
    ),
    upstream_licence="Apache-2.0; no weights found",
    counts=(
        Count("Bot, 3-D", SOLID, {}, 42_130_054),
        Count("Bot, 3-D, twin", SOLID, {"ssm": "off"}, 42_072_454),
        Count("Enc, 3-D", SOLID, {"where": "enc"}, 42_808_664),
        Count("Enc, 3-D, twin", SOLID, {"where": "enc", "ssm": "off"}, 42_667_864),
        Count("3-D, removed", SOLID, {"ssm": "removed"}, 41_454_214),
        Count("Bot, 2-D", FLAT, {}, 47_533_012),
        Count("Bot, 2-D, twin", FLAT, {"ssm": "off"}, 47_416_276),
        Count("Enc, 2-D", FLAT, {"where": "enc"}, 47_015_538),
        Count("Enc, 2-D, twin", FLAT, {"where": "enc", "ssm": "off"}, 46_912_486),
        Count("2-D, removed", FLAT, {"ssm": "removed"}, 45_837_268),
    ),
    deviations=(
        "Bot pads an image at the far end to the plan's multiple and cuts the logits back",
        "Enc, where a stage has no more voxels than channels, takes images of its patch size only",
        "deep_supervision false builds the finest head alone",
    ),
)

Axes = int | tuple[int, ...]


class Config(BaseModel):
    """Keys of `model` in a workflow. Axes are the image's; nnU-Net's plans count z first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Literal["bot", "enc"] = Field(
        "bot", description="Mamba after the last stage only, or in the encoder's stages."
    )
    features: tuple[int, ...] | None = Field(
        None, min_length=2, description="Channels of each stage; None: of the published plan."
    )
    strides: tuple[Axes, ...] | None = Field(
        None, description="Stride of each stage, one number or one an axis; None: as published."
    )
    kernels: tuple[Axes, ...] | None = Field(
        None, description="Kernel of each stage, one number or one an axis; None: 3."
    )
    convs: int = Field(2, ge=1, description="Blocks of the stem and of each stage's finer half.")
    patch_size: tuple[int, ...] | None = Field(
        None, description="Size that enc is built for; None: of the published plan."
    )
    residual: bool = Field(
        False, description="Add a Mamba layer's input to its output; the released code does not."
    )
    deep_supervision: bool = Field(
        True, description="Heads at all resolutions of the decoder; false: at the finest alone."
    )
    ssm: Literal["on", "off", "removed"] = Field(
        "on", description="off: the twin without the recurrence; removed: without the Mamba layers."
    )

    @model_validator(mode="after")
    def _one_plan(self) -> Config:
        if (self.features is None) != (self.strides is None):
            raise ValueError("features and strides make one plan: give both or neither")
        lengths = {len(one) for one in (self.features, self.strides, self.kernels) if one}
        if len(lengths) > 1:
            raise ValueError("features, strides and kernels need one entry for each stage")
        first = self.strides[0] if self.strides else 1
        if any(step != 1 for step in ([first] if isinstance(first, int) else first)):
            raise ValueError(
                "strides must start with 1: the decoder ends at the first stage's size"
            )
        if self.where == "enc" and self.features is not None and self.patch_size is None:
            raise ValueError("where enc with a plan of your own needs patch_size")
        return self


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


@dataclass(frozen=True)
class Plan:
    """What the configuration means for a number of dimensions; lists have an entry a stage."""

    features: list[int]
    strides: list[tuple[int, ...]]
    kernels: list[tuple[int, ...]]
    sizes: list[tuple[int, ...]]
    patch_size: tuple[int, ...]


def plan_of(config: Config, dims: int) -> Plan:
    """The plan, published where the configuration has none.

    Raises:
        WorkflowError: It is not for this number of dimensions.
    """
    features, strides, patch = PUBLISHED[dims]
    features, strides = config.features or features, config.strides or strides
    kernels = config.kernels or (3,) * len(features)
    patch = config.patch_size or patch

    def axes(key: str, given: Axes) -> tuple[int, ...]:
        if isinstance(given, int):
            return (given,) * dims
        if len(given) != dims:
            raise WorkflowError([f"model.{key}: {given} has {len(given)} axes, the task {dims}"])
        return given

    steps = [axes("strides", one) for one in strides]
    sizes = list(itertools.accumulate(steps, halved, initial=axes("patch_size", patch)))[1:]
    multiple = [math.prod(axis) for axis in zip(*steps, strict=True)]
    whole = [side * step for side, step in zip(sizes[-1], multiple, strict=True)]
    if config.where == "enc" and (whole != list(patch) or math.prod(sizes[-1]) == 1):
        raise WorkflowError(
            [f"model.patch_size: {patch} must be multiples of {tuple(multiple)}, and one twice"]
        )
    return Plan(list(features), steps, [axes("kernels", one) for one in kernels], sizes, patch)


class MambaLayer(nn.Module):
    """Mixer and its norm; tokens are the voxels of a map, or its channels where those are more."""

    def __init__(self, channels: int, size: tuple[int, ...] | None, config: Config) -> None:
        super().__init__()
        assert config.ssm != "removed"
        self.residual = config.residual
        self.by_channel = size is not None and math.prod(size) <= channels
        width = math.prod(size) if size is not None and self.by_channel else channels
        self.norm = nn.LayerNorm(width)
        self.mamba = MambaMixer(width, ssm=config.ssm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same, at least in float32 whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2)
            tokens = tokens if self.by_channel else tokens.transpose(1, 2)
            mixed = self.mamba(self.norm(tokens))
            mixed = mixed if self.by_channel else mixed.transpose(1, 2)
            out: Tensor = mixed.unflatten(2, x.shape[2:])
        return x + out if self.residual else out


class Encoder(nn.Module):
    """Stem and stages, a Mamba layer after those that `where: enc` names."""

    def __init__(self, plan: Plan, config: Config, in_channels: int) -> None:
        super().__init__()
        dims, width, kernel = len(plan.patch_size), plan.features[0], plan.kernels[0]
        stages = len(plan.features)
        self.stem = nn.Sequential(
            ProjectedResidualBlock(dims, in_channels, width, kernel),
            *(ResidualBlock(dims, width, kernel) for _ in range(config.convs - 1)),
        )
        self.stages = nn.ModuleList()
        self.mamba_layers = nn.ModuleDict()
        for s, (now, size) in enumerate(zip(plan.features, plan.sizes, strict=True)):
            blocks = config.convs if s < math.ceil(stages / 2) else 1
            first = ProjectedResidualBlock(dims, width, now, plan.kernels[s], plan.strides[s])
            rest = (ResidualBlock(dims, now, plan.kernels[s]) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            mixes = dims == 3 or (s + stages) % 2 == 1
            if config.where == "enc" and config.ssm != "removed" and mixes:
                self.mamba_layers[str(s)] = MambaLayer(now, size, config)
            width = now

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *spatial) -> the stages' maps, finest first."""
        x, maps = self.stem(x), []
        for s, stage in enumerate(self.stages):
            x = stage(x)
            if str(s) in self.mamba_layers:
                x = self.mamba_layers[str(s)](x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """A step up for each stage but the last; in 2-D the last step has no skip."""

    def __init__(self, plan: Plan, config: Config, out_channels: int) -> None:
        super().__init__()
        dims, steps = len(plan.patch_size), len(plan.features) - 1
        self.skipless = steps - 1 if dims == 2 else None
        self.stages, self.upsample_layers = nn.ModuleList(), nn.ModuleList()
        self.seg_layers = nn.ModuleDict()
        for s in range(steps):
            coarse, fine = plan.features[-1 - s], plan.features[-2 - s]
            kernel, given = plan.kernels[-1 - s], fine if s == self.skipless else 2 * fine
            self.upsample_layers.append(NearestUp(dims, coarse, fine, plan.strides[-1 - s]))
            blocks = config.convs if s < math.ceil(steps / 2 + 0.5) else 1
            rest = (ResidualBlock(dims, fine, kernel) for _ in range(blocks - 1))
            first = ProjectedResidualBlock(dims, given, fine, kernel)
            self.stages.append(nn.Sequential(first, *rest))
            if config.deep_supervision or s == steps - 1:
                self.seg_layers[str(s)] = CONV[dims](fine, out_channels, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The encoder's maps -> logits of each head, finest first."""
        x, logits = maps[-1], []
        for s, (up, stage) in enumerate(zip(self.upsample_layers, self.stages, strict=True)):
            x = up(x)
            x = stage(x if s == self.skipless else torch.cat([x, maps[-2 - s]], 1))
            if str(s) in self.seg_layers:
                logits.append(self.seg_layers[str(s)](x))
        return logits[::-1]


class UMamba(nn.Module):
    """Encoder, for `bot` a Mamba layer, decoder."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        plan = plan_of(config, task.spatial_dims)
        self.encoder = Encoder(plan, config, task.in_channels)
        self.mamba_layer: MambaLayer | None = None
        if config.where == "bot" and config.ssm != "removed":
            self.mamba_layer = MambaLayer(plan.features[-1], None, config)
        self.decoder = Decoder(plan, config, task.out_channels)
        self.strides = plan.strides
        self.deep_supervision = config.deep_supervision
        bound = any(one.by_channel for one in self.encoder.mamba_layers.values())
        self.input_size = plan.patch_size if bound else None
        he_start(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *spatial) -> logits (B, K, *spatial); with deep supervision a list, finest first.

        Raises:
            DataError: The weights are for another size.
        """
        shape = x.shape[2:]
        if self.input_size is not None and tuple(shape) != self.input_size:
            raise DataError(
                f"this network takes images of {'x'.join(map(str, self.input_size))} only, not "
                f"{'x'.join(map(str, shape))}, for the tokens of its coarse stages are channels: "
                "set model.patch_size and train.patch_size to one size, or use where bot"
            )
        multiple = [math.prod(axis) for axis in zip(*self.strides, strict=True)]
        maps = self.encoder(pad_for_levels(x, multiple))
        if self.mamba_layer is not None:
            maps[-1] = self.mamba_layer(maps[-1])
        sizes = itertools.accumulate(self.strides[1:], halved, initial=tuple(shape))
        logits = [crop_to(one, size) for one, size in zip(self.decoder(maps), sizes, strict=False)]
        return logits if self.deep_supervision else logits[0]


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return UMamba(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without those that repeat a tensor under a second path.

    Raises:
        ModelError: A repeated name holds other numbers.
    """
    kept = {name: tensor for name, tensor in state.items() if _first_name(name) == name}
    for name, tensor in state.items():
        own = _first_name(name)
        if own not in kept or not torch.equal(kept[own], tensor):
            raise ModelError(f"{name} must repeat {own}: this is not a file of U-Mamba's network")
    return kept


def _first_name(name: str) -> str:
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    for repeated, first in REPEATED.items():
        name = name.replace(repeated, first)
    return name
