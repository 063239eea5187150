"""One query of each sequence on CPU with explicit vectors: keys and values are read once.

Reading them is what takes the time, so that those that follow are asked for ahead.
Vectors lie along the width of a token, so that a single query fills them. All tensors are float32,
named by a row of a table: address, strides of sequence, head and token in elements; the last axis
is dense.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medplat_kernels.vector_memory import FLOAT32, ask, gather, load_element, scatter, store_element
from medplat_kernels.vector_products import clear, up
from medplat_kernels.vectors import (
    LANES,
    device,
    exp2,
    fill,
    fma,
    kernel,
    lane_sums,
    load,
    spread,
    store,
)  # fmt: skip

LOG2_E = np.float32(math.log2(math.e))
LOWEST = np.float32(-np.inf)


def scratch_size(keys: int, width: int) -> int:
    """Float32 numbers that a kernel needs."""
    padded, wide = (-(-size // LANES) * LANES for size in (keys, width))
    return padded * (LANES + 2) + wide


@device
def _piece(address: int, at: int, lanes: int) -> Any:
    """A vector of `lanes` numbers; zeros in the lanes that are missing."""
    if lanes >= LANES:
        return load(address, at, 1)
    return gather(address, at, 1, lanes, FLOAT32)


@device
def _put_piece(address: int, at: int, lanes: int, value: Any) -> None:
    if lanes >= LANES:
        store(address, at, value)
    else:
        scatter(address, at, 1, lanes, value, FLOAT32)


@device
def _dots(
    rows: int, stride: int, keys: int, width: int, vector: int, following: int, sums: int, to: int
) -> None:
    """to[j] = rows[j] . vector; `sums` is scratch for a vector a key.

    `following` is where rows as long and as far apart are read next.
    """
    for j in range(keys):
        total = fill(np.float32(0), 1)
        for c in range(0, width, LANES):
            ask(following, j * stride + c)
            value = _piece(rows, j * stride + c, width - c)
            total = fma(value, _piece(vector, c, width - c), total)
        store(sums, j * LANES, total)
    clear(sums + 4 * keys * LANES, (up(keys) - keys) * LANES)
    for j in range(0, keys, LANES):
        store(to, j, lane_sums(sums, j * LANES, LANES))


@device
def _pool(
    rows: int, stride: int, keys: int, width: int, weights: int, following: int, to: int
) -> None:
    """Sum over j of weights[j] rows[j], up(width) numbers; `following` as in `_dots`."""
    clear(to, up(width))
    for j in range(keys):
        weight = spread(weights, j, 1)
        for c in range(0, width, LANES):
            ask(following, j * stride + c)
            value = _piece(rows, j * stride + c, width - c)
            store(to, c, fma(value, weight, load(to, c, 1)))


@device
def _outer(weights: int, vector: int, keys: int, width: int, rows: int, stride: int) -> None:
    """Rows[j] = weights[j] vector."""
    for j in range(keys):
        weight = spread(weights, j, 1)
        for c in range(0, width, LANES):
            value = _piece(vector, c, width - c) * weight
            _put_piece(rows, j * stride + c, width - c, value)


@device
def _weigh(scores: int, keys: int, factor: Any, level: Any) -> None:
    """Scores become exp2(factor * score - level)."""
    for j in range(0, keys, LANES):
        store(scores, j, exp2(load(scores, j, 1) * fill(factor, 1) - fill(level, 1)))


@device
def _at(table: Any, tensor: int, sequence: int, head: int) -> int:
    address: int = table[tensor, 0] + 4 * (sequence * table[tensor, 1] + head * table[tensor, 2])
    return address


@kernel
def forward(
    table: Any, heads: int, keys: int, width: int, scale: Any, scratch: int, begin: int, end: int
) -> None:
    """Output and lse of pairs (sequence, head) begin..end; the table: q, k, v, out, lse."""
    scores = scratch + 4 * up(keys) * LANES
    result = scores + 4 * up(keys)
    factor = scale * LOG2_E
    for pair in range(begin, end):
        m, h = pair // heads, pair % heads
        q, k, v = _at(table, 0, m, h), _at(table, 1, m, h), _at(table, 2, m, h)
        following = _at(table, 1, (pair + 1) // heads, (pair + 1) % heads)
        _dots(k, table[1, 3], keys, width, q, v, scratch, scores)
        top = LOWEST
        for j in range(keys):
            score = factor * load_element(scores, j, FLOAT32)
            if not score <= top:
                top = score
        _weigh(scores, keys, factor, top)
        total = np.float32(0)
        for j in range(keys):
            total += load_element(scores, j, FLOAT32)
        _pool(v, table[2, 3], keys, width, scores, following, result)
        for c in range(0, width, LANES):
            share = load(result, c, 1) / fill(total, 1)
            _put_piece(_at(table, 3, m, h), c, width - c, share)
        sums = np.float32(top / LOG2_E + np.float32(math.log(total)))
        store_element(_at(table, 4, m, h), 0, sums, FLOAT32)


@kernel
def backward(
    table: Any, heads: int, keys: int, width: int, scale: Any, scratch: int, begin: int, end: int
) -> None:
    """Gradients of pairs begin..end; the table: grad, q, k, v, lse, dq, dk, dv."""
    weights = scratch + 4 * up(keys) * LANES
    slopes = weights + 4 * up(keys)
    result = slopes + 4 * up(keys)
    for pair in range(begin, end):
        m, h = pair // heads, pair % heads
        grad, q = _at(table, 0, m, h), _at(table, 1, m, h)
        k, v = _at(table, 2, m, h), _at(table, 3, m, h)
        level = LOG2_E * load_element(_at(table, 4, m, h), 0, FLOAT32)
        next_m, next_h = (pair + 1) // heads, (pair + 1) % heads
        _dots(k, table[2, 3], keys, width, q, v, scratch, weights)
        _weigh(weights, keys, scale * LOG2_E, level)
        _dots(
            v, table[3, 3], keys, width, grad, _at(table, 2, next_m, next_h), scratch, slopes
        )  # fmt: skip
        _outer(weights, grad, keys, width, _at(table, 7, m, h), table[7, 3])
        mean = np.float32(0)
        for j in range(keys):
            mean += load_element(weights, j, FLOAT32) * load_element(slopes, j, FLOAT32)
        for j in range(0, keys, LANES):
            pull = (load(slopes, j, 1) - fill(mean, 1)) * fill(scale, 1)
            store(slopes, j, pull * load(weights, j, 1))
        _outer(slopes, q, keys, width, _at(table, 6, m, h), table[6, 3])
        _pool(k, table[2, 3], keys, width, slopes, _at(table, 3, next_m, next_h), result)
        for c in range(0, width, LANES):
            _put_piece(_at(table, 5, m, h), c, width - c, load(result, c, 1))
