"""The causal convolution on CPU: numba with explicit vectors, any order, layout and dtype."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medplat_kernels import pool
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder

# Products of a weight and a number that one worker does in about 0.2 ms.
LEAST_PRODUCTS = 1_000_000
MOST_TAPS = 64


def can_run(
    x: Tensor, weight: Tensor, orders: tuple[ScanOrder, ...], *, raise_error: bool = False
) -> Verdict:
    """Whether this backend can run a call; see the contract in the package's docstring."""
    reason = None
    if importlib.util.find_spec("numba") is None:
        reason = "numba is not installed: pip install numba"
    elif x.device.type != "cpu":
        reason = f"the numba convolution runs on CPU, the tensors are on {x.device.type}"
    elif not _has_kind(x.dtype):
        reason = f"the numba convolution computes in float32 and can't take {x.dtype} on this CPU"
    elif weight.shape[1] > MOST_TAPS:
        reason = f"the numba convolution has at most {MOST_TAPS} taps, not {weight.shape[1]}"
    return verdict(reason, raise_error)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, *, silu: bool,
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool,
) -> Tensor:  # fmt: skip
    """See the contract in the package's docstring."""
    from .numba_kernels import forward_kernel

    batch, rows = x.shape[0], weight.shape[0]
    shape = (batch, x.shape[1], rows) if channels_last else (batch, rows, x.shape[2])
    out = x.new_empty(shape)
    tensors = (x, weight, bias, initial_states, out, None, None, None, None)
    call = _call(tensors, len(orders), channels_last, silu, x.dtype)
    _run(forward_kernel, call, _shares(call), orders, grid, lambda share: share[:4])
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    initial_states: Tensor | None, *, silu: bool, orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...], channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See the contract in the package's docstring."""
    from .numba_kernels import backward_kernel

    # Orders add to dx one after another: in float32 until all have.
    dx = torch.empty_like(x, dtype=x.dtype if len(orders) == 1 else torch.float32)
    dinitial = None if initial_states is None else torch.empty_like(initial_states)
    tensors = (x, weight, bias, initial_states, grad_out, dx, None, None, dinitial)
    call = _call(tensors, len(orders), channels_last, silu, dx.dtype)
    shares = _shares(call)
    parts = shares[-1].part_of_batch + 1
    dweight = weight.new_zeros(parts, *weight.shape)
    dbias = None if bias is None else bias.new_zeros(parts, *bias.shape)
    call = call._replace(dweight=dweight.data_ptr(), dbias=_address(dbias))
    _run(backward_kernel, call, shares, orders, grid, lambda share: share[:5])
    total = None if dbias is None else dbias.sum(0)
    return dx.to(x.dtype), dweight.sum(0), total, dinitial


def _has_kind(dtype: torch.dtype) -> bool:
    from medplat_kernels.vector_memory import KINDS

    return dtype in KINDS


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _call(
    tensors: tuple[Tensor | None, ...], orders: int, channels_last: bool, silu: bool,
    dx_dtype: torch.dtype,
) -> Any:  # fmt: skip
    """The call as the kernels take it."""
    from medplat_kernels.vector_memory import KINDS

    from .numba_kernels import Convolution

    x, weight = tensors[:2]
    assert x is not None
    assert weight is not None
    rows, taps = weight.shape
    length = x.shape[1 if channels_last else 2]
    sizes = (x.shape[0], orders, rows // orders, taps, length, KINDS[x.dtype], KINDS[dx_dtype])
    return Convolution._make((*map(_address, tensors), *sizes, int(channels_last), int(silu)))


def _shares(call: Any) -> list[pool.Share]:
    from medplat_kernels.vectors import LANES

    work = call.batch * call.orders * call.channels * call.length * call.taps
    return pool.shares(call.batch, -(-call.channels // LANES), work, LEAST_PRODUCTS)


def _run(
    kernel: Callable[..., None], call: Any, shares: list[pool.Share],
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...],
    arguments: Callable[[pool.Share], tuple[int, ...]],
) -> None:  # fmt: skip
    from medplat_kernels.vector_tiles import STEPS

    from .numba_kernels import scratch_size

    walks = np.array([(*each.walk(grid), each.reverse) for each in orders], dtype=np.int64)
    scratch = torch.empty(len(shares), scratch_size(call.taps))

    def work(worker: int) -> None:
        places, memory = np.empty(STEPS, np.int64), scratch[worker].data_ptr()
        kernel(call, walks, places, memory, *arguments(shares[worker]))

    pool.run(work, len(shares))
