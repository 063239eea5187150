"""segmamba: convolutions and Mamba layers in three scan orders, a U-Net's decoder, volumes only."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medplat.blocks.conv import ChannelsLastConv3d
from medplat.blocks.padding import require_multiple
from medplat.blocks.ssm import MambaMixer
from medplat.errors import DataError
from medplat.types import Card, Count, Task

MULTIPLE = 16
LEGACY_SLICES = (64, 32, 16, 8)
BRATS, ORGANS = Task("segment", 3, 4, 4), Task("segment", 3, 1, 14)
SMALL = {"channels": (2, 4, 4, 4), "depths": (1, 1, 1, 1), "hidden": 4, "state": 2}

CARD = Card(
    title="SegMamba: tri-orientated Mamba encoder and convolutional decoder for volumes",
    paper=(
        "Xing, Ye, Yang, Liu, Zhu: SegMamba: Long-range Sequential Modeling Mamba For 3D Medical "
        "Image Segmentation, MICCAI 2024; arXiv 2401.13560"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test for 4 channels "
        "in and 4 out, and for 1 in and 14 out. Not verified: any other size, gate mul, and the "
        "twins (ssm off, removed), which are this project's. More than 95 % of the weights are "
        "convolutions: the twin without any Mamba layer keeps 64.3 of 67.4 million. No result of "
        "the paper is claimed. That the scan helps is not established: in nnU-Net's own table, "
        "the only independent one, a net of the same family did as well without its Mamba blocks; "
        "SegResMamba's authors, with SegMamba as the baseline, find it ahead of nnU-Net by .011 "
        "Dice on BTCV and behind SwinUNETR by .014 on spleen."
    ),
    upstream_licence="none stated: written from a description, no weights",
    counts=(
        Count("BraTS", BRATS, {}, 67_416_196),
        Count("BraTS, off", BRATS, {"ssm": "off"}, 66_690_436),
        Count("BraTS, removed", BRATS, {"ssm": "removed"}, 64_294_276),
        Count("1 in, 14 out", ORGANS, {}, 67_363_262),
        Count("1 in, 14 out, off", ORGANS, {"ssm": "off"}, 66_637_502),
        Count("1 in, 14 out, removed", ORGANS, {"ssm": "removed"}, 64_241_342),
    ),
    deviations=(
        "slices auto runs the third scan along the first axis at every size; the original cuts "
        "the sequence into 64, 32, 16 and 8 parts, which is that scan for a first axis of 128 "
        "alone. Weights trained with the original at another size need slices: legacy",
        "gate add is the released code; the paper's figure multiplies (gate: mul)",
        "no uncertainty module (FUE): the paper names one, the released code has none",
        "an image of 16x16x16, one voxel on the coarsest map, is refused",
    ),
    spatial_dims=(3,),
    multiple=MULTIPLE,
)

Four = tuple[int, int, int, int]


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Four = Field(
        (48, 96, 192, 384), description="Channels of each encoder stage, finest first."
    )
    depths: Four = Field((2, 2, 2, 2), description="Mamba layers of each stage, finest first.")
    hidden: int = Field(768, ge=1, description="Channels of the map that the decoder starts from.")
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    slices: Literal["auto", "legacy"] = Field(
        "auto",
        description="auto: the third scan runs along the first axis; legacy: the original's fixed "
        "64, 32, 16, 8 parts, for weights that were trained so.",
    )
    gate: Literal["add", "mul"] = Field(
        "add", description="How the two convolution paths join: the code adds, the figure says mul."
    )
    ssm: Literal["on", "off", "removed"] = Field(
        "on", description="off: no recurrence; removed: no Mamba layer at all. The twins."
    )


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


class GatedSpatialConvolution(nn.Module):
    """Two 3x3x3 convolutions beside one of 1x1x1, joined, one more of 1x1x1, and the input."""

    def __init__(self, channels: int, gate: Literal["add", "mul"]) -> None:
        super().__init__()
        self.gate = gate
        self.proj = ChannelsLastConv3d(channels, channels, 3, padding=1)
        self.proj2 = ChannelsLastConv3d(channels, channels, 3, padding=1)
        self.proj3 = nn.Conv3d(channels, channels, 1)
        self.proj4 = nn.Conv3d(channels, channels, 1)
        self.normed = nn.Sequential(nn.InstanceNorm3d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same."""
        wide = self.normed(self.proj2(self.normed(self.proj(x))))
        narrow = self.normed(self.proj3(x))
        joined = wide * narrow if self.gate == "mul" else wide + narrow
        out: Tensor = x + self.normed(self.proj4(joined))
        return out


