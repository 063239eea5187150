"""The Mamba-2 scan on CPU with explicit vectors: all of a chunk's arithmetic stays in the cache.

Decays inside a chunk are products of the decays of single steps, a row from the row above it: no
exponential a pair, and never a quotient or a positive difference of sums. Those below `LEAST` are
taken for zero, since a CPU is slow with denormal numbers. All tensors are contiguous float32.

Sizes: Q steps of a chunk, CHUNK at most; P channels of a head, N states; a size with a prime is
rounded up to whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medplat_kernels.vector_memory import FLOAT32, load_element, store_element
from medplat_kernels.vector_products import clear, product, turn, up
from medplat_kernels.vectors import LANES, device, fill, fma, kernel, largest, load, store

CHUNK = 64
LEAST = np.float32(1e-30)
NOTHING, ALL = np.float32(0), np.float32(1)


def scratch_size(heads: int, width: int, states: int) -> int:
    """Float32 numbers that `forward` needs for so many heads; they must be zero at first."""
    wide, deep = (-(-size // LANES) * LANES for size in (width, states))
    return CHUNK * (6 * deep + 2 * CHUNK + wide + 1) + heads * (deep + CHUNK) * wide


@kernel
def forward(
    x: int, dt: int, kept: int, B: int, C: int, state: int, out: int, sizes: Any, scratch: int,
    first: int, last: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Output and last states of batch entries first..last and heads begin..end.

    Args:
        x: (Bt, L, H, P).
        dt: (Bt, H, L).
        kept: exp(dt A), (Bt, H, L); 0 where a sequence begins.
        B: (Bt, L, G, N).
        C: As B.
        state: (Bt, H, N, P): the states before, and after the call those after.
        out: As x.
        sizes: L, H, P, G, N.
        scratch: Address of `scratch_size(end - begin, P, N)` zeros.
        first: First batch entry.
        last: The one behind the last.
        begin: First head.
        end: The one behind the last.
    """
    length, heads, width, groups, states = sizes
    wide, deep, each = up(width), up(states), heads // groups
    rows = scratch
    reads = rows + 4 * CHUNK * deep
    columns = reads + 4 * CHUNK * deep
    faded = columns + 4 * CHUNK * deep
    scores = faded + 4 * CHUNK * deep
    left = scores + 4 * CHUNK * CHUNK
    decay = left + 4 * CHUNK * (deep + CHUNK)
    result = decay + 4 * CHUNK
    right = result + 4 * CHUNK * wide
    own = 4 * (deep + CHUNK) * wide
    for b in range(first, last):
        for h in range(begin, end):
            _states(state + 4 * (b * heads + h) * states * width, right + (h - begin) * own,
                    states, width, 0)  # fmt: skip
        for start in range(0, length, CHUNK):
            steps = min(CHUNK, length - start)
            group = -1
            for h in range(begin, end):
                at = b * length + start
                if h // each != group:
                    group = h // each
                    place = 4 * (at * groups + group) * states
                    _scores(B + place, C + place, groups * states, states, steps,
                            rows, columns, reads, scores)  # fmt: skip
                ours, now = right + (h - begin) * own, 4 * ((b * heads + h) * length + start)
                token = 4 * (at * heads + h) * width
                for i in range(steps):
                    step = load_element(dt + now, i, FLOAT32)
                    _copy_row(x + token, i * heads * width, ours, (deep + i) * wide, width, step)
                through = _decays(kept + now, steps, deep, scores, reads, left, decay)
                clear(result, steps * wide)
                for i in range(0, steps, LANES):
                    product(
                        left + 4 * i * (deep + CHUNK), deep + CHUNK, 1, ours, wide,
                        result + 4 * i * wide, wide, min(LANES, steps - i),
                        deep + min(i + LANES, steps), width,
                    )  # fmt: skip
                for i in range(steps):
                    _copy_row(result, i * wide, out + token, i * heads * width, width, ALL)
                _advance(ours, states, through, columns, decay, faded, steps, width)
        for h in range(begin, end):
            _states(state + 4 * (b * heads + h) * states * width, right + (h - begin) * own,
                    states, width, 1)  # fmt: skip


@device
def _copy_row(source: int, at: int, to: int, place: int, width: int, factor: Any) -> None:
    """`width` numbers, times `factor`, with nothing behind them read or written."""
    whole, many = width // LANES * LANES, fill(factor, 1)
    for c in range(0, whole, LANES):
        store(to, place + c, load(source, at + c, 1) * many)
    for c in range(whole, width):
        store_element(to, place + c, load_element(source, at + c, FLOAT32) * factor, FLOAT32)


@device
def _states(state: int, rows: int, states: int, width: int, back: int) -> None:
    """(N, P) into rows of P', or back."""
    wide = up(width)
    for n in range(states):
        if back:
            _copy_row(rows, n * wide, state, n * width, width, ALL)
        else:
            _copy_row(state, n * width, rows, n * wide, width, ALL)


@device
def _scores(
    B: int, C: int, stride: int, states: int, steps: int,
    rows: int, columns: int, reads: int, scores: int,
) -> None:  # fmt: skip
    """C as rows of N', B turned, (N', Q'), and their product (Q, Q') up to the vector of j = i."""
    deep, padded = up(states), up(steps)
    for i in range(steps):
        _copy_row(B, i * stride, rows, i * deep, states, ALL)
        _copy_row(C, i * stride, reads, i * deep, states, ALL)
    turn(rows, steps, states, columns)
    clear(scores, padded * steps)
    for i in range(0, steps, LANES):
        product(
            reads + 4 * i * deep, deep, 1, columns, padded, scores + 4 * i * padded, padded,
            min(LANES, steps - i), states, i + LANES,
        )  # fmt: skip


@device
def _decays(
    kept: int, steps: int, deep: int, scores: int, reads: int, left: int, decay: int
) -> Any:
    """Left rows: C times what is left of the state before the chunk, scores times that of step j.

    Leaves what is left of each step after the last in `decay`; returns it for the state.
    """
    wide, padded, zero, little = deep + CHUNK, up(steps), fill(NOTHING, 1), fill(-LEAST, 1)
    clear(decay, padded)
    through = ALL
    for i in range(steps):
        factor = load_element(kept, i, FLOAT32)
        through = through * factor
        if through < LEAST:
            through = NOTHING
        for n in range(0, i, LANES):
            less = fma(load(decay, n, 1), fill(factor, 1), little)
            store(decay, n, largest(zero, less))
        store_element(decay, i, ALL, FLOAT32)
        for n in range(0, deep, LANES):
            store(left, i * wide + n, load(reads, i * deep + n, 1) * fill(through, 1))
        for n in range(0, i + 1, LANES):
            value = load(scores, i * padded + n, 1) * load(decay, n, 1)
            store(left, i * wide + deep + n, value)
    return through


@device
def _advance(
    right: int, states: int, through: Any, columns: int, decay: int, faded: int, steps: int,
    width: int,
) -> None:  # fmt: skip
    """The state behind the chunk: what is left of that before, and of each step."""
    wide, padded, many = up(width), up(steps), fill(through, 1)
    for n in range(0, states * wide, LANES):
        store(right, n, load(right, n, 1) * many)
    for n in range(states):
        for j in range(0, steps, LANES):
            value = load(columns, n * padded + j, 1) * load(decay, j, 1)
            store(faded, n * padded + j, value)
    inputs = right + 4 * up(states) * wide
    product(faded, padded, 1, inputs, wide, right, wide, states, steps, width)
