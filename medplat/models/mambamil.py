"""mambamil: MambaMIL, scans along the patches of a slide, then attention pooling, for bags."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.ssm import MambaMixer
from medplat.types import Card, Count, Task
from medplat_kernels.scan_orders import find

SLIDE = Task("classify", 1, 1024, 2)
SMALL = {"channels": 16, "attention": 8, "state": 4, "kind": "srmamba", "rate": 4}

CARD = Card(
    title="MambaMIL: a sequence model over the patches of a slide, re-ordered and pooled",
    paper=(
        "Yang, Wang, Chen: MambaMIL: Enhancing Long Sequence Modeling with Sequence Reordering in "
        "Computational Pathology, MICCAI 2024; arXiv 2403.06800"
    ),
    fidelity="verified",
    why=(
        "Parameter integers, names and shapes of the released code hold under test for mamba, "
        "bimamba and srmamba with 1024 features and two classes. Not verified: any other size, "
        "the twins (ssm off, removed: this project's) and pad masked. No authors' table could "
        "be read and no slide was ever run through this plugin; reported elsewhere: Camelyon16 "
        "accuracy 87 or 92 by how the kernel was installed (issue 11 of the original)."
    ),
    upstream_licence="README says MIT, no licence file: written from a description, no weights",
    counts=(
        Count("mamba", SLIDE, {"kind": "mamba"}, 3_984_131),
        Count("bimamba", SLIDE, {"kind": "bimamba"}, 4_227_843),
        Count("srmamba", SLIDE, {}, 4_227_843),
        Count("mamba, off", SLIDE, {"kind": "mamba", "ssm": "off"}, 3_750_659),
        Count("bimamba, off", SLIDE, {"kind": "bimamba", "ssm": "off"}, 3_760_899),
        Count("srmamba, off", SLIDE, {"ssm": "off"}, 3_760_899),
        Count("removed", SLIDE, {"ssm": "removed"}, 592_643),
    ),
    deviations=(
        "init mamba leaves the bias of dt_proj as Mamba sets it; the original's later loop wipes "
        "it to 0 (init: paper_repo)",
        "several bags at a time, each by itself; the original takes one",
        "no head for survival",
    ),
    kinds=("classify",),
    spatial_dims=(1,),
)


class Config(BaseModel):
    """Keys of `model` in a workflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mamba", "bimamba", "srmamba"] = Field(
        "srmamba", description="Scan in order; and reversed; or and by strides of rate."
    )
    rate: int = Field(
        10, ge=1, description="Stride of srmamba; the original's training scripts took 5."
    )
    channels: int = Field(512, ge=1, description="Width of the sequence.")
    layers: int = Field(2, ge=1, description="Mamba layers.")
    attention: int = Field(128, ge=1, description="Hidden width of the pooling's scores.")
    state: int = Field(16, ge=1, description="States of a channel in the scan.")
    activation: Literal["relu", "gelu"] = Field("relu", description="After the first layer.")
    dropout: float = Field(0.25, ge=0, lt=1, description="After the first layer.")
    pad: Literal["upstream", "masked"] = Field(
        "upstream",
        description="srmamba: the tokens that fill up the last stride run through the scan, as in "
        "the original; or are left out.",
    )
    init: Literal["mamba", "paper_repo"] = Field(
        "mamba", description="paper_repo: dt_proj is initialised as every other linear layer."
    )
    ssm: Literal["on", "off", "removed"] = Field(
        "on", description="off: no recurrence; removed: no Mamba layer at all. The twins."
    )


TINY = Config.model_validate(SMALL)
TWIN = Config.model_validate({**SMALL, "ssm": "off"})


def orders_of(config: Config) -> tuple[str, ...]:
    """Names of the scan orders."""
    second = {"bimamba": ("raster_reversed",), "srmamba": (f"strided({config.rate})",)}
    return ("raster", *second.get(config.kind, ()))


class PaddedMixer(MambaMixer):
    """A mixer whose strided order may meet any length.

    Upstream's way: what lies between the projections is padded with zeros, so that the tokens that
    were added carry the convolution's bias into the state of the strided scan. They are cut off
    again; the scan in raster order never sees them, for they come last.
    """

    def __init__(self, channels: int, config: Config, ssm: Literal["on", "off"]) -> None:
        super().__init__(channels, state=config.state, orders=orders_of(config), ssm=ssm)
        self.masked = config.kind == "srmamba" and config.pad == "masked"

    def inner(self, xz: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """(B, L, 2d) -> (B, L, d)."""
        length = xz.shape[1]
        multiple = math.lcm(*(find(name).pad_multiple for name in self.orders))
        padded = -(-length // multiple) * multiple
        if self.masked and padded > length:
            return self._without_padding(xz, padded)
        out = super().inner(F.pad(xz, (0, 0, 0, padded - length)), (padded,))
        return out[:, :length]

    def _without_padding(self, xz: Tensor, padded: int) -> Tensor:
        """Each order by itself over the real tokens, in the sequence in which it meets them."""
        total = xz.new_zeros(())
        for name, suffix in zip(self.orders, self.suffixes, strict=True):
            steps = find(name).positions((padded,)).to(xz.device)
            steps = steps[steps < xz.shape[1]]
            alone = copy.copy(self)
            alone.orders, alone.suffixes, alone.masked = ("raster",), (suffix,), False
            total = total + alone.inner(xz[:, steps])[:, steps.argsort()]
        return total


class MambaMIL(nn.Module):
    """Features to a sequence, residual Mamba layers, attention pooling, classes."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        width = config.channels
        activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        first = nn.Linear(task.in_channels, width)
        self._fc1 = nn.Sequential(first, activation, nn.Dropout(config.dropout))
        ssm = config.ssm
        self.layers = nn.ModuleList()
        if ssm != "removed":
            for _ in range(config.layers):
                layer = nn.Sequential(nn.LayerNorm(width), PaddedMixer(width, config, ssm))
                self.layers.append(layer)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.Sequential(
            nn.Linear(width, config.attention), nn.Tanh(), nn.Linear(config.attention, 1)
        )
        self.classifier = nn.Linear(width, task.out_channels)
        self._initialise(wiping=config.init == "paper_repo")

    def _initialise(self, wiping: bool) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and (wiping or "dt_proj" not in name):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, bags: Tensor | Sequence[Tensor]) -> Tensor:
        """Bags (B, features, n), or a list of (features, n_i) -> logits (B, classes)."""
        if isinstance(bags, Tensor):
            return self._of(bags)
        return torch.cat([self._of(bag[None]) for bag in bags])

    def _of(self, bags: Tensor) -> Tensor:
        h = self._fc1(bags.transpose(1, 2))
        for layer in self.layers:
            h = h + layer(h)
        h = self.norm(h)
        weights = self.attention(h).softmax(dim=1)
        logits: Tensor = self.classifier((weights * h).sum(dim=1))
        return logits


def build(config: Config, task: Task) -> nn.Module:
    """The network for bags: a task of kind "classify" with `spatial_dims` 1."""
    return MambaMIL(config, task)
