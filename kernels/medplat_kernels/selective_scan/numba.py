"""The selective scan on CPU: numba with explicit vectors, threads of our own.

Batch entries and channel tiles are shared out over the workers; nothing is updated by two of
them, so a result may depend on the number of threads in its last bits and never on their timing.
"""

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
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _shares(scan: Any) -> list[pool.Share]:
    from medplat_kernels.vectors import LANES

    tiles = scan.groups * -(-scan.channels // scan.groups // LANES)
    work = scan.batch * scan.orders * scan.channels * scan.states * scan.length
    return pool.shares(scan.batch, tiles, work, LEAST_STATES)


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, out: Tensor | None,
    checkpoints: Tensor, last_state: Tensor | None, out_dtype: torch.dtype,
    delta_softplus: bool, orders: int, channels_last: bool,
) -> Any:  # fmt: skip
    """The call as the kernels take it."""
    from medplat_kernels.vector_memory import KINDS

    from .numba_tiles import Scan

    batch, channels = u.shape[0], A.shape[0] // orders
    length, given = u.shape[1:] if channels_last else u.shape[:0:-1]
    groups = B.shape[2 if channels_last else 1] // orders
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, out, checkpoints, last_state)
    sizes = (batch, orders, channels, groups, A.shape[1], length, KINDS[u.dtype], KINDS[out_dtype])
    switches = (delta_softplus, channels_last, given == channels)
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
    out = u.new_empty(
        (batch, length, width) if channels_last else (batch, width, length), dtype=kept
    )
    checkpoints = A.new_empty(checkpoint_size(batch, rows, states, length) if save else 0)
    last_state = A.new_empty(batch, rows, states)
    scan = _scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, out, checkpoints, last_state, kept,
        delta_softplus, len(orders), channels_last,
    )  # fmt: skip
    walks = _walks(orders, grid)
    shares = _shares(scan)
    scratch = torch.empty(len(shares), _largest(scratch_size, scan, shares))

    def work(worker: int) -> None:
        share, memory = shares[worker], scratch[worker].data_ptr()
        forward_kernel(scan, walks, np.empty(CHECKPOINT_STEPS, np.int64), memory, *share[:4])

    pool.run(work, len(shares))
    return out.to(out_dtype), checkpoints, last_state


def _walks(orders: tuple[ScanOrder, ...], grid: tuple[int, ...]) -> Any:
    """Rows, columns and direction of each order, int64 (orders, 3)."""
    return np.array([(*each.walk(grid), each.reverse) for each in orders], dtype=np.int64)


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

    scan = _scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, None, checkpoints, None,
        grad_out.dtype, delta_softplus, len(orders), channels_last,
    )  # fmt: skip
    shares = _shares(scan)
    over_batch, over_tiles = shares[-1].part_of_batch + 1, shares[-1].part_of_tiles + 1
    # What several orders add to is float32 until all have.
    gathered = torch.float32 if len(orders) > 1 else u.dtype
    du = torch.empty_like(u, dtype=gathered if scan.shared else u.dtype)
    dz = None if z is None else torch.empty_like(z, dtype=gathered)
    ddelta = torch.empty_like(delta)
    dstate = None if initial_state is None else torch.empty_like(initial_state)
    dA = A.new_zeros(over_batch, *A.shape)
    dD, dbias = (
        None if each is None else each.new_zeros(over_batch, *each.shape)
        for each in (D, delta_bias)
    )
    dB, dC = (torch.zeros(over_tiles, *each.shape) for each in (B, C))
    tensors = (grad_out, grad_last_state, du, ddelta, dA, dB, dC, dD, dz, dbias, dstate)
    grad = Gradients._make((*map(_address, tensors), KINDS[du.dtype], KINDS[gathered]))
    walks = _walks(orders, grid)
    scratch = torch.empty(len(shares), _largest(scratch_size, scan, shares))

    def work(worker: int) -> None:
        share, memory = shares[worker], scratch[worker].data_ptr()
        backward_kernel(scan, grad, walks, np.empty(CHECKPOINT_STEPS, np.int64), memory, *share)

    pool.run(work, len(shares))
    return (
        du.to(u.dtype), ddelta, _total(dA), _total(dB).to(B.dtype), _total(dC).to(C.dtype),
        None if dD is None else _total(dD), None if dz is None else dz.to(u.dtype),
        None if dbias is None else _total(dbias), dstate,
    )  # fmt: skip


def _total(parts: Tensor) -> Tensor:
    """Sum of the workers' parts, in their order, in the memory of the first."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]
