"""The selective scan on CPU: numba with explicit vectors, threads of our own.

Batch entries and channel tiles are shared out over the workers; nothing is updated by two of
them, so a result may depend on the number of threads in its last bits and never on their timing.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medplat_kernels import pool
from medplat_kernels.dispatch import Verdict, verdict
from medplat_kernels.scan_orders import ScanOrder

from .ops import CHECKPOINT_STEPS, checkpoint_size

# States that one worker advances in about 0.2 ms.
LEAST_STATES = 500_000


def can_run(u: Tensor, A: Tensor, groups: int, *, raise_error: bool = False) -> Verdict:
    """Whether this backend can run a call; see the contract in the package's docstring."""
    reason = None
    if importlib.util.find_spec("numba") is None:
        reason = "numba is not installed: pip install numba"
    elif u.device.type != "cpu":
        reason = f"the numba scan runs on CPU, the tensors are on {u.device.type}"
    elif not _has_kind(u.dtype):
        reason = f"the numba scan computes in float32 and can't take {u.dtype} on this CPU"
    return verdict(reason, raise_error)


def _has_kind(dtype: torch.dtype) -> bool:
    from medplat_kernels.vector_memory import KINDS

    return dtype in KINDS


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _shares(scan: Any) -> list[pool.Share]:
    from medplat_kernels.vectors import LANES

    tiles = scan.groups * -(-scan.channels // scan.groups // LANES)
    work = scan.batch * scan.orders * scan.channels * scan.states * scan.length
    return pool.shares(scan.batch, tiles, work, LEAST_STATES)


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, out: Tensor | None,
    checkpoints: Tensor, last_state: Tensor | None, out_dtype: torch.dtype,
    delta_softplus: bool, orders: int, room: int, channels_last: bool,
) -> Any:  # fmt: skip
    """The call as the kernels take it."""
    from medplat_kernels.vector_memory import KINDS

    from .numba_tiles import Scan

    batch, channels = u.shape[0], A.shape[0] // orders
    length, given = u.shape[1:] if channels_last else u.shape[:0:-1]
    groups = B.shape[2 if channels_last else 1] // orders
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, out, checkpoints, last_state)
    sizes = (batch, orders, channels, groups, A.shape[1], length, KINDS[u.dtype], KINDS[out_dtype])
    switches = (delta_softplus, channels_last, given == channels, room)
    return Scan._make((*map(_address, tensors), *sizes, *map(int, switches)))


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    *,
    delta_softplus: bool,
    orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...],
    channels_last: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, checkpoints (empty unless `save`) and last state; see the package's docstring."""
    from .numba_forward import forward_kernel, scratch_size

    batch, (rows, states) = u.shape[0], A.shape
    length = u.shape[1 if channels_last else 2]
    width = rows // len(orders)
    # Orders add to the output one after another: in float32, whatever it becomes in the end.
    kept = out_dtype if len(orders) == 1 else torch.float32
    shape = (batch, length, width) if channels_last else (batch, width, length)
    out = torch.empty(shape, dtype=kept)
    checkpoints = torch.empty(checkpoint_size(batch, rows, states, length) if save else 0)
    last_state = torch.empty(batch, rows, states)
    walks, room = _walks(orders, grid, channels_last)
    scan = _scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, out, checkpoints, last_state, kept,
        delta_softplus, len(orders), room, channels_last,
    )  # fmt: skip
    shares = _shares(scan)
    scratch, memory = _scratch(_largest(scratch_size, scan, shares), len(shares))

    def work(worker: int) -> None:
        places = np.empty(CHECKPOINT_STEPS, np.int64)
        forward_kernel(scan, walks, places, memory[worker], *shares[worker][:4])

    pool.run(work, len(shares))
    del scratch
    return out.to(out_dtype), checkpoints, last_state


@functools.lru_cache(256)
def _walks(
    orders: tuple[ScanOrder, ...], grid: tuple[int, ...], channels_last: bool
) -> tuple[Any, int]:
    """Of each order rows, columns, direction and steps of a band, int64 (orders, 4).

    And the steps of the largest tile.
    """
    from medplat_kernels.vector_tiles import band_steps

    walks = [(*each.walk(grid), each.reverse) for each in orders]
    bands = [band_steps(*one[:2], channels_last) for one in walks]
    rows = [(*one, band) for one, band in zip(walks, bands, strict=True)]
    return np.array(rows, dtype=np.int64), max(CHECKPOINT_STEPS, *bands)


def _largest(size: Callable[[Any, int], int], scan: Any, shares: list[pool.Share]) -> int:
    """float32s of scratch that every worker gets: whole cache lines."""
    tiles = max(share.last_tile - share.first_tile for share in shares)
    return -(-size(scan, tiles) // 16) * 16


def backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    *,
    delta_softplus: bool,
    orders: tuple[ScanOrder, ...],
    grid: tuple[int, ...],
    channels_last: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of u ... initial_state, None for absent ones; see the package's docstring."""
    from medplat_kernels.vector_memory import KINDS

    from .numba_backward import backward_kernel, scratch_size
    from .numba_tiles import Gradients

    walks, room = _walks(orders, grid, channels_last)
    scan = _scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, None, checkpoints, None,
        grad_out.dtype, delta_softplus, len(orders), room, channels_last,
    )  # fmt: skip
    shares = _shares(scan)
    over_batch, over_tiles = shares[-1].part_of_batch + 1, shares[-1].part_of_tiles + 1
    # What several orders add to is float32 until all have.
    gathered = torch.float32 if len(orders) > 1 else u.dtype
    du = torch.empty_like(u, dtype=gathered if scan.shared else u.dtype)
    dz = None if z is None else torch.empty_like(z, dtype=gathered)
    ddelta = torch.empty_like(delta)
    dstate = None if initial_state is None else torch.empty_like(initial_state)
    dA, dD, dbias = (
        None if each is None else torch.zeros(over_batch, *each.shape)
        for each in (A, D, delta_bias)
    )
    dB, dC = (torch.zeros(over_tiles, *each.shape) for each in (B, C))
    tensors = (grad_out, grad_last_state, du, ddelta, dA, dB, dC, dD, dz, dbias, dstate)
    grad = Gradients._make((*map(_address, tensors), KINDS[du.dtype], KINDS[gathered]))
    scratch, memory = _scratch(_largest(scratch_size, scan, shares), len(shares))

    def work(worker: int) -> None:
        places = np.empty(CHECKPOINT_STEPS, np.int64)
        backward_kernel(scan, grad, walks, places, memory[worker], *shares[worker])

    pool.run(work, len(shares))
    del scratch
    return (
        _as(du, u), ddelta, _total(dA), _as(_total(dB), B), _as(_total(dC), C),
        _total(dD), _as(dz, u), _total(dbias), dstate,
    )  # fmt: skip


def _scratch(size: int, count: int) -> tuple[Tensor, range]:
    """Memory for `count` workers, `size` float32s each, and the address of every part."""
    memory, first = torch.empty(count * size), 4 * size
    return memory, range(memory.data_ptr(), memory.data_ptr() + count * first, first)


def _as(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == like.dtype else tensor.to(like.dtype)


def _total(parts: Tensor | None) -> Tensor | None:
    """Sum of the workers' parts, in their order, in the memory of the first."""
    if parts is None:
        return None
    total = parts[0]
    for part in range(1, len(parts)):
        total.add_(parts[part])
    return total
