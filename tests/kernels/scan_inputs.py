"""Fresh inputs of a selective scan, and the cases that its tests run over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medplat_kernels import scan_orders


@dataclass(frozen=True)
class Case:
    """One shape and set of options; `dt` is the mean step size the inputs are drawn for."""

    batch: int = 2
    width: int = 20
    length: int = 65
    states: int = 4
    groups: int = 1
    order: str = "raster"
    grid: tuple[int, ...] | None = None
    own_u: bool = False
    layout: str = "bdl"
    without: tuple[str, ...] = ()
    softplus: bool = True
    dt: float = 0.05
    decay: float = 4.0

    def __str__(self) -> str:
        plain = Case()
        changed = {k: v for k, v in vars(self).items() if v != getattr(plain, k)}
        return ",".join(f"{k}={v}" for k, v in changed.items()).replace(" ", "") or "plain"

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "delta_softplus": self.softplus,
            "order": self.order,
            "grid": self.grid,
            "layout": self.layout,
        }

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """float64 tensors by argument name; z is a view of a chunk, u a transposed view."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        count = len(scan_orders.names_of(self.order))
        channels, length = count * self.width, self.length
        u_width = channels if self.own_u else self.width
        # dt comes out around its mean whether or not it goes through the softplus.
        raw = math.log(math.expm1(self.dt)) if self.softplus else self.dt
        spread = 1.0 if self.softplus else self.dt / 4
        # As a Mamba block starts: A is -1 .. -N, so that in strong decay every state forgets.
        rates = torch.arange(1, self.states + 1).double() / self.states
        drawn = {
            "u": normal(length, self.batch, u_width).permute(1, 2, 0),
            "delta": raw + spread * normal(self.batch, channels, length),
            "A": -self.decay * rates * (0.75 + uniform(channels, self.states) / 2),
            "B": normal(self.batch, count * self.groups, self.states, length),
            "C": normal(self.batch, count * self.groups, self.states, length),
            "D": normal(channels),
            "z": normal(self.batch, 2 * self.width, length).chunk(2, 1)[1],
            "delta_bias": spread * normal(channels) / 2,
            "initial_state": normal(self.batch, channels, self.states),
        }
        if self.layout == "bld":
            drawn |= {name: drawn[name].transpose(1, 2) for name in ("u", "delta", "z")}
            drawn |= {name: drawn[name].movedim(-1, 1) for name in ("B", "C")}
        return {name: tensor for name, tensor in drawn.items() if name not in self.without}


def typed(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Leaves in the dtypes of a call: A, D, bias and state wide, the rest in `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kept = ("A", "D", "delta_bias", "initial_state")
    return {
        name: tensor.to(wide if name in kept else dtype).requires_grad_()
        for name, tensor in inputs.items()
    }


CASES = [
    Case(length=1, width=1, states=1),
    Case(length=2, width=16, states=8, groups=2),
    Case(length=63, width=24, states=6, groups=4),
    Case(length=64, width=20, states=16),
    Case(length=65, width=96, states=1, groups=2),
    Case(length=127, width=32, states=4, groups=2, batch=1),
    Case(length=372, width=20, states=16, groups=1),
    Case(length=2049, width=16, states=4, batch=1),
    Case(length=70, width=5, states=64),
    Case(length=66, width=17, states=3, layout="bld"),
    Case(length=130, width=48, states=8, groups=2, layout="bld"),
    Case(without=("D",)),
    Case(without=("z",), width=33),
    Case(without=("delta_bias",)),
    Case(without=("D", "z", "delta_bias", "initial_state")),
    Case(softplus=False),
    Case(softplus=False, without=("D", "z", "delta_bias", "initial_state"), layout="bld"),
    Case(length=200, width=20, states=16, dt=0.7, decay=16),
    Case(length=200, width=20, states=16, dt=4.0, decay=16),
    Case(length=372, width=20, states=16, dt=21.0, decay=16, groups=2),
    Case(length=130, dt=1e-6),
    Case(length=130, dt=25.0, decay=0.02),
]

ORDER_CASES = [
    Case(order="raster_reversed", length=129),
    Case(order="raster_reversed", length=129, layout="bld", groups=2),
    Case(order="column", grid=(7, 13), length=91),
    Case(order="column", grid=(66, 3), length=198, layout="bld"),
    Case(order="column_reversed", grid=(5, 27), length=135, width=16),
    Case(order="column", grid=(64, 37), length=2368, width=18, groups=2, batch=1),
    Case(order="column_reversed", grid=(6, 83), length=498, width=33, states=17, batch=1),
    Case(order="inter_slice", grid=(3, 5, 7), length=105),
    Case(order="inter_slice", grid=(12, 5, 9), length=540, without=("z", "initial_state")),
    Case(order="inter_slice", grid=(17, 4, 3), length=204, layout="bld", width=33),
    Case(order="inter_slice_legacy(8)", grid=(6, 4, 5), length=120),
    Case(order="strided(5)", grid=(75,), length=75),
    Case(order="bi", length=67),
    Case(order="bi", length=67, own_u=True, layout="bld"),
    Case(order="cross2d", grid=(9, 7), length=63),
    Case(order="cross2d", grid=(10, 37), length=370, width=18),
    Case(order="cross2d", grid=(9, 15), length=135, width=16, states=1, layout="bld"),
    Case(order="tri3d", grid=(3, 5, 7), length=105, own_u=True, width=24),
    Case(order="tri3d", grid=(5, 4, 5), length=100, own_u=True, layout="bld", groups=2),
    Case(order="tri3d", grid=(7, 2, 11), length=154, without=("z", "D", "initial_state")),
]
