"""The causal convolution in PyTorch operations: conv1d forward, one product a tap backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder


def can_run(
    x: Tensor, weight: Tensor, orders: tuple[ScanOrder, ...], *, raise_error: bool = False
) -> Verdict:
    """Any device, width, order and real floating-point dtype."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return verdict(None if x.dtype in dtypes else f"no convolution of {x.dtype}", raise_error)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, *, silu: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
) -> Tensor:  # fmt: skip
    """See the contract in the package's docstring."""
    parts = []
    for k, order in enumerate(orders):
        seen = _in_order(x.transpose(1, 2) if channels_last else x, order, grid).to(weight.dtype)
        y = _before_activation(seen, *_rows(k, seen.shape[1], weight, bias, initial_states))
        parts.append(_to_raster(F.silu(y) if silu else y, order, grid).to(x.dtype))
    out = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    return (out.transpose(1, 2) if channels_last else out).contiguous()


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_states: Tensor | None, *, silu: bool, orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...], channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See the contract in the package's docstring."""
    if channels_last:
        grad_out, x = grad_out.transpose(1, 2), x.transpose(1, 2)
    width, (_, taps) = x.shape[1], weight.shape
    dx = torch.zeros_like(x, dtype=weight.dtype)
    dweights, dbiases, dstates = [], [], []
    for k, order in enumerate(orders):
        own = _rows(k, width, weight, bias, initial_states)
        grad = _in_order(grad_out[:, k * width : (k + 1) * width], order, grid).to(weight.dtype)
        seen = _in_order(x, order, grid).to(weight.dtype)
        if silu:
            y = _before_activation(seen, *own)
            gate = torch.sigmoid(y)
            grad = grad * gate * (1 + y * (1 - gate))
        dpadded, dweight = _taps_backward(grad, _padded(seen, taps, own[2]), own[0])
        dx += _to_raster(dpadded[:, :, taps - 1 :], order, grid)
        dweights.append(dweight)
        dbiases.append(grad.sum((0, 2)))
        dstates.append(dpadded[:, :, : taps - 1])
    dx = (dx.transpose(1, 2) if channels_last else dx).to(x.dtype).contiguous()
    dbias = None if bias is None else torch.cat(dbiases)
    dinitial = None if initial_states is None else torch.cat(dstates, 1).contiguous()
    return dx, torch.cat(dweights), dbias, dinitial


def _rows(
    k: int, width: int, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The share of order k in the parameters."""
    rows = slice(k * width, (k + 1) * width)
    states = None if initial_states is None else initial_states[:, rows]
    return weight[rows], None if bias is None else bias[rows], states


def _before_activation(
    seen: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor | None
) -> Tensor:
    length, taps = seen.shape[2], weight.shape[1]
    if states is None:
        padding = taps - 1
    else:
        seen, padding = _padded(seen, taps, states), 0
    y = F.conv1d(seen, weight[:, None], bias, padding=padding, groups=weight.shape[0])
    return y[..., :length]


def _padded(seen: Tensor, taps: int, states: Tensor | None) -> Tensor:
    return F.pad(seen, (taps - 1, 0)) if states is None else torch.cat((states, seen), 2)


def _taps_backward(grad: Tensor, padded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the padded input (Bt, D, W - 1 + L) and of the weight (D, W)."""
    length, taps = grad.shape[2], weight.shape[1]
    dpadded, dweight = torch.zeros_like(padded), torch.empty_like(weight)
    for tap in range(taps):
        window = slice(tap, tap + length)
        dpadded[:, :, window].addcmul_(weight[:, tap, None], grad)
        dweight[:, tap] = (grad * padded[:, :, window]).sum((0, 2))
    return dpadded, dweight


def _in_order(tokens: Tensor, order: ScanOrder, grid: tuple[int, ...]) -> Tensor:
    """(Bt, D, L) at raster positions, as the order visits it."""
    if order.name == "raster":
        return tokens
    return tokens[:, :, order.positions(grid).to(tokens.device)]


def _to_raster(tokens: Tensor, order: ScanOrder, grid: tuple[int, ...]) -> Tensor:
    """The inverse of `_in_order`."""
    if order.name == "raster":
        return tokens
    return tokens[:, :, order.inverse(grid).to(tokens.device)]
