"""The selective scan as it is defined: one loop over time, differentiated by autograd.

For tests only. Its memory and its backward pass grow with L times the number of states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.scan_orders import find, names_of


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Tensor | None = None,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    layout: str = "bdl",
) -> tuple[Tensor, Tensor]:
    """Output and last state; arguments as in `selective_scan_fn`, computed in the dtype of u."""
    if layout == "bld":
        u, delta = u.transpose(1, 2), delta.transpose(1, 2)
        z = None if z is None else z.transpose(1, 2)
        B, C = (each if each.dim() == 2 else each.movedim(1, -1) for each in (B, C))
    names, (channels, _), length = names_of(order), A.shape, u.shape[2]
    width = channels // len(names)
    u = u if u.shape[1] == channels else u.repeat(1, len(names), 1)
    B, C = (_one_row_a_channel(each, u, channels) for each in (B, C))
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    total, states = torch.zeros_like(u[:, :width]), []
    for k, name in enumerate(names):
        rows = slice(k * width, (k + 1) * width)
        seen = find(name).positions(grid or (length,)).to(u.device)
        y, state = _scan(
            u[:, rows, seen], dt[:, rows, seen], A[rows], B[:, rows][..., seen],
            C[:, rows][..., seen], None if initial_state is None else initial_state[:, rows],
        )  # fmt: skip
        if D is not None:
            y = y + D[rows, None] * u[:, rows, seen]
        total = total.index_add(2, seen, y)
        states.append(state)
    out = total if z is None else total * F.silu(z)
    return out.transpose(1, 2) if layout == "bld" else out, torch.cat(states, 1)


def _one_row_a_channel(given: Tensor, u: Tensor, channels: int) -> Tensor:
    """B or C as (Bt, channels, N, L)."""
    if given.dim() == 2:
        return given[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    given = given.unsqueeze(1) if given.dim() == 3 else given
    return given.repeat_interleave(channels // given.shape[1], dim=1)


def _scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(*(each.unbind(-1) for each in (u, dt, B, C)), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t
        outputs.append((C_t * h).sum(-1))
    return (torch.stack(outputs, -1) if outputs else torch.zeros_like(u)), h
