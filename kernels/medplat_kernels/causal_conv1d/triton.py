"""The causal convolution on GPUs, by the kernels of `triton_kernels`; triton is imported late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder
from medplat_kernels.selective_scan.triton import MOST_BATCHES, on_device, walk
from medplat_kernels.triton_device import refusal

WIDEST = 8


def can_run(
    x: Tensor, weight: Tensor, orders: tuple[ScanOrder, ...], *, raise_error: bool = False
) -> Verdict:
    """float32, bfloat16 and float16 on a GPU of compute capability 8.0, up to 8 taps."""
    return verdict(refusal(x) or _too_large(x, weight), raise_error)


def _too_large(x: Tensor, weight: Tensor) -> str | None:
    if weight.shape[1] > WIDEST:
        return f"the triton convolution takes {WIDEST} taps, got {weight.shape[1]}"
    if x.shape[0] > MOST_BATCHES:
        return f"the triton convolution takes {MOST_BATCHES} batch entries, got {x.shape[0]}"
    if max(weight.shape[0], 2) * max(x.shape[1:]) >= 2**31:
        return "the triton convolution takes fewer than 2^31 elements a batch entry"
    return None


def constants(channels_last: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Channels and steps of a program, neighbours in memory the more, and compiler options."""
    sizes = {"CHANNELS": 32, "STEPS": 16} if channels_last else {"CHANNELS": 2, "STEPS": 256}
    return sizes, {"num_warps": 4}


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, *, silu: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
) -> Tensor:  # fmt: skip
    """See the contract in the package's docstring."""
    from . import triton_kernels as kernels

    batches, length, channels = _shape(x, channels_last)
    every = weight.shape[0]
    shape = (batches, length, every) if channels_last else (batches, every, length)
    out = x.new_empty(shape)
    with on_device(x.device):
        for own, rules in _orders(orders, grid, channels, channels_last):
            kernels.causal_conv1d_forward_kernel[_programs(rules, channels, length, batches)](
                x=x, weight=weight[own], bias=_rows(bias, own), states=_states(initial_states, own),
                out=out[:, :, own] if channels_last else out[:, own], length=length,
                channels=channels, all_channels=every, TAPS=weight.shape[1], SILU=silu, **rules,
            )  # fmt: skip
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_states: Tensor | None, *, silu: bool, orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...], channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See the contract in the package's docstring."""
    from . import triton_kernels as kernels

    batches, length, channels = _shape(x, channels_last)
    every, taps = weight.shape
    dx = torch.empty_like(x, dtype=x.dtype if len(orders) == 1 else torch.float32)
    dstates = None if initial_states is None else torch.empty_like(initial_states)
    tiles = -(-(length + taps - 1) // constants(channels_last)[0]["STEPS"])
    dweight = weight.new_empty((batches, tiles, every, taps))
    dbias = None if bias is None else weight.new_empty((batches, tiles, every))
    with on_device(x.device):
        for own, rules in _orders(orders, grid, channels, channels_last):
            programs = _programs(rules, channels, length + taps - 1, batches)
            kernels.causal_conv1d_backward_kernel[programs](
                grad_out=grad_out[:, :, own] if channels_last else grad_out[:, own], x=x,
                weight=weight[own], bias=_rows(bias, own), states=_states(initial_states, own),
                dx=dx, dweight=dweight[:, :, own],
                dbias=None if dbias is None else dbias[:, :, own],
                dstates=_states(dstates, own), length=length, channels=channels,
                all_channels=every, TAPS=taps, SILU=silu, ADD=own.start > 0, **rules,
            )  # fmt: skip
    return (
        dx.to(x.dtype), dweight.sum((0, 1)), None if dbias is None else dbias.sum((0, 1)), dstates
    )  # fmt: skip


def _shape(x: Tensor, channels_last: bool) -> tuple[int, int, int]:
    """Batch, length, channels."""
    batches, length, channels = x.shape if channels_last else x.transpose(1, 2).shape
    return batches, length, channels


def _orders(
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels: int, channels_last: bool
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """For each order its channels and the arguments of a launch that depend on it."""
    sizes, options = constants(channels_last)
    for k, order in enumerate(orders):
        rows, columns = order.walk(grid)
        yield slice(k * channels, (k + 1) * channels), {
            "walk": walk(rows, columns), "WALK": min(rows, columns) > 1, "REVERSED": order.reverse,
            "LAST": channels_last, "enable_fp_fusion": True, **sizes, **options,
        }  # fmt: skip


def _programs(
    rules: dict[str, Any], channels: int, steps: int, batches: int
) -> tuple[int, int, int]:
    return -(-steps // rules["STEPS"]), -(-channels // rules["CHANNELS"]), batches


def _rows(vector: Tensor | None, own: slice) -> Tensor | None:
    return None if vector is None else vector[own]


def _states(states: Tensor | None, own: slice) -> Tensor | None:
    return None if states is None else states[:, own]
