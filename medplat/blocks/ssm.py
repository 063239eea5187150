"""The Mamba mixer: one in-projection and out-projection around a selective scan.

Source: Gu and Dao, Mamba, arXiv 2312.00752, figure 3; several scan orders with a set of parameters
each and one gate: Zhu et al., Vision Mamba, arXiv 2401.09417, algorithm 1. Names of parameters are
those of the state-spaces/mamba package and of the models built on it, so that weights carry over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medplat_kernels import causal_conv1d_fn, mamba_inner
from medplat_kernels.scan_orders import find, names_of

SUFFIXES = ("", "_b", "_s")
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


def a_log(channels: int, states: int) -> Tensor:
    """log(1..N) in every row, (channels, N): A = -exp(A_log) starts as -1, -2 ... -N."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1)


def dt_weight(channels: int, rank: int) -> Tensor:
    """Uniform within 1 / sqrt(rank), (channels, rank): keeps the variance of dt."""
    return torch.empty(channels, rank).uniform_(-(rank**-0.5), rank**-0.5)


def dt_bias(channels: int) -> Tensor:
    """Bias (channels,) whose softplus is log-uniform between 0.001 and 0.1."""
    span = math.log(DT_MAX) - math.log(DT_MIN)
    dt = torch.exp(torch.rand(channels) * span + math.log(DT_MIN)).clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def undecayed(start: Tensor) -> nn.Parameter:
    """A parameter that optimizers give no weight decay."""
    parameter = nn.Parameter(start)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def dt_rank(channels: int) -> int:
    """Rank of the step-size projection, a sixteenth of the channels."""
    return math.ceil(channels / 16)


class MambaMixer(nn.Module):
    """Tokens to tokens, along one scan order or the sum of several.

    Each order has its own convolution, projections, A and D; the in-projection, the gate and the
    out-projection are shared. Their names end in "", "_b" and "_s" in the sequence of the orders.
    """

    def __init__(
        self,
        channels: int,
        *,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        orders: str | Sequence[str] = "raster",
        ssm: Literal["on", "off"] = "on",
    ) -> None:
        """Parameters as after Mamba's own initialisation.

        Args:
            channels: C of the tokens.
            state: N, states of a channel.
            conv: Taps of the causal depthwise convolution.
            expand: Inner channels d = expand * C.
            orders: Scan order, set of scan orders or up to three names (`medplat_kernels.ORDERS`).
            ssm: "off": the scan's output is its input, and what only the scan needs is not there.

        Raises:
            ValueError: An order is not known, or there are more than three.
        """
        super().__init__()
        self.orders, self.ssm = names_of(orders), ssm
        for name in self.orders:
            find(name)
        if len(self.orders) > len(SUFFIXES):
            raise ValueError(f"a mixer has at most {len(SUFFIXES)} scan orders, not {self.orders}")
        self.suffixes = SUFFIXES[: len(self.orders)]
        inner, rank = expand * channels, dt_rank(channels)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        for suffix in self.suffixes:
            conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
            self.add_module(f"conv1d{suffix}", conv1d)
            if ssm == "on":
                self._add_scan(suffix, inner, rank, state)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def _add_scan(self, suffix: str, inner: int, rank: int, state: int) -> None:
        dt_proj = nn.Linear(rank, inner)
        dt_proj.weight = nn.Parameter(dt_weight(inner, rank))
        dt_proj.bias = nn.Parameter(dt_bias(inner))
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * state, bias=False))
        self.add_module(f"dt_proj{suffix}", dt_proj)
        self.register_parameter(f"A{suffix}_log", undecayed(a_log(inner, state)))
        self.register_parameter(f"D{suffix}", undecayed(torch.ones(inner)))

    def forward(self, tokens: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C).

        Args:
            tokens: In raster order of their grid, whatever the scan orders.
            grid: Shape of the tokens; needed by orders other than the raster ones.
        """
        out: Tensor = self.out_proj(self.inner(self.in_proj(tokens), grid))
        return out

    def inner(self, xz: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """Between the two projections: (B, L, 2d), x then the gate z -> (B, L, d)."""
        conv = self._stacked("conv1d{}.weight"), self._stacked("conv1d{}.bias")
        if self.ssm == "off":
            return self._without_scan(xz, *conv, grid)
        return mamba_inner(
            xz,
            *conv,
            self._stacked("x_proj{}.weight"),
            self._stacked("dt_proj{}.weight"),
            -torch.exp(self._stacked("A{}_log")),
            self._stacked("D{}"),
            self._stacked("dt_proj{}.bias"),
            order=self.orders,
            grid=grid,
            layout="bld",
        )

    def _without_scan(
        self, xz: Tensor, weight: Tensor, bias: Tensor, grid: Sequence[int] | None
    ) -> Tensor:
        x, z = xz.chunk(2, -1)
        u = causal_conv1d_fn(
            x, weight.flatten(1), bias, "silu", order=self.orders, grid=grid, layout="bld"
        )
        assert isinstance(u, Tensor)
        summed = u.view(*x.shape[:-1], len(self.orders), -1).sum(-2)
        return summed * F.silu(z)

    def _stacked(self, name: str) -> Tensor:
        """A parameter of every order, one after the other along the first axis."""
        found = [self._parameter(name.format(suffix)) for suffix in self.suffixes]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _parameter(self, path: str) -> Tensor:
        module, _, name = path.rpartition(".")
        parameter: Tensor = getattr(self.get_submodule(module), name)
        return parameter
