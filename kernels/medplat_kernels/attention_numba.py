"""Launches the numba attention kernels for operators whose groups of queries and keys are boxes.

Windows, the cells of shifted windows, the tiles of a neighborhood with their halo of keys, and
whole sequences are all boxes; cells cut by a border are smaller boxes, so nothing is padded.
`<operator>.numba` is these functions with its own boxes. Contract in `attention_ops`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import pool
from .dispatch import Verdict, verdict

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 1 << 18  # scores of one group: they and their slopes stay in the cache
FEWEST = 3  # queries of a group
LEAST_WORK = 2_000_000  # multiply-adds that one worker does in about 0.1 ms
TILE = {2: 8, 3: 4}  # queries along each side of a tile of a neighborhood
Table = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Groups:
    """Boxes of queries and keys, and how large the largest are.

    Attributes:
        table: A row a group, the columns as `attention_numba_kernels` names them.
        queries: Tokens of the largest box of queries.
        keys: Tokens of the largest box of keys.
    """

    table: Table
    queries: int
    keys: int


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def can_run(q: Tensor, queries: int, keys: int, raise_error: bool) -> Verdict:
    """Whether the kernels can take groups of so many queries and keys."""
    return verdict(_refusal(q, queries, keys), raise_error, "explicit vectors, float32 sums")


def _refusal(q: Tensor, queries: int, keys: int) -> str | None:
    if not _installed():
        return "numba is not installed: pip install numba"
    if q.device.type != "cpu":
        return f"the numba kernel runs on CPU, the tensors are on {q.device.type}"
    if q.dtype not in DTYPES:
        return f"the numba kernel computes in float32 and can't take {q.dtype}"
    if queries * keys > LARGEST:
        return f"groups of {queries} x {keys} scores do not fit the cache, {LARGEST} scores do"
    if queries < FEWEST:
        return f"a vector would hold {queries} queries only: products are faster below {FEWEST}"
    return None


def windows(
    shape_q: tuple[int, ...], shape_k: tuple[int, ...], window_q: tuple[int, ...],
    window_k: tuple[int, ...], shift: tuple[int, ...],
) -> Groups:  # fmt: skip
    """One group a cell of the lattice of windows, and its tokens that are on the map."""
    sizes = zip(shape_q, shape_k, window_q, window_k, shift, strict=True)
    return _table(tuple(tuple(_cells(*axis)) for axis in sizes))


def neighborhoods(
    shape: tuple[int, ...], kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> Groups:
    """One group a tile of queries, and the keys that some of them see; dilated classes apart."""
    side = TILE[len(shape)]
    sizes = zip(shape, kernel_size, dilation, strict=True)
    return _table(tuple(tuple(_tiles(*axis, side)) for axis in sizes))


def sequences(queries: int, keys: int) -> Groups:
    """One group: all tokens of a sequence."""
    return _table((((0, queries, 0, keys, 0, keys, 0, 0),),))


def _cells(
    size_q: int, size_k: int, window_q: int, window_k: int, shift: int
) -> Iterator[tuple[int, ...]]:
    """Q0, QN, K0, KN, OFFSET, LENGTH, Q_PLACE, K_PLACE of each cell along one axis."""
    if shift:
        n = min(shift, size_q)
        yield 0, n, 0, n, 0, size_k, window_q - shift, window_q - shift
    for w in range(-(-(size_q - shift) // window_q)):
        q, k = shift + w * window_q, shift + w * window_k
        yield q, min(window_q, size_q - q), k, min(window_k, size_k - k), 0, size_k, 0, 0


def _tiles(size: int, kernel: int, step: int, side: int) -> Iterator[tuple[int, ...]]:
    """The same of each tile along one axis."""
    for offset in range(step):
        length = len(range(offset, size, step))
        for q in range(0, length, side):
            n = min(side, length - q)
            first, last = (min(max(i - kernel // 2, 0), length - kernel) for i in (q, q + n - 1))
            yield q, n, first, last + kernel - first, offset, length, 0, 0


@functools.lru_cache(32)
def _table(axes: tuple[tuple[tuple[int, ...], ...], ...]) -> Groups:
    """Groups of all combinations, the columns as the kernels know them, axes (z, y, x)."""
    still = ((0, 1, 0, 1, 0, 1, 0, 0),)
    columns = [np.array(axis, np.int64) for axis in (*[still] * (3 - len(axes)), *axes)]
    which = np.indices([len(axis) for axis in columns]).reshape(3, -1)
    parts = [axis[index] for axis, index in zip(columns, which, strict=True)]
    table = np.ascontiguousarray(np.stack(parts, -1).reshape(which.shape[1], -1))
    return Groups(table, int(table[:, 3:6].prod(1).max()), int(table[:, 9:12].prod(1).max()))


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, groups: Groups, *,
    window_q: Sequence[int], window_k: Sequence[int], step: Sequence[int], near: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and sums; `window_k` of neighborhoods is the kernel size."""
    from . import attention_numba_kernels as kernels

    out = torch.empty_like(q)
    q, k, v = (x.float() for x in (q, k, v))
    result = out if out.dtype == torch.float32 else torch.empty_like(q)
    top, total = (q.new_empty((*q.shape[:-1], 1)) for _ in range(2))
    tensors = {
        kernels.Q: q, kernels.K: k, kernels.V: v, kernels.OUT: result, kernels.TOP: top,
        kernels.TOTAL: total,
    }  # fmt: skip
    table = None if bias is None else _laid_out(bias)
    sizes = _sizes(tuple(window_q), tuple(window_k), tuple(step))
    places = _places(tensors)

    def run(worker: int, *share: int) -> None:
        kernels.forward(
            places, groups.table, q.shape[1], q.shape[-1], int(near), _address(table), sizes,
            np.float32(scale), *share,
        )  # fmt: skip

    _share(run, q, groups, 2, len(groups.table) >= q.shape[0] * q.shape[1])
    lse = total.log_().add_(top).squeeze(-1)
    return out if result is out else out.copy_(result), lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lse: Tensor,
    groups: Groups, *, window_q: Sequence[int], window_k: Sequence[int], step: Sequence[int],
    near: bool, scale: float, bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the bias, all float32."""
    from . import attention_numba_kernels as kernels

    grad, q, k, v = (x.float() for x in (grad, q, k, v))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros_like(x) if near else torch.empty_like(x) for x in (k, v))
    tensors = {
        kernels.Q: q, kernels.K: k, kernels.V: v, kernels.LSE: lse.unsqueeze(-1),
        kernels.GRAD: grad, kernels.DQ: dq, kernels.DK: dk, kernels.DV: dv,
    }  # fmt: skip
    table = None if bias is None else _laid_out(bias)
    parts = None
    if table is not None and bias_grad:
        parts = table.new_zeros((torch.get_num_threads(), *table.shape))
    sizes = _sizes(tuple(window_q), tuple(window_k), tuple(step))
    places = _places(tensors)

    def run(worker: int, *share: int) -> None:
        kernels.backward(
            places, groups.table, q.shape[1], q.shape[-1], int(near), _address(table),
            _address(None if parts is None else parts[worker]), sizes, np.float32(scale), *share,
        )  # fmt: skip

    along_groups = not near and len(groups.table) >= q.shape[0] * q.shape[1]
    _share(run, q, groups, 5, along_groups)
    dbias = None
    if parts is not None and bias is not None:
        dbias = parts.sum(0)[..., : bias.shape[1]].mT
    return dq, dk, dv, dbias


def _laid_out(bias: Tensor) -> Tensor:
    """(h, nq, nk) -> (h, nk, nq rounded up to vectors), float32."""
    from .vectors import LANES

    return torch.nn.functional.pad(bias.float().mT, (0, -bias.shape[1] % LANES)).contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _places(tensors: dict[int, Tensor]) -> Table:
    """Address, and strides of batch, head and (z, y, x), of each tensor the kernels know."""
    from .attention_numba_kernels import TENSORS

    rows = [[0] * 6] * TENSORS
    for row, x in tensors.items():
        batch, head, *tokens, _ = x.stride()
        rows[row] = [x.data_ptr(), batch, head, *[0] * (3 - len(tokens)), *tokens]
    return np.array(rows, np.int64)


@functools.lru_cache(64)
def _sizes(window_q: Sequence[int], window_k: Sequence[int], step: Sequence[int]) -> Table:
    """(3, 3): the windows and the step along (z, y, x)."""
    rows = [[1] * (3 - len(given)) + list(given) for given in (window_q, window_k, step)]
    return np.array(rows, np.int64)


def _share(
    run: Callable[..., None], q: Tensor, groups: Groups, products: int, along_groups: bool
) -> None:
    """Call run(worker, scratch, groups first, last, heads begin, end) for each worker's share."""
    from .vectors import LANES

    heads, width = q.shape[0] * q.shape[1], q.shape[-1]
    keys = groups.keys
    padded, wide = (-(-n // LANES) * LANES for n in (groups.queries, width))
    need = 4 * padded * wide + 3 * keys * (wide + padded) + 2 * padded
    count = len(groups.table) if along_groups else heads
    work = products * heads * len(groups.table) * padded * keys * width
    workers = pool.workers(count, work, LEAST_WORK)
    scratch = torch.empty((workers, need))

    def task(worker: int) -> None:
        first, last = (count * i // workers for i in (worker, worker + 1))
        span = (first, last, 0, heads) if along_groups else (0, len(groups.table), first, last)
        run(worker, scratch[worker].data_ptr(), *span)

    pool.run(task, workers)