class MambaLayer(nn.Module):
    """x + mixer(LayerNorm(x)) over all voxels: along the raster, against it, slice by slice."""

    def __init__(
        self, channels: int, state: int, slices: int | None, ssm: Literal["on", "off"]
    ) -> None:
        """A layer; `slices` fixes the number of parts of the third order, None: the first axis."""
        super().__init__()
        self.slices = slices
        third = f"inter_slice_legacy({slices})" if slices else "inter_slice"
        self.norm = nn.LayerNorm(channels)
        self.mamba = MambaMixer(
            channels, state=state, orders=("raster", "raster_reversed", third), ssm=ssm
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same."""
        grid = x.shape[2:]
        if self.slices and grid.numel() % self.slices:
            raise DataError(
                f"slices: legacy cuts a map of {'x'.join(map(str, grid))} into {self.slices} "
                "parts, which does not come out even: use slices: auto, or images of 128x128x128"
            )
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed: Tensor = self.mamba(tokens, grid)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Perceptron(nn.Module):
    """Voxel by voxel: C to 2C, GELU, back to C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv3d(2 * channels, channels, 1)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class Encoder(nn.Module):
    """Four stages at 1/2, 1/4, 1/8 and 1/16 of the size."""

    def __init__(self, config: Config, in_channels: int) -> None:
        super().__init__()
        widths, ssm = config.channels, config.ssm
        stem = ChannelsLastConv3d(in_channels, widths[0], 7, stride=2, padding=3)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem)])
        for fine, coarse in pairwise(widths):
            halve = nn.Conv3d(fine, coarse, 2, stride=2)
            self.downsample_layers.append(nn.Sequential(nn.InstanceNorm3d(fine), halve))
        self.gscs = nn.ModuleList(GatedSpatialConvolution(width, config.gate) for width in widths)
        self.stages = nn.ModuleList()
        legacy = LEGACY_SLICES if config.slices == "legacy" else (None,) * 4
        for width, depth, slices in zip(widths, config.depths, legacy, strict=True):
            layers = nn.Sequential()
            if ssm != "removed":
                layers.extend(MambaLayer(width, config.state, slices, ssm) for _ in range(depth))
            self.stages.append(layers)
        self.mlps = nn.ModuleList(Perceptron(width) for width in widths)
        self.norms = nn.ModuleList(nn.InstanceNorm3d(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> the four stages' maps for the decoder, finest first."""
        maps: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            x = stage(self.gscs[level](self.downsample_layers[level](x)))
            maps.append(self.mlps[level](self.norms[level](x)))
        return maps


class SegMamba(nn.Module):
    """Encoder, residual convolutions on its maps and on the image, and the way back up."""

    def __init__(self, config: Config, task: Task) -> None:
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        usual = {"spatial_dims": 3, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.vit = Encoder(config, task.in_channels)
        into = [task.in_channels, *config.channels]
        out = [*config.channels, config.hidden]
        for level in range(5):
            block = UnetrBasicBlock(
                in_channels=into[level], out_channels=out[level], stride=1, **usual
            )
            self.add_module(f"encoder{level + 1}", block)
        for level in range(4):
            rise = UnetrUpBlock(
                in_channels=out[level + 1],
                out_channels=out[level],
                upsample_kernel_size=2,
                **usual,
            )
            self.add_module(f"decoder{level + 2}", rise)
        self.decoder1 = UnetrBasicBlock(in_channels=out[0], out_channels=out[0], stride=1, **usual)
        self.out = UnetOutBlock(spatial_dims=3, in_channels=out[0], out_channels=task.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W), sides multiples of 16 -> logits (B, K, D, H, W).

        Raises:
            DataError: A side is no multiple of 16, or all of them are 16; with slices legacy, a
                map cannot be cut into the original's number of parts.
        """
        require_multiple(x, MULTIPLE)
        if x.shape[2:].numel() == MULTIPLE**3:
            raise DataError(
                "an image of 16x16x16 leaves the coarsest map a single voxel, which cannot be "
                "normalised: pad it, to 16x16x32 for instance"
            )
        maps = [x, *self.vit(x)]
        *skips, y = (self.get_submodule(f"encoder{at}")(one) for at, one in enumerate(maps, 1))
        for level in (5, 4, 3, 2):
            y = self.get_submodule(f"decoder{level}")(y, skips[level - 2])
        logits: Tensor = self.out(self.decoder1(y))
        return logits


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "segment"."""
    return SegMamba(config, task)


def import_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` of weights that were trained on several GPUs."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
