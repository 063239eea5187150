"""SS2D: a selective scan over an image along its rows and its columns, both ways.

Source: Liu et al., VMamba, arXiv 2401.10166, section 4.2 (cross-scan, SS2D block). Names and shapes
of the parameters are those of VMamba and of the models built on it, so that weights carry over.
Maps are channels-last here, (B, H, W, C): no tensor is permuted or flipped around the scan.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medplat.blocks.ssm import a_log, dt_bias, dt_rank, dt_weight, undecayed
from medplat_kernels import selective_scan_fn

Switch = Literal["on", "off"]
DIRECTIONS = 4


class SS2D(nn.Module):
    """In-projection, 3x3 depthwise convolution, four scans summed, norm, gate, out-projection."""

    def __init__(
        self,
        channels: int,
        *,
        state: int = 16,
        expand: float = 2.0,
        gate: bool = True,
        conv_bias: bool = True,
        ssm: Switch = "on",
    ) -> None:
        """Parameters as after Mamba's own initialisation.

        Args:
            channels: C of the map.
            state: N, states of a channel.
            expand: Inner channels d = int(expand * C).
            gate: Version 0 of VMamba; without it the in-projection has half the rows (version 2).
            conv_bias: Of the depthwise convolution; False in version 2.
            ssm: "off": the scans' sum is their input, and what only the scans need is not there.
        """
        super().__init__()
        self.gate, self.ssm = gate, ssm
        inner, rank = int(expand * channels), dt_rank(channels)
        self.in_proj = nn.Linear(channels, (1 + gate) * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        if ssm == "on":
            self._add_scan(inner, rank, state)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def _add_scan(self, inner: int, rank: int, state: int) -> None:
        four, rows = DIRECTIONS * inner, rank + 2 * state
        self.x_proj_weight = nn.Parameter(
            torch.empty(DIRECTIONS, rows, inner).uniform_(-(inner**-0.5), inner**-0.5)
        )
        self.dt_projs_weight = nn.Parameter(dt_weight(four, rank).view(DIRECTIONS, inner, rank))
        self.dt_projs_bias = nn.Parameter(dt_bias(four).view(DIRECTIONS, inner))
        self.A_logs = undecayed(a_log(four, state))
        self.Ds = undecayed(torch.ones(four))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.in_proj(x)
        z = None
        if self.gate:
            x, z = x.chunk(2, -1)
        u = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.out_norm(u if self.ssm == "off" else self.scan(u))
        out: Tensor = self.out_proj(y if z is None else y * F.silu(z))
        return out

    def scan(self, u: Tensor) -> Tensor:
        """The four scans and their sum: (B, H, W, d) -> (B, H, W, d), at least float32.

        Each direction has its own step sizes, B and C, computed from the tokens at their place;
        the scan itself, its state and its parameters are float32 under any autocast.
        """
        tokens = u.flatten(1, 2)
        rank, states = self.dt_projs_weight.shape[-1], self.A_logs.shape[-1]
        projected = torch.unflatten(
            F.linear(tokens, self.x_proj_weight.flatten(0, 1)), -1, (DIRECTIONS, -1)
        )
        dt, b, c = torch.split(projected, [rank, states, states], -1)
        delta = torch.einsum("blkr,kdr->blkd", dt, self.dt_projs_weight).flatten(2)
        wide = torch.promote_types(u.dtype, torch.float32)
        y = selective_scan_fn(
            tokens.to(wide),
            delta.to(wide),
            -torch.exp(self.A_logs.to(wide)),
            b.to(wide),
            c.to(wide),
            self.Ds,
            delta_bias=self.dt_projs_bias.flatten(),
            delta_softplus=True,
            order="cross2d",
            grid=u.shape[1:3],
            layout="bld",
        )
        assert isinstance(y, Tensor)
        return y.view(u.shape)


class VSSBlock(nn.Module):
    """x + drop_path(SS2D(LayerNorm(x))): VMamba's first block, without a feed-forward part."""

    def __init__(
        self,
        channels: int,
        *,
        state: int = 16,
        expand: float = 2.0,
        drop_path: float = 0.0,
        ssm: Switch = "on",
    ) -> None:
        """Args as those of SS2D; `drop_path` is the chance that a case skips the branch."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels)
        self.self_attention = SS2D(channels, state=state, expand=expand, ssm=ssm)
        self.drop_path = drop_path_of(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        out: Tensor = x + self.drop_path(self.self_attention(self.ln_1(x)))
        return out


def drop_path_of(chance: float) -> nn.Module:
    """Stochastic depth (Huang et al., arXiv 1603.09382): a case's branch is dropped by chance."""
    if not chance:
        return nn.Identity()
    from monai.networks.layers import DropPath  # seconds that `medplat check` does not need

    return DropPath(chance)  # type: ignore[no-any-return]
