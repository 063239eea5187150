"""The public function: checks of its arguments, and the operator's call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medplat_kernels import dispatch, scan_orders

from .ops import mamba_inner_forward


def mamba_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    delta_softplus: bool = True,
    layout: str = "bdl",
    backend: str | None = None,
) -> Tensor:
    """Convolution, projections, scan and gate, along one or several scan orders, without out_proj.

    With K orders each parameter holds those of the orders one after the other along its first
    axis; the outputs are summed (SegMamba's three, a bidirectional block).

    Args:
        xz: (Bt, 2D, L), x then z, at raster positions; (Bt, L, 2D) for `layout="bld"`.
        conv1d_weight: (K*D, W) or (K*D, 1, W).
        conv1d_bias: (K*D,) or None.
        x_proj_weight: (K*(R + 2N), D), rows dt, B, C of each order.
        dt_proj_weight: (K*D, R).
        A: (K*D, N), real, negative.
        D: (K*D,) weight of the skip.
        delta_bias: (K*D,).
        order: Name of a scan order or of a set of them, or a sequence of names.
        grid: Shape that the L tokens come from; needed by orders other than the raster ones.
        delta_softplus: Apply softplus to delta + delta_bias.
        layout: "bdl", channels first, or "bld", channels last.
        backend: Backend of convolution and scan; the first that can run each unless given.

    Returns:
        (Bt, D, L), or (Bt, L, D), in the dtype of xz.

    Raises:
        ValueError: Shapes, order and grid do not go together.
        BackendError: The backend asked for can't run this call.
    """
    channels_last, names = scan_orders.is_channels_last(layout), scan_orders.names_of(order)
    if xz.dim() != 3 or not xz.dtype.is_floating_point:
        raise ValueError(f"xz must be real with three axes, got {xz.dtype} {tuple(xz.shape)}")
    length, double = (xz.shape[1], xz.shape[2]) if channels_last else (xz.shape[2], xz.shape[1])
    tokens = scan_orders.checked_grid(names, grid, length)
    conv1d_weight = conv1d_weight.squeeze(1) if conv1d_weight.dim() == 3 else conv1d_weight
    channels = len(names) * (double // 2)
    if double % 2 or A.dim() != 2 or A.shape[0] != channels or A.is_complex():
        raise ValueError(f"A must be real, ({channels}, N), got {A.dtype} {tuple(A.shape)}")
    if x_proj_weight.dim() != 2 or dt_proj_weight.dim() != 2:
        raise ValueError(
            f"x_proj_weight and dt_proj_weight must have two axes, got "
            f"{tuple(x_proj_weight.shape)} and {tuple(dt_proj_weight.shape)}"
        )
    rows = len(names) * (dt_proj_weight.shape[1] + 2 * A.shape[1])
    for name, given, shape in (
        ("conv1d_weight", conv1d_weight, (channels, conv1d_weight.shape[-1])),
        ("conv1d_bias", conv1d_bias, (channels,)),
        ("x_proj_weight", x_proj_weight, (rows, double // 2)),
        ("dt_proj_weight", dt_proj_weight, (channels, dt_proj_weight.shape[-1])),
        ("D", D, (channels,)),
        ("delta_bias", delta_bias, (channels,)),
    ):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")
    wide = torch.float64 if xz.dtype == torch.float64 else torch.float32
    conv1d_weight, A = conv1d_weight.to(wide).contiguous(), A.to(wide).contiguous()
    conv1d_bias, D, delta_bias = (
        None if each is None else each.to(wide).contiguous()
        for each in (conv1d_bias, D, delta_bias)
    )
    lowered = _projection_dtype(xz)
    x_proj_weight, dt_proj_weight = (
        each.to(lowered).contiguous() for each in (x_proj_weight, dt_proj_weight)
    )
    tensors = (
        xz.contiguous(), conv1d_weight, conv1d_bias, x_proj_weight, dt_proj_weight, A, D,
        delta_bias,
    )  # fmt: skip
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out: Tensor = mamba_inner_forward(
        *tensors, delta_softplus, ",".join(names), tokens, channels_last, save,
        dispatch.asked(backend),
    )[0]  # fmt: skip
    return out


def _projection_dtype(xz: Tensor) -> torch.dtype:
    """The dtype of the projections: autocast's where it is on, else that of xz."""
    if xz.dtype != torch.float64 and torch.is_autocast_enabled(xz.device.type):
        return torch.get_autocast_dtype(xz.device.type)
    return xz.dtype
