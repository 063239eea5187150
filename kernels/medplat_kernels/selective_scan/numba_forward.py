"""Forward pass of the selective scan in numba.

For each tile of LANES channels, softplus, bias and skip run over its steps once; then the states
go through them, 64 steps at a time, in blocks held in registers; then the gate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from medplat_kernels.vector_tiles import (
    STEPS,
    VECTOR_BYTES,
    Walk,
    get_state,
    put_state,
    read,
    tiles_in_step,
    write,
)
from medplat_kernels.vectors import (
    LANES,
    device,
    dot,
    exp2,
    fma,
    kernel,
    load,
    sigmoid,
    softplus,
    spread,
    store,
)

from .numba_tiles import (
    Scan,
    get_parameters,
    locate,
    read_states,
    save_checkpoint,
    states_from,
    tiles_of,
    walk_tile,
)

STATES_AT_ONCE = 4


class _Memory(NamedTuple):
    """Addresses of a worker's scratch memory: tiles, and what each channel tile keeps."""

    x: int
    dt: int
    y: int
    spare: int
    B: int
    C: int
    parameters: int
    states: int


def scratch_size(scan: Scan, tiles: int) -> int:
    """float32s of scratch memory that a worker with `tiles` channel tiles needs."""
    of_states = -(-scan.states // LANES)
    return LANES * (scan.room * (4 + 2 * of_states) + tiles * (2 * scan.states + 2))


@device
def _lay_out(scan: Scan, scratch: int, tiles: int) -> _Memory:
    tile = scan.room * VECTOR_BYTES
    of_states = (scan.states + LANES - 1) // LANES * tile
    B = scratch + 4 * tile
    parameters = B + 2 * of_states
    return _Memory(
        scratch, scratch + tile, scratch + 2 * tile, scratch + 3 * tile,
        B, B + of_states, parameters, parameters + tiles * (scan.states + 2) * VECTOR_BYTES,
    )  # fmt: skip


@device
def _kept_by(scan: Scan, memory: _Memory, tile: int) -> tuple[int, int]:
    """Addresses of the parameters and of the state of the worker's channel tile `tile`."""
    return (
        memory.parameters + tile * (scan.states + 2) * VECTOR_BYTES,
        memory.states + tile * scan.states * VECTOR_BYTES,
    )


def _advance(rows: int) -> Any:
    @device
    def advance(
        scan: Scan, memory: _Memory, parameters: int, state: int, n: int, first: int, steps: int
    ) -> None:
        """Takes states n .. n + rows through steps: h = exp(dt A) h + B x, y += C h."""
        at = first * VECTOR_BYTES
        x, dt, y = memory.x + at, memory.dt + at, memory.y + at
        B, C = states_from(scan, memory.B + at, n), states_from(scan, memory.C + at, n)
        rate = load(parameters, n * LANES, rows)
        h = load(state, n * LANES, rows)
        for i in range(0, steps * LANES, LANES):
            decay = exp2(load(dt, i, 1) * rate)
            h = fma(decay, h, load(x, i, 1) * spread(B, i, rows))
            store(y, i, dot(h, spread(C, i, rows), load(y, i, 1)))
        store(state, n * LANES, h)

    return advance


_advance_block = _advance(STATES_AT_ONCE)
_advance_one = _advance(1)


@device
def _enter(scan: Scan, memory: _Memory, parameters: int, steps: int) -> None:
    """From the tiles u, in x, and delta, in dt: dt, x = dt u and y = D u."""
    x, dt = memory.x, memory.dt
    bias = load(parameters, scan.states * LANES, 1)
    skip = load(parameters, (scan.states + 1) * LANES, 1)
    for i in range(0, steps * LANES, LANES):
        u = load(x, i, 1)
        step = load(dt, i, 1) + bias
        if scan.softplus:
            step = softplus(step)
        store(dt, i, step)
        store(x, i, step * u)
        store(memory.y, i, skip * u)


@device
def _leave(
    scan: Scan, memory: _Memory, batch: int, order: int, channel: int, lanes: int, walk: Walk
) -> None:
    """Writes y: added to the orders before it, gated after the last one."""
    y, spare, channels, end = memory.y, memory.spare, scan.channels, walk.steps * LANES
    if order > 0:
        read(scan.out, scan.out_kind, batch, channels, channel, lanes, walk, spare)
        for i in range(0, end, LANES):
            store(y, i, load(y, i, 1) + load(spare, i, 1))
    if scan.z != 0 and order == scan.orders - 1:
        read(scan.z, scan.kind, batch, channels, channel, lanes, walk, spare)
        for i in range(0, end, LANES):
            z = load(spare, i, 1)
            store(y, i, load(y, i, 1) * (z * sigmoid(z)))
    write(scan.out, scan.out_kind, batch, channels, channel, lanes, walk, y)


@device
def _scan_tile(
    scan: Scan, memory: _Memory, batch: int, order: int, channel: int, lanes: int, walk: Walk,
    parameters: int, state: int,
) -> None:  # fmt: skip
    """One tile, from the tensors to the output."""
    rows = scan.orders * scan.channels
    row = order * scan.channels + channel
    if scan.shared:
        read(scan.u, scan.kind, batch, scan.channels, channel, lanes, walk, memory.x)
    else:
        read(scan.u, scan.kind, batch, rows, row, lanes, walk, memory.x)
    read(scan.delta, scan.kind, batch, rows, row, lanes, walk, memory.dt)
    _enter(scan, memory, parameters, walk.steps)
    for first in range(0, walk.steps, STEPS):
        steps = min(STEPS, walk.steps - first)
        if scan.checkpoints != 0:
            chunk = (walk.first + first) // STEPS
            save_checkpoint(scan, batch, order, chunk, channel, lanes, state)
        n = 0
        while n + STATES_AT_ONCE <= scan.states:
            _advance_block(scan, memory, parameters, state, n, first, steps)
            n += STATES_AT_ONCE
        while n < scan.states:
            _advance_one(scan, memory, parameters, state, n, first, steps)
            n += 1
    _leave(scan, memory, batch, order, channel, lanes, walk)


@device
def _begin(
    scan: Scan, memory: _Memory, batch: int, order: int, first_tile: int, last_tile: int
) -> None:
    """Gets the parameters and initial states of the worker's channel tiles."""
    row = (batch * scan.orders + order) * scan.channels
    for tile in range(first_tile, last_tile):
        _, channel, lanes = locate(scan, tile)
        parameters, state = _kept_by(scan, memory, tile - first_tile)
        get_parameters(scan, order, channel, lanes, parameters)
        get_state(scan.initial_state, row + channel, scan.states, lanes, state)


@device
def _end(
    scan: Scan, memory: _Memory, batch: int, order: int, first_tile: int, last_tile: int
) -> None:
    """Puts the last states."""
    row = (batch * scan.orders + order) * scan.channels
    for tile in range(first_tile, last_tile):
        _, channel, lanes = locate(scan, tile)
        _, state = _kept_by(scan, memory, tile - first_tile)
        put_state(scan.last_state, row + channel, scan.states, lanes, state)


@device
def _scan_sequence(
    scan: Scan, orders: Any, places: Any, memory: _Memory, batch: int, order: int,
    first_tile: int, last_tile: int,
) -> None:  # fmt: skip
    """One order of one batch entry over some channel tiles."""
    _begin(scan, memory, batch, order, first_tile, last_tile)
    for number in range(tiles_of(scan, orders, order)):
        walk = walk_tile(scan, orders, order, number, places, False)
        loaded = -1
        for tile in range(first_tile, last_tile):
            group, channel, lanes = locate(scan, tile)
            if group != loaded:
                read_states(scan, scan.B, batch, order, group, walk, memory.B)
                read_states(scan, scan.C, batch, order, group, walk, memory.C)
                loaded = group
            parameters, state = _kept_by(scan, memory, tile - first_tile)
            _scan_tile(scan, memory, batch, order, channel, lanes, walk, parameters, state)
    _end(scan, memory, batch, order, first_tile, last_tile)


@kernel
def forward_kernel(
    scan: Scan, orders: Any, places: Any, scratch: int,
    first_batch: int, last_batch: int, first_tile: int, last_tile: int,
) -> None:  # fmt: skip
    """A worker's share: some batch entries, some channel tiles, all orders one after another."""
    memory = _lay_out(scan, scratch, last_tile - first_tile)
    for sequence in range(first_batch * scan.orders, last_batch * scan.orders):
        batch, order = sequence // scan.orders, sequence % scan.orders
        tiles = last_tile - first_tile
        if orders[order, 3] == 0:
            tiles = tiles_in_step(orders, order, scan.channels_last, tiles)
        for tile in range(first_tile, last_tile, tiles):
            _scan_sequence(scan, orders, places, memory, batch, order, tile, tile + tiles)
