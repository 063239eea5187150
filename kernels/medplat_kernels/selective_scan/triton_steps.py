"""Parts of the scan's Triton kernels: a few consecutive steps of one sequence as blocks.

One thread has one channel. A block is (WIDTH,): one number a channel; STEPS consecutive steps are a
tuple of STEPS blocks. Channels-first memory is read STEPS steps at a time, as one vector load a
thread, and taken apart in registers; channels-last memory is read a step at a time, neighbouring
threads reading neighbouring channels.
"""

# ruff: noqa: RUF005, RET505  (Triton's tuples have no unpacking; its branches must end in else)

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def columns(tile, STEPS: tl.constexpr):
    """The columns of a (WIDTH, STEPS) tile as a tuple of blocks; STEPS is 2, 4 or 8."""
    rows: tl.constexpr = tile.shape[0]
    if STEPS == 2:
        return tl.split(tile)
    else:
        even, odd = tl.split(tl.reshape(tile, (rows, STEPS // 2, 2)))
        left = columns(even, STEPS // 2)
        right = columns(odd, STEPS // 2)
        both = ()
        for step in tl.static_range(STEPS // 2):
            both = both + (left[step], right[step])
        return both


@triton.jit
def tile_of(blocks, STEPS: tl.constexpr):
    """The (WIDTH, STEPS) tile whose columns these blocks are; STEPS is 2, 4 or 8."""
    rows: tl.constexpr = blocks[0].shape[0]
    if STEPS == 2:
        return tl.join(blocks[0], blocks[1])
    else:
        left = ()
        right = ()
        for step in tl.static_range(STEPS // 2):
            left = left + (blocks[2 * step],)
            right = right + (blocks[2 * step + 1],)
        both = tl.join(tile_of(left, STEPS // 2), tile_of(right, STEPS // 2))
        return tl.reshape(both, (rows, STEPS))


@triton.jit
def place(step, length, walk, REVERSED: tl.constexpr, WALK: tl.constexpr):
    """Raster position visited at `step`: the rule of `scan_orders`, held inside the sequence.

    `walk` is (rows, columns, multiplier, shift): at // rows = (at * multiplier) >> (30 + shift).
    """
    at = tl.minimum(step, length - 1)
    if REVERSED:
        at = length - 1 - at
    if WALK:
        high = tl.umulhi((at * 4).to(tl.uint32), walk[2].to(tl.uint32))
        column = (high >> walk[3].to(tl.uint32)).to(tl.int32)
        at = (at - column * walk[0]) * walk[1] + column
    return at


@triton.jit
def places(
    first, length, walk, REVERSED: tl.constexpr, WALK: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """Raster positions of the steps first .. first + STEPS - 1."""
    at = ()
    for step in tl.static_range(STEPS):
        at = at + (place(first + step, length, walk, REVERSED, WALK),)
    return at


@triton.jit
def _columns_in_memory(first, length, REVERSED: tl.constexpr, STEPS: tl.constexpr):
    """Raster positions of a tile of steps, ascending, and which are inside the sequence."""
    if REVERSED:
        at = (length - STEPS - first) + tl.arange(0, STEPS)
        return at, at >= 0
    else:
        at = first + tl.arange(0, STEPS)
        return at, at < length


@triton.jit
def _turned(blocks, REVERSED: tl.constexpr, STEPS: tl.constexpr):
    """Blocks in the order of the sequence from blocks in the order of memory, and back."""
    if REVERSED:
        turned = ()
        for step in tl.static_range(STEPS - 1, -1, -1):
            turned = turned + (blocks[step],)
        return turned
    else:
        return blocks


@triton.jit
def read(
    pointer, lane, live, first, at, length, width,
    LAST: tl.constexpr, REVERSED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Steps first .. first + STEPS - 1 of the channels `lane` as a tuple of float32 blocks.

    Zero where there is no channel or no step.

    Args:
        pointer: Element (0, 0) of one batch entry, (width, L), or (L, width) with LAST.
        lane: Channel of each thread.
        live: Which threads have a channel.
        first: The first step.
        at: `places` of the steps.
        length: L.
        width: Channels in memory.
        LAST: Channels are the last axis; else the order must be raster, REVERSED or not.
        REVERSED: The order runs backwards.
        STEPS: 1, 2, 4 or 8.
    """
    if LAST or STEPS == 1:
        blocks = ()
        for step in tl.static_range(STEPS):
            here = live & (first + step + tl.zeros_like(lane) < length)
            offset = at[step] * width + lane if LAST else lane * length + at[step]
            value = tl.load(pointer + offset, mask=here, other=0.0)
            blocks = blocks + (value.to(tl.float32),)
        return blocks
    else:
        column, inside = _columns_in_memory(first, length, REVERSED, STEPS)
        offset = lane[:, None] * length + column[None, :]
        here = live[:, None] & inside[None, :]
        tile = tl.load(pointer + offset, mask=here, other=0.0).to(tl.float32)
        return _turned(columns(tile, STEPS), REVERSED, STEPS)


@triton.jit
def write(
    pointer, blocks, lane, live, first, at, length, width,
    LAST: tl.constexpr, REVERSED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Store what `read` reads."""
    if LAST or STEPS == 1:
        for step in tl.static_range(STEPS):
            here = live & (first + step + tl.zeros_like(lane) < length)
            value = blocks[step].to(pointer.dtype.element_ty)
            offset = at[step] * width + lane if LAST else lane * length + at[step]
            tl.store(pointer + offset, value, mask=here)
    else:
        column, inside = _columns_in_memory(first, length, REVERSED, STEPS)
        offset = lane[:, None] * length + column[None, :]
        here = live[:, None] & inside[None, :]
        tile = tile_of(_turned(blocks, REVERSED, STEPS), STEPS)
        tl.store(pointer + offset, tile.to(pointer.dtype.element_ty), mask=here)


@triton.jit
def add(
    pointer, blocks, lane, live, first, at, length, width,
    LAST: tl.constexpr, REVERSED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The blocks and what memory holds, summed."""
    old = read(pointer, lane, live, first, at, length, width, LAST, REVERSED, STEPS)
    sums = ()
    for step in tl.static_range(STEPS):
        sums = sums + (old[step] + blocks[step],)
    return sums


@triton.jit
def write_sum(pointer, block, step, length):
    """Store the sum of a block over its channels, if `step` is inside the sequence."""
    first = tl.arange(0, 1)
    total = tl.sum(block, axis=0) + 0.0 * first
    tl.store(pointer + first, total, mask=step + first < length)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) with a relative error of 1e-7 everywhere.

    log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3 for e = exp(-|x|), as a series in s^2: the
    device's logarithm has an absolute error that small steps would feel.
    """
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 15.0
    series = q * series + 1.0 / 13.0
    series = q * series + 1.0 / 11.0
    series = q * series + 1.0 / 9.0
    series = q * series + 1.0 / 7.0
    series = q * series + 1.0 / 5.0
    series = q * series + 1.0 / 3.0
    series = q * series + 1.0
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def step_sizes(
    raw, bias, first, length, SOFTPLUS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Step size dt of each step: delta + delta_bias, through softplus if asked; 0 past the end."""
    sizes = ()
    for step in tl.static_range(STEPS):
        size = raw[step] + bias
        if SOFTPLUS:
            size = softplus(size)
        sizes = sizes + (tl.where(first + step + tl.zeros_like(size) < length, size, 0.0),)
    return sizes


@triton.jit
def gated(gradient, z, STEPS: tl.constexpr):
    """Gradient of the ungated output: gradient of the output times silu(z)."""
    blocks = ()
    for step in tl.static_range(STEPS):
        blocks = blocks + (gradient[step] * z[step] * sigmoid(z[step]),)
    return blocks


@triton.jit
def gate_slope(gradient, y, z, STEPS: tl.constexpr):
    """Gradient of z: gradient of the output times the ungated output times silu'(z)."""
    blocks = ()
    for step in tl.static_range(STEPS):
        on = sigmoid(z[step])
        slope = on * (1.0 + z[step] * (1.0 - on))
        blocks = blocks + (gradient[step] * y[step] * slope,)
    return blocks


@triton.jit
def program(channels, groups, WIDTH: tl.constexpr):
    """Batch entry, block in its group, group, first channel, and which threads have a channel."""
    size = channels // groups
    per_group = (size + WIDTH - 1) // WIDTH
    group = tl.program_id(0) // per_group
    part = tl.program_id(0) % per_group
    live = tl.arange(0, WIDTH) < size - part * WIDTH
    return tl.program_id(2).to(tl.int64), part, group, group * size + part * WIDTH, live


@triton.jit
def load_states(pointer, rows, live, STRIDE: tl.constexpr, STATES: tl.constexpr):
    """The states of each channel, a tuple of blocks; zeros where there is no such array.

    Those of thread i are at `rows`[i], STRIDE apart.
    """
    values = ()
    for n in tl.static_range(STATES):
        value = tl.zeros(live.shape, tl.float32)
        if pointer is not None:
            value = tl.load(pointer + rows + n * STRIDE, mask=live, other=0.0)
        values = values + (value,)
    return values


@triton.jit
def save_states(pointer, rows, values, live, STRIDE: tl.constexpr, STATES: tl.constexpr):
    """Store states where `load_states` reads them."""
    for n in tl.static_range(STATES):
        tl.store(pointer + rows + n * STRIDE, values[n], mask=live)


@triton.jit
def per_channel(vector, origin, live):
    """A number a channel, 0 where the vector is absent."""
    value = tl.zeros(live.shape, tl.float32)
    if vector is not None:
        value = tl.load(vector + origin + tl.arange(0, live.shape[0]), mask=live, other=0.0)
    return value


@triton.jit
def decay_of(table, n, live):
    """A log2(e) of one state, read at each use: registers are scarce."""
    width: tl.constexpr = live.shape[0]
    return tl.load(table + n * width + tl.arange(0, width), mask=live, other=0.0)


@triton.jit
def advance(
    h, q, x, table, B, at, across, live, STATES: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """The states after STEPS steps."""
    after = ()
    for n in tl.static_range(STATES):
        decay = decay_of(table, n, live)
        value = h[n]
        for step in tl.static_range(STEPS):
            b = tl.load(B + at[step] * across + n)
            value = tl.exp2(q[step] * decay) * value + q[step] * x[step] * b
        after = after + (value,)
    return after
