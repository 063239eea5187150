"""The causal convolution in numba, on tiles of 64 steps of LANES channels.

The tile of x lies right behind the tile of the steps before it, so that the taps of its first
steps find what they need; in the backward pass the gradient's tile lies before the first rows of
the steps that follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from medplat_kernels.vector_tiles import (
    STEPS,
    TILE_BYTES,
    VECTOR_BYTES,
    Walk,
    add_state,
    get_state,
    put_state,
    read,
    walk_chunk,
    write,
)
from medplat_kernels.vectors import LANES, device, dot, fill, fma, kernel, load, sigmoid, store

# The taps of every Mamba block: their weights stay in registers.
USUAL_TAPS = 4


class Convolution(NamedTuple):
    """One call: addresses of its tensors (0 for an absent one), sizes and switches.

    The gradients are those of `x`, `weight`, ...; `channels` is D, that of one order.
    """

    x: int
    weight: int
    bias: int
    initial_states: int
    out: int
    dx: int
    dweight: int
    dbias: int
    dinitial_states: int
    batch: int
    orders: int
    channels: int
    taps: int
    length: int
    kind: int
    dx_kind: int
    channels_last: int
    silu: int


class _Memory(NamedTuple):
    """Addresses of scratch memory: tiles, and blocks of rows.

    Attributes:
        before: The steps before those of x, which follows.
        x: The chunk of x.
        grad: Gradient of y, and behind it `later`, the first rows of the chunk after it.
        later: See `grad`.
        y: y, or dx.
        weight: A row a tap and one of the bias.
        dweight: Sums of their gradients.
    """

    before: int
    x: int
    grad: int
    later: int
    y: int
    weight: int
    dweight: int


def scratch_size(taps: int) -> int:
    """float32s of scratch memory that a worker needs."""
    return LANES * (5 * STEPS + 2 * (taps + 1))


@device
def _lay_out(call: Convolution, scratch: int) -> _Memory:
    weight = scratch + 5 * TILE_BYTES
    return _Memory(
        scratch, scratch + TILE_BYTES, scratch + 2 * TILE_BYTES, scratch + 3 * TILE_BYTES,
        scratch + 4 * TILE_BYTES, weight, weight + (call.taps + 1) * VECTOR_BYTES,
    )  # fmt: skip


@device
def _move(source: int, target: int, rows: int) -> None:
    for i in range(0, rows * LANES, LANES):
        store(target, i, load(source, i, 1))


@device
def _clear(address: int, rows: int) -> None:
    for i in range(0, rows * LANES, LANES):
        store(address, i, fill(0.0, 1))


@device
def _begin(call: Convolution, memory: _Memory, row: int, lanes: int) -> None:
    """Gets the weights and bias of the channels from `row` on."""
    get_state(call.weight, row, call.taps, lanes, memory.weight)
    get_state(call.bias, row, 1, lanes, memory.weight + call.taps * VECTOR_BYTES)


@device
def _before_first(call: Convolution, memory: _Memory, batch: int, row: int, lanes: int) -> None:
    """Fills the rows before the first step: the initial states, or zeros."""
    first = memory.x - (call.taps - 1) * VECTOR_BYTES
    row = batch * call.orders * call.channels + row
    get_state(call.initial_states, row, call.taps - 1, lanes, first)


@device
def _convolve(call: Convolution, memory: _Memory, steps: int) -> None:
    """Y = bias + sum over the taps of weight x, without the activation."""
    first = memory.x - (call.taps - 1) * VECTOR_BYTES
    bias = load(memory.weight, call.taps * LANES, 1)
    if call.taps == USUAL_TAPS:
        weight = load(memory.weight, 0, USUAL_TAPS)
        for i in range(0, steps * LANES, LANES):
            store(memory.y, i, dot(load(first, i, USUAL_TAPS), weight, bias))
        return
    for i in range(0, steps * LANES, LANES):
        total = bias
        for tap in range(call.taps):
            total = fma(load(memory.weight, tap * LANES, 1), load(first, i + tap * LANES, 1), total)
        store(memory.y, i, total)


@kernel
def forward_kernel(
    call: Convolution, orders: Any, places: Any, scratch: int,
    first_batch: int, last_batch: int, first_tile: int, last_tile: int,
) -> None:  # fmt: skip
    """A worker's share: some batch entries, some channel tiles, all orders."""
    memory = _lay_out(call, scratch)
    rows = call.orders * call.channels
    for sequence in range(first_batch * call.orders, last_batch * call.orders):
        batch, order = sequence // call.orders, sequence % call.orders
        for tile in range(first_tile, last_tile):
            channel = tile * LANES
            lanes, row = min(LANES, call.channels - channel), order * call.channels + channel
            _begin(call, memory, row, lanes)
            _before_first(call, memory, batch, row, lanes)
            for chunk in range((call.length + STEPS - 1) // STEPS):
                walk = walk_chunk(
                    orders, order, chunk, call.length, call.channels_last, places, False
                )
                read(call.x, call.kind, batch, call.channels, channel, lanes, walk, memory.x)
                _convolve(call, memory, walk.steps)
                if call.silu:
                    for i in range(0, walk.steps * LANES, LANES):
                        y = load(memory.y, i, 1)
                        store(memory.y, i, y * sigmoid(y))
                write(call.out, call.kind, batch, rows, row, lanes, walk, memory.y)
                kept = (STEPS - call.taps + 1) * VECTOR_BYTES
                _move(memory.x + kept, memory.before + kept, call.taps - 1)


@device
def _through_silu(memory: _Memory, steps: int) -> None:
    """The gradient of silu(y) becomes that of y."""
    one = fill(1.0, 1)
    for i in range(0, steps * LANES, LANES):
        y = load(memory.y, i, 1)
        part = sigmoid(y)
        grad = load(memory.grad, i, 1) * (part * (one + y * (one - part)))
        store(memory.grad, i, grad)


@device
def _to_input(call: Convolution, memory: _Memory, target: int, first: int, steps: int) -> None:
    """Dx_t = sum over the taps k of weight_k grad_(t + taps - 1 - k), from step `first` on."""
    for t in range(steps):
        total = fill(0.0, 1)
        for tap in range(call.taps):
            at = first + t + call.taps - 1 - tap
            if at >= 0:
                grad = load(memory.grad, at * LANES, 1)
                total = fma(load(memory.weight, tap * LANES, 1), grad, total)
        store(target, t * LANES, total)


@device
def _to_weights(call: Convolution, memory: _Memory, steps: int) -> None:
    """Adds the chunk's part of the gradients of weight and bias."""
    first = memory.x - (call.taps - 1) * VECTOR_BYTES
    for tap in range(call.taps):
        total = fill(0.0, 1)
        for i in range(0, steps * LANES, LANES):
            total = fma(load(memory.grad, i, 1), load(first, i + tap * LANES, 1), total)
        store(memory.dweight, tap * LANES, load(memory.dweight, tap * LANES, 1) + total)
    total = fill(0.0, 1)
    for i in range(0, steps * LANES, LANES):
        total = total + load(memory.grad, i, 1)
    store(memory.dweight, call.taps * LANES, load(memory.dweight, call.taps * LANES, 1) + total)


@device
def _write_input(
    call: Convolution, memory: _Memory, batch: int, order: int, channel: int, lanes: int,
    walk: Walk,
) -> None:  # fmt: skip
    """Writes dx, added to that of the orders before."""
    if order > 0:
        read(call.dx, call.dx_kind, batch, call.channels, channel, lanes, walk, memory.x)
        for i in range(0, walk.steps * LANES, LANES):
            store(memory.y, i, load(memory.y, i, 1) + load(memory.x, i, 1))
    write(call.dx, call.dx_kind, batch, call.channels, channel, lanes, walk, memory.y)


@kernel
def backward_kernel(
    call: Convolution, orders: Any, places: Any, scratch: int,
    first_batch: int, last_batch: int, first_tile: int, last_tile: int, part: int,
) -> None:  # fmt: skip
    """As `forward_kernel`, from the last chunk to the first; `call.out` is the gradient of out.

    Workers that share channels sum the gradients of weight and bias in their own part.
    """
    memory = _lay_out(call, scratch)
    rows, chunks = call.orders * call.channels, (call.length + STEPS - 1) // STEPS
    for sequence in range(first_batch * call.orders, last_batch * call.orders):
        batch, order = sequence // call.orders, sequence % call.orders
        for tile in range(first_tile, last_tile):
            channel = tile * LANES
            lanes, row = min(LANES, call.channels - channel), order * call.channels + channel
            _begin(call, memory, row, lanes)
            _clear(memory.dweight, call.taps + 1)
            _clear(memory.grad, 2 * STEPS)
            for chunk in range(chunks - 1, -1, -1):
                if chunk > 0:
                    walk = walk_chunk(
                        orders, order, chunk - 1, call.length, call.channels_last, places, True
                    )
                    read(
                        call.x, call.kind, batch, call.channels, channel, lanes, walk,
                        memory.before,
                    )  # fmt: skip
                else:
                    _before_first(call, memory, batch, row, lanes)
                walk = walk_chunk(
                    orders, order, chunk, call.length, call.channels_last, places, True
                )
                read(call.x, call.kind, batch, call.channels, channel, lanes, walk, memory.x)
                _move(memory.grad, memory.later, call.taps - 1)
                read(call.out, call.kind, batch, rows, row, lanes, walk, memory.grad)
                if call.silu:
                    _convolve(call, memory, walk.steps)
                    _through_silu(memory, walk.steps)
                _to_weights(call, memory, walk.steps)
                _to_input(call, memory, memory.y, 0, walk.steps)
                _write_input(call, memory, batch, order, channel, lanes, walk)
            add_state(call.dweight, part * rows + row, call.taps, lanes, memory.dweight)
            sums = memory.dweight + call.taps * VECTOR_BYTES
            add_state(call.dbias, part * rows + row, 1, lanes, sums)
            if call.dinitial_states != 0:
                _to_input(call, memory, memory.y, 1 - call.taps, call.taps - 1)
                put_state(call.dinitial_states, batch * rows + row, call.taps - 1, lanes, memory.y)
