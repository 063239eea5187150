"""Attention inside boxes of tokens on CPU, with explicit vectors: forward and backward.

A group is a box of queries and a box of keys; one group of one head is worked on at a time, in
scratch memory that stays in the cache. Scores lie keys before queries, so that a vector holds
queries and a softmax needs no sum across lanes. All tensors are float32 and named by their address
and strides, the strides of batch, head and three axes of tokens in elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .vector_memory import FLOAT32, load_element, store_element
from .vector_products import clear, product, turn, up
from .vectors import LANES, device, exp2, fill, fma, kernel, largest, load, store

# Rows of the tables of addresses and strides.
Q, K, V, OUT, TOP, TOTAL, GRAD, LSE, DQ, DK, DV = range(11)
TENSORS = 11
# Columns of a group, three each: first query, queries, first key, keys, all counted within a class
# of dilated tokens; offset of the class, its length; place of the first query and key in a window.
Q0, QN, K0, KN, OFFSET, LENGTH, Q_PLACE, K_PLACE = range(0, 24, 3)
COLUMNS = 24
LOG2_E = np.float32(1.4426950408889634)
HIDDEN = np.float32(-1e30)


@device
def take(
    address: int, stride: Any, box: Any, first: int, step: Any, width: int, factor: Any, to: int
) -> None:
    """Copy the tokens of a box, times `factor`, into rows of up(width)."""
    row, wide, whole = 0, up(width), width // LANES * LANES
    many = fill(factor, 1)
    for z in range(box[first + 3]):
        at_z = (box[OFFSET] + (box[first] + z) * step[0]) * stride[2]
        for y in range(box[first + 4]):
            at_y = at_z + (box[OFFSET + 1] + (box[first + 1] + y) * step[1]) * stride[3]
            for x in range(box[first + 5]):
                at = at_y + (box[OFFSET + 2] + (box[first + 2] + x) * step[2]) * stride[4]
                for c in range(0, whole, LANES):
                    store(to, row * wide + c, load(address, at + c, 1) * many)
                for c in range(whole, width):
                    value = load_element(address, at + c, FLOAT32) * factor
                    store_element(to, row * wide + c, value, FLOAT32)
                row += 1


@device
def put(
    rows: int, address: int, stride: Any, box: Any, first: int, step: Any, width: int, more: int
) -> None:
    """Copy rows of up(width) to the tokens of a box, or add them where `more`."""
    row, wide, whole = 0, up(width), width // LANES * LANES
    for z in range(box[first + 3]):
        at_z = (box[OFFSET] + (box[first] + z) * step[0]) * stride[2]
        for y in range(box[first + 4]):
            at_y = at_z + (box[OFFSET + 1] + (box[first + 1] + y) * step[1]) * stride[3]
            for x in range(box[first + 5]):
                at = at_y + (box[OFFSET + 2] + (box[first + 2] + x) * step[2]) * stride[4]
                for c in range(0, whole, LANES):
                    value = load(rows, row * wide + c, 1)
                    if more:
                        value = value + load(address, at + c, 1)
                    store(address, at + c, value)
                for c in range(whole, width):
                    one = load_element(rows, row * wide + c, FLOAT32)
                    if more:
                        one += load_element(address, at + c, FLOAT32)
                    store_element(address, at + c, one, FLOAT32)
                row += 1


@device
def hide(box: Any, window: Any, to: int) -> None:
    """Fill (keys, up(queries)) with 0 in the neighborhood of each query and `HIDDEN` outside."""
    padded = up(box[QN] * box[QN + 1] * box[QN + 2])
    clear(to, box[KN] * box[KN + 1] * box[KN + 2] * padded)
    key = 0
    for kz in range(box[KN]):
        for ky in range(box[KN + 1]):
            for kx in range(box[KN + 2]):
                query = 0
                for qz in range(box[QN]):
                    far_z = _far(box, window, 0, qz, kz)
                    for qy in range(box[QN + 1]):
                        far_y = far_z or _far(box, window, 1, qy, ky)
                        for qx in range(box[QN + 2]):
                            if far_y or _far(box, window, 2, qx, kx):
                                store_element(to, key * padded + query, HIDDEN, FLOAT32)
                            query += 1
                key += 1


@device
def _far(box: Any, window: Any, axis: int, query: int, key: int) -> bool:
    first = box[Q0 + axis] + query - window[axis] // 2
    first = min(max(first, 0), box[LENGTH + axis] - window[axis])
    place = box[K0 + axis] + key
    return bool(place < first or place >= first + window[axis])


@device
def lay(box: Any, bias: int, window_q: Any, window_k: Any, scores: int, back: int) -> None:
    """Fill (keys, up(queries)) with the bias, which lies (all keys, up(all queries)).

    Or `back`: add them to it, as the gradient of the bias is the sum of those of the scores.
    """
    padded = up(box[QN] * box[QN + 1] * box[QN + 2])
    full = up(window_q[0] * window_q[1] * window_q[2])
    key = 0
    for kz in range(box[KN]):
        for ky in range(box[KN + 1]):
            for kx in range(box[KN + 2]):
                row = (box[K_PLACE] + kz) * window_k[1] + box[K_PLACE + 1] + ky
                row = (row * window_k[2] + box[K_PLACE + 2] + kx) * full
                query = key * padded
                for qz in range(box[QN]):
                    for qy in range(box[QN + 1]):
                        at = (box[Q_PLACE] + qz) * window_q[1] + box[Q_PLACE + 1] + qy
                        at = row + at * window_q[2] + box[Q_PLACE + 2]
                        for x in range(at, at + box[QN + 2]):
                            value = load_element(bias, x, FLOAT32)
                            if back:
                                value += load_element(scores, query, FLOAT32)
                                store_element(bias, x, value, FLOAT32)
                            else:
                                store_element(scores, query, value, FLOAT32)
                            query += 1
                key += 1


@device
def copy(source: int, to: int, count: int) -> None:
    """`count`, rounded up to vectors, numbers."""
    for i in range(0, count, LANES):
        store(to, i, load(source, i, 1))


@device
def softmax(scores: int, keys: int, queries: int, top: int, total: int) -> None:
    """Exponentials over the maximum, written over the scores; the maximum and the sum of each."""
    padded = up(queries)
    by = fill(LOG2_E, 1)
    for n in range(0, padded, LANES):
        high = load(scores, n, 1)
        for j in range(1, keys):
            high = largest(high, load(scores, j * padded + n, 1))
        whole = fill(np.float32(0), 1)
        for j in range(keys):
            value = exp2((load(scores, j * padded + n, 1) - high) * by)
            store(scores, j * padded + n, value)
            whole = whole + value
        store(top, n, high)
        store(total, n, whole)


@device
def slopes(scores: int, pull: int, keys: int, queries: int, lse: int) -> None:
    """Scores become weights, and `pull`, g v^T, becomes the gradient of the scores."""
    padded = up(queries)
    by = fill(LOG2_E, 1)
    for n in range(0, padded, LANES):
        level = load(lse, n, 1)
        mean = fill(np.float32(0), 1)
        for j in range(keys):
            weight = exp2((load(scores, j * padded + n, 1) - level) * by)
            store(scores, j * padded + n, weight)
            mean = fma(weight, load(pull, j * padded + n, 1), mean)
        for j in range(keys):
            weight = load(scores, j * padded + n, 1)
            store(pull, j * padded + n, weight * (load(pull, j * padded + n, 1) - mean))


@device
def move(address: int, stride: Any, box: Any, step: Any, scratch: int, out: int) -> None:
    """Copy one number a query from a map to `scratch`, or to the map where `out`."""
    row = 0
    for z in range(box[QN]):
        at_z = (box[OFFSET] + (box[Q0] + z) * step[0]) * stride[2]
        for y in range(box[QN + 1]):
            at_y = at_z + (box[OFFSET + 1] + (box[Q0 + 1] + y) * step[1]) * stride[3]
            for x in range(box[QN + 2]):
                at = at_y + (box[OFFSET + 2] + (box[Q0 + 2] + x) * step[2]) * stride[4]
                if out:
                    store_element(address, at, load_element(scratch, row, FLOAT32), FLOAT32)
                else:
                    store_element(scratch, row, load_element(address, at, FLOAT32), FLOAT32)
                row += 1


@kernel
def forward(
    places: Any, groups: Any, heads: int, width: int, near: int, bias: int, sizes: Any, scale: Any,
    scratch: int, first: int, last: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Output, largest score and sum of each query, of groups first..last and heads begin..end."""
    wide = up(width)
    plain = np.float32(1)
    stride, window_q, window_k, step = places[:, 1:], sizes[0], sizes[1], sizes[2]
    for g in range(first, last):
        box = groups[g]
        nq = box[QN] * box[QN + 1] * box[QN + 2]
        nk = box[KN] * box[KN + 1] * box[KN + 2]
        padded = up(nq)
        rows = scratch
        queries = rows + 4 * padded * wide
        result = queries + 4 * padded * wide
        keys = result + 4 * padded * wide
        values = keys + 4 * nk * wide
        scores = values + 4 * nk * wide
        hidden = scores + 4 * nk * padded
        top = hidden + 4 * nk * padded
        total = top + 4 * padded
        if near:
            hide(box, window_k, hidden)
        for pair in range(begin, end):
            b, h = pair // heads, pair % heads
            take(_at(places, Q, b, h), stride[Q], box, Q0, step, width, scale, rows)
            take(_at(places, K, b, h), stride[K], box, K0, step, width, plain, keys)
            take(_at(places, V, b, h), stride[V], box, K0, step, width, plain, values)
            turn(rows, nq, width, queries)
            if near:
                copy(hidden, scores, nk * padded)
            elif bias:
                lay(box, bias + 4 * h * _size(window_q, window_k), window_q, window_k, scores, 0)
            else:
                clear(scores, nk * padded)
            product(keys, wide, 1, queries, padded, scores, padded, nk, width, nq)
            softmax(scores, nk, nq, top, total)
            clear(result, wide * padded)
            product(values, 1, wide, scores, padded, result, padded, width, nk, nq)
            for n in range(0, padded, LANES):
                share = fill(plain, 1) / load(total, n, 1)
                for c in range(width):
                    store(result, c * padded + n, load(result, c * padded + n, 1) * share)
            turn(result, width, nq, rows)
            put(rows, _at(places, OUT, b, h), stride[OUT], box, Q0, step, width, 0)
            move(_at(places, TOP, b, h), stride[TOP], box, step, top, 1)
            move(_at(places, TOTAL, b, h), stride[TOTAL], box, step, total, 1)


