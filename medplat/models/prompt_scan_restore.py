"""prompt_scan_restore: scans, channel attention and prompts against several degradations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.conv import CONV, linear_upsample
from medplat.blocks.padding import crop_to, pad_for_levels
from medplat.blocks.ssm import a_log, dt_bias, dt_rank, dt_weight, undecayed
from medplat.tasks.restore import require_same_grid
from medplat.types import Card, Count, Task
from medplat_kernels import selective_scan_fn

ORDERS = {2: "cross2d", 3: "axes3d"}
FFN, STATES, PROMPTS = 2.66, 8, 5
GREY, SOLID = Task("restore", 2, 1, 1), Task("restore", 3, 1, 1)
PUBLISHED = {
    "width": 48,
    "blocks": (4, 6, 6, 8),
    "refinement": 4,
    "prompt_sizes": (32, 16, 8, 4),
}
LARGE_3D = {"width": 24, "blocks": (1, 2, 2, 2), "refinement": 1, "prompt_sizes": (16, 8, 4, 4)}
SMALL = {
    "width": 8,
    "blocks": (1, 1, 1, 1),
    "heads": (1, 1, 2, 2),
    "refinement": 1,
    "prompt_sizes": (8, 4, 4, 2),
}
OFF, BARE = {"ssm": "off"}, {"prompts": False}

CARD = Card(
    title="Restoration by selective scans, channel attention and degradation prompts",
    paper=(
        "The combination is the idea of Jiang et al., arXiv 2412.15845; channel attention and "
        "feed-forward part are those of Restormer, arXiv 2111.09881"
    ),
    fidelity="inspired",
    why=(
        "Inspired by the combination of a spatial selective scan with transposed channel "
        "attention and prompts in arXiv 2412.15845, whose public code lacks the blocks and whose "
        "text could be read as an abstract only. The blocks are of this project; no number of "
        "that paper applies. Not for diagnosis: a restoration may remove or invent structure."
    ),
    upstream_licence="no licence file; nothing of it is used",
    counts=(
        Count("2-D, colour, wide", Task("restore", 2, 3, 3), PUBLISHED, 32_041_464),
        Count("2-D, colour, wide, no scan", Task("restore", 2, 3, 3), PUBLISHED | OFF, 25_735_416),
        Count(
            "2-D, colour, wide, no prompts", Task("restore", 2, 3, 3), PUBLISHED | BARE, 29_222_644
        ),
        Count("2-D", GREY, {}, 8_113_226),
        Count("2-D, no scan", GREY, OFF, 6_641_994),
        Count("2-D, no prompts", GREY, BARE, 6_756_246),
        Count("3-D", SOLID, LARGE_3D, 4_723_533),
        Count("3-D, no scan", SOLID, LARGE_3D | OFF, 4_165_197),
        Count("3-D, no prompts", SOLID, LARGE_3D | BARE, 2_544_193),
        Count("2-D tiny", GREY, SMALL, 229_385),
        Count("2-D tiny, no scan", GREY, SMALL | OFF, 192_905),
        Count("2-D tiny, no prompts", GREY, SMALL | BARE, 155_085),
        Count("3-D tiny", SOLID, SMALL, 409_549),
        Count("3-D tiny, no scan", SOLID, SMALL | OFF, 362_573),
        Count("3-D tiny, no prompts", SOLID, SMALL | BARE, 206_609),
    ),
    deviations=(
        "scans at the two coarsest of four levels",
        "the output is the input plus what the network adds",
    ),
    kinds=("restore",),
)


class Config(BaseModel):
    """Keys of `model` in a workflow; four levels, finest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(32, ge=1, description="Channels of the finest level; doubled at each next.")
    blocks: tuple[int, int, int, int] = Field((2, 3, 3, 4), description="Blocks of each level.")
    heads: tuple[int, int, int, int] = Field(
        (1, 2, 4, 8), description="Heads of the channel attention of each level."
    )
    refinement: int = Field(2, ge=0, description="Blocks at full size after the decoder.")
    scan_levels: tuple[Literal[1, 2, 3, 4], ...] = Field(
        (3, 4), description="Levels whose blocks scan over space."
    )
    ssm: Literal["on", "off"] = Field("on", description="off, the twin: no scan at any level.")
    prompts: bool = Field(True, description="Learnt prompts on the skips and the coarsest map.")
    prompt_sizes: tuple[int, int, int, int] = Field(
        (32, 16, 8, 4), description="Side of the spatial prompts of each level."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Config:
        for level, heads in enumerate(self.heads):
            if heads < 1 or (self.width << level) % heads:
                raise ValueError(f"{heads} heads do not divide {self.width << level} channels")
        return self


SMALLEST = SMALL | {"width": 4, "heads": (1, 1, 1, 1), "prompt_sizes": (4, 2, 2, 2)}
TINY = Config.model_validate(SMALLEST)
TWIN = Config.model_validate(SMALLEST | OFF)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel of (B, C, *spatial)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SpatialScan(nn.Module):
    """Selective scans along every axis, both ways, each with its own parameters, and their sum."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.order = ORDERS[dims]
        directions, rank = 2 * dims, dt_rank(width)
        self.directions = directions
        self.into = CONV[dims](width, 2 * width, 1, bias=False)
        self.near = CONV[dims](width, width, 3, padding=1, groups=width)
        rows = rank + 2 * STATES
        self.x_proj = nn.Parameter(
            torch.empty(directions, rows, width).uniform_(-(width**-0.5), width**-0.5)
        )
        every = range(directions)
        self.dt_proj = nn.Parameter(torch.stack([dt_weight(width, rank) for _ in every]))
        self.dt_bias = nn.Parameter(torch.stack([dt_bias(width) for _ in every]))
        self.A_log = undecayed(a_log(directions * width, STATES).view(directions, width, STATES))
        self.D = undecayed(torch.ones(directions, width))
        self.norm = nn.LayerNorm(width)
        self.out = CONV[dims](width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        u, z = self.into(x).chunk(2, 1)
        tokens = F.silu(self.near(u)).flatten(2).transpose(1, 2)
        y = self.norm(self.scan(tokens, x.shape[2:]))
        out: Tensor = self.out(y.transpose(1, 2).reshape(x.shape) * F.silu(z))
        return out

    def scan(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, L, C) -> the sum of all directions (B, L, C); float32 under any autocast."""
        parts = F.linear(tokens, self.x_proj.flatten(0, 1))
        parts = parts.view(*tokens.shape[:2], self.directions, -1)
        dt, b, c = torch.split(parts, [parts.shape[-1] - 2 * STATES, STATES, STATES], -1)
        delta = torch.einsum("blkr,kcr->blkc", dt, self.dt_proj).flatten(2)
        wide = torch.promote_types(tokens.dtype, torch.float32)
        y = selective_scan_fn(
            tokens.to(wide),
            delta.to(wide),
            -torch.exp(self.A_log.to(wide)).flatten(0, 1),
            b.to(wide),
            c.to(wide),
            self.D.flatten(),
            delta_bias=self.dt_bias.flatten(),
            delta_softplus=True,
            order=self.order,
            grid=list(grid),
            layout="bld",
        )
        return cast(Tensor, y)


class Block(nn.Module):
    """Channel attention and, at some levels, scans over the same normed map; then feed-forward."""

    def __init__(self, width: int, dims: int, heads: int, *, scan: bool) -> None:
        from monai.networks.blocks.cablock import CABlock, FeedForward

        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.channels = CABlock(dims, width, heads, bias=False)
        self.gain_channels = nn.Parameter(torch.full((width,), 0.5))
        self.space = SpatialScan(width, dims) if scan else None
        self.gain_space = nn.Parameter(torch.full((width,), 0.5)) if scan else None
        self.forward_part = FeedForward(dims, width, FFN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        u = self.norm1(x)
        y = x + _each(self.gain_channels, x) * self.channels(u)
        if self.space is not None and self.gain_space is not None:
            y = y + _each(self.gain_space, x) * self.space(u)
        out: Tensor = y + self.forward_part(self.norm2(y))
        return out


def _each(gains: Tensor, like: Tensor) -> Tensor:
    """(C,) as (C, 1, 1 ...), to be multiplied with (B, C, *spatial)."""
    return gains.view(-1, *(1,) * (like.ndim - 2))


class Prompt(nn.Module):
    """A mixture of learnt maps and gates, weighed by what the features look like."""

    def __init__(self, width: int, dims: int, size: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, PROMPTS)
        self.maps = nn.Parameter(0.02 * torch.randn(PROMPTS, width, *(size,) * dims))
        self.gates = nn.Parameter(0.02 * torch.randn(PROMPTS, width))
        self.smooth = CONV[dims](width, width, 3, padding=1, bias=False)
        self.gate = nn.Linear(width, width)
        self.join = CONV[dims](2 * width, width, 1, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, prompts), each row summing to 1."""
        return torch.softmax(self.weigh(x.flatten(2).mean(-1)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same."""
        weights = self.weights(x)
        mixed = torch.einsum("bp,pc...->bc...", weights, self.maps)
        spatial = self.smooth(linear_upsample(mixed, x.shape[2:]))
        gate = torch.sigmoid(self.gate(weights @ self.gates))
        gated = x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))
        out: Tensor = x + self.join(torch.cat([gated, spatial], dim=1))
        return out


