"""Products of matrices on CPU with explicit vectors, for kernels whose matrices stay in the cache.

A matrix is named by its address; its rows lie `up(width)` apart, so that they end with a whole
vector. All numbers are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .vector_memory import FLOAT32, read_block
from .vectors import LANES, device, fill, fma, load, spread, store


@device
def up(count: int) -> int:
    """`count` rounded up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@device
def clear(address: int, count: int) -> None:
    """Zeros."""
    zero = fill(np.float32(0), 1)
    for i in range(0, count, LANES):
        store(address, i, zero)


@device
def turn(rows: int, count: int, width: int, columns: int) -> None:
    """(count, up(width)) -> (width, up(count)); all of up(width) rows are written."""
    padded, wide = up(count), up(width)
    for i in range(0, count, LANES):
        lanes = min(LANES, count - i)
        for c in range(0, width, LANES):
            at = c * padded + i
            read_block(rows, i * wide + c, wide, lanes, FLOAT32, 0, columns, at, padded)


def _columns(vectors: int) -> Any:
    """A function that computes some columns of a product: `vectors` whole vectors."""

    @device
    def columns(
        a: int, a_m: int, a_k: int, b: int, b_k: int, c: int, c_m: int, count: int, depth: int,
        n: int,
    ) -> None:  # fmt: skip
        m = 0
        while m + 4 <= count:
            c0 = load(c, m * c_m + n, vectors)
            c1 = load(c, (m + 1) * c_m + n, vectors)
            c2 = load(c, (m + 2) * c_m + n, vectors)
            c3 = load(c, (m + 3) * c_m + n, vectors)
            for k in range(depth):
                row = load(b, k * b_k + n, vectors)
                at = m * a_m + k * a_k
                c0 = fma(row, spread(a, at, 1), c0)
                c1 = fma(row, spread(a, at + a_m, 1), c1)
                c2 = fma(row, spread(a, at + 2 * a_m, 1), c2)
                c3 = fma(row, spread(a, at + 3 * a_m, 1), c3)
            store(c, m * c_m + n, c0)
            store(c, (m + 1) * c_m + n, c1)
            store(c, (m + 2) * c_m + n, c2)
            store(c, (m + 3) * c_m + n, c3)
            m += 4
        while m < count:
            c0 = load(c, m * c_m + n, vectors)
            for k in range(depth):
                c0 = fma(load(b, k * b_k + n, vectors), spread(a, m * a_m + k * a_k, 1), c0)
            store(c, m * c_m + n, c0)
            m += 1

    return columns


four, two, one = _columns(4), _columns(2), _columns(1)


@device
def product(
    a: int, a_m: int, a_k: int, b: int, b_k: int, c: int, c_m: int, count: int, depth: int,
    width: int,
) -> None:  # fmt: skip
    """C[m, n] += sum over k of A[m a_m + k a_k] B[k b_k + n], m < count, k < depth, n < width.

    Columns are computed by whole vectors; those behind the width hold nothing of meaning.
    """
    n = 0
    while n + 3 * LANES < width:
        four(a, a_m, a_k, b, b_k, c, c_m, count, depth, n)
        n += 4 * LANES
    while n + LANES < width:
        two(a, a_m, a_k, b, b_k, c, c_m, count, depth, n)
        n += 2 * LANES
    while n < width:
        one(a, a_m, a_k, b, b_k, c, c_m, count, depth, n)
        n += LANES