@device
def _at(places: Any, tensor: int, batch: int, head: int) -> int:
    address: int = places[tensor, 0] + 4 * (batch * places[tensor, 1] + head * places[tensor, 2])
    return address


@device
def _size(window_q: Any, window_k: Any) -> int:
    """Elements of the bias of one head."""
    full = up(window_q[0] * window_q[1] * window_q[2])
    size: int = full * window_k[0] * window_k[1] * window_k[2]
    return size


@kernel
def backward(
    places: Any, groups: Any, heads: int, width: int, near: int, bias: int, dbias: int, sizes: Any,
    scale: Any, scratch: int, first: int, last: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Gradients of q, k, v and the bias, of groups first..last and heads begin..end.

    Boxes of keys overlap in neighborhoods: there the gradients of keys are added to.
    """
    wide = up(width)
    plain = np.float32(1)
    stride, window_q, window_k, step = places[:, 1:], sizes[0], sizes[1], sizes[2]
    for g in range(first, last):
        box = groups[g]
        nq = box[QN] * box[QN + 1] * box[QN + 2]
        nk = box[KN] * box[KN + 1] * box[KN + 2]
        padded = up(nq)
        rows = scratch
        queries = rows + 4 * padded * wide
        grads = queries + 4 * padded * wide
        turned = grads + 4 * padded * wide
        keys = turned + 4 * padded * wide
        values = keys + 4 * nk * wide
        slope = values + 4 * nk * wide
        scores = slope + 4 * nk * wide
        pull = scores + 4 * nk * padded
        hidden = pull + 4 * nk * padded
        lse = hidden + 4 * nk * padded
        if near:
            hide(box, window_k, hidden)
        for pair in range(begin, end):
            b, h = pair // heads, pair % heads
            take(_at(places, Q, b, h), stride[Q], box, Q0, step, width, scale, rows)
            take(_at(places, GRAD, b, h), stride[GRAD], box, Q0, step, width, plain, grads)
            take(_at(places, K, b, h), stride[K], box, K0, step, width, plain, keys)
            take(_at(places, V, b, h), stride[V], box, K0, step, width, plain, values)
            move(_at(places, LSE, b, h), stride[LSE], box, step, lse, 0)
            turn(rows, nq, width, queries)
            turn(grads, nq, width, turned)
            if near:
                copy(hidden, scores, nk * padded)
            elif bias:
                lay(box, bias + 4 * h * _size(window_q, window_k), window_q, window_k, scores, 0)
            else:
                clear(scores, nk * padded)
            product(keys, wide, 1, queries, padded, scores, padded, nk, width, nq)
            clear(pull, nk * padded)
            product(values, wide, 1, turned, padded, pull, padded, nk, width, nq)
            slopes(scores, pull, nk, nq, lse)
            clear(slope, nk * wide)
            product(scores, padded, 1, grads, wide, slope, wide, nk, nq, width)
            put(slope, _at(places, DV, b, h), stride[DV], box, K0, step, width, near)
            clear(slope, nk * wide)
            product(pull, padded, 1, rows, wide, slope, wide, nk, nq, width)
            put(slope, _at(places, DK, b, h), stride[DK], box, K0, step, width, near)
            if dbias:
                lay(box, dbias + 4 * h * _size(window_q, window_k), window_q, window_k, pull, 1)
            clear(turned, wide * padded)
            product(keys, 1, wide, pull, padded, turned, padded, width, nk, nq)
            many = fill(scale, 1)
            for i in range(0, width * padded, LANES):
                store(turned, i, load(turned, i, 1) * many)
            turn(turned, width, nq, rows)
            put(rows, _at(places, DQ, b, h), stride[DQ], box, Q0, step, width, 0)