class PromptScanRestore(nn.Module):
    """Four levels down and up, prompts on what crosses over, output added to the input."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        dims, conv = task.spatial_dims, CONV[task.spatial_dims]
        widths = [config.width << level for level in range(4)]
        self.embed = conv(task.in_channels, widths[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(_stage(config, dims, level) for level in range(4))
        self.down = nn.ModuleList(conv(w, 2 * w, 2, stride=2, bias=False) for w in widths[:3])
        self.prompts = nn.ModuleList(
            Prompt(width, dims, size) if config.prompts else nn.Identity()
            for width, size in zip(widths, config.prompt_sizes, strict=True)
        )
        self.up = nn.ModuleList(conv(2 * w, w, 1, bias=False) for w in widths[:3])
        self.join = nn.ModuleList(
            conv(2 * w, w, 1, bias=False) if level else nn.Identity()
            for level, w in enumerate(widths[:3])
        )
        self.decoder = nn.ModuleList(
            _stage(config, dims, level, wide=level == 0) for level in range(3)
        )
        self.refinement = nn.Sequential(
            *(_block(config, dims, 0, 2 * widths[0], scan=False) for _ in range(config.refinement))
        )
        self.out = conv(2 * widths[0], task.out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) of any size -> the same, restored."""
        y = self.embed(pad_for_levels(x, 8))
        skips = []
        for level in range(4):
            y = self.encoder[level](y)
            skips.append(self.prompts[level](y))
            if level < 3:
                y = self.down[level](y)
        y = skips.pop()
        for level in (2, 1, 0):
            skip = skips.pop()
            risen = linear_upsample(self.up[level](y), skip.shape[2:])
            y = self.decoder[level](self.join[level](torch.cat([risen, skip], dim=1)))
        return x + crop_to(self.out(self.refinement(y)), x.shape[2:])


def _stage(config: Config, dims: int, level: int, *, wide: bool = False) -> nn.Sequential:
    """The blocks of one level; `wide` on twice its channels."""
    width = config.width << level + wide
    scan = config.ssm == "on" and level + 1 in config.scan_levels
    blocks = (_block(config, dims, level, width, scan=scan) for _ in range(config.blocks[level]))
    return nn.Sequential(*blocks)


def _block(config: Config, dims: int, level: int, width: int, *, scan: bool) -> Block:
    return Block(width, dims, config.heads[level], scan=scan)


def build(config: Config, task: Task) -> nn.Module:
    """The network for a task of kind "restore".

    Raises:
        WorkflowError: Other channels or another size are asked for than what comes in.
    """
    require_same_grid(task, "prompt_scan_restore")
    return PromptScanRestore(config, task)
