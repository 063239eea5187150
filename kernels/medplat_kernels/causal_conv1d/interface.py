"""The public function of the convolution: checks of its arguments, and the operator's call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medplat_kernels import dispatch, scan_orders

from .ops import causal_conv1d_forward


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    layout: str = "bdl",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution over L tokens, along one or several scan orders.

    Args:
        x: (Bt, D, L); (Bt, L, D) for `layout="bld"`.
        weight: (K*D, W) for K orders; the last tap meets the present token.
        bias: (K*D,).
        activation: None or "silu".
        initial_states: (Bt, K*D, W - 1), the tokens before the first, zero unless given.
        return_final_states: Also return the last W - 1 tokens that each order saw.
        order: Name of a scan order or of a set of them, or a sequence of names.
        grid: Shape that the L tokens come from; needed by orders other than the raster ones.
        layout: "bdl", channels first, or "bld", channels last.
        backend: "numba", "triton" or "torch"; the first that can run it unless given.

    Returns:
        (Bt, K*D, L), (Bt, L, K*D) for `bld`, in the dtype of x; with `return_final_states` also
        (Bt, K*D, W - 1).

    Raises:
        ValueError: Shapes, order and grid do not go together.
        BackendError: The backend asked for can't run this call.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    channels_last = scan_orders.is_channels_last(layout)
    if x.dim() != 3 or not x.dtype.is_floating_point:
        raise ValueError(f"x must be real with three axes, got {x.dtype} {tuple(x.shape)}")
    names = scan_orders.names_of(order)
    tokens = scan_orders.checked_grid(names, grid, x.shape[1 if channels_last else 2])
    channels = x.shape[2 if channels_last else 1] * len(names)
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(f"weight must be ({channels}, width), got {tuple(weight.shape)}")
    before = (x.shape[0], channels, weight.shape[1] - 1)
    for name, given, shape in (
        ("bias", bias, (channels,)),
        ("initial_states", initial_states, before),
    ):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, x = weight.to(wide).contiguous(), x.contiguous()
    bias, states = (
        None if each is None else each.to(wide).contiguous() for each in (bias, initial_states)
    )
    out: Tensor = causal_conv1d_forward(
        x, weight, bias, states, activation == "silu", ",".join(names), tokens, channels_last,
        dispatch.asked(backend),
    )  # fmt: skip
    if not return_final_states:
        return out
    seen = x.transpose(1, 2) if channels_last else x
    return out, _final_states(seen, initial_states, before, names, tokens)


def _final_states(
    x: Tensor,
    initial: Tensor | None,
    shape: tuple[int, int, int],
    names: tuple[str, ...],
    grid: list[int],
) -> Tensor:
    """The last W - 1 tokens of [initial, x], each order's in its own sequence."""
    kept, width = shape[2], x.shape[1]
    before = x.new_zeros(shape) if initial is None else initial.to(x.dtype)
    parts = []
    for k, name in enumerate(names):
        last = scan_orders.find(name).positions(grid)[max(0, x.shape[2] - kept) :]
        joined = torch.cat((before[:, k * width : (k + 1) * width], x[:, :, last.to(x.device)]), 2)
        parts.append(joined[:, :, joined.shape[2] - kept :])
    return torch.cat(parts, 1)


def example(device: str) -> tuple[Tensor, Tensor, tuple[scan_orders.ScanOrder, ...]]:
    """What `can_run` takes, of a small call."""
    x, weight = torch.zeros(1, 16, 64, device=device), torch.zeros(16, 4, device=device)
    return x, weight, (scan_orders.find("raster"),)
