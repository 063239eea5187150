"""Backward pass of the selective scan in numba.

Tiles, and their chunks of 64 steps, are taken from the last to the first. In each chunk, states and
decays are recomputed from the checkpoint, a block of states at a time, and the block then runs
backwards while they are in the cache. With g_t the gradient of h_t that later steps send back,

    dh_t = gy_t C_t + g_t               g_{t-1} = a_t dh_t         a_t = exp(dt_t A)
    dC_t = gy_t h_t                     dB_t = dh_t dt_t u_t       summed over the channels
    du_t = dt_t dh_t . B_t + D gy_t     dA = sum_t w_t dt_t        w_t = a_t dh_t h_{t-1}
    d(dt_t) = u_t dh_t . B_t + w_t . A

dB and dC are summed across the lanes as they come, LANES vectors at a time: summed lane by lane
over the tiles they would be too large for the first cache.
w_t uses the stored h_{t-1}: h_t - dt_t B_t u_t would be rounding noise where decay is strong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from medplat_kernels.vector_memory import FLOAT32, load_element, store_element
from medplat_kernels.vector_tiles import (
    STEPS,
    TILE_BYTES,
    VECTOR_BYTES,
    Walk,
    add_state,
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
    fill,
    fma,
    kernel,
    lane_sums,
    load,
    sigmoid,
    softplus,
    spread,
    store,
)

from .numba_tiles import (
    LOG2_E,
    Gradients,
    Scan,
    add_states,
    get_parameters,
    locate,
    read_states,
    states_from,
    take_checkpoint,
    tiles_of,
    walk_tile,
    write_states,
)

STATES_AT_ONCE = 4
LN_2 = 1.0 / LOG2_E
# Tiles of `_Memory` before B.
TILES = 9


class _Memory(NamedTuple):
    """Addresses of a worker's scratch memory.

    Attributes:
        u: Tile of u; free once it was used.
        raw: delta + delta_bias.
        dt: Step size.
        x: dt u.
        gy: grad_out, then the gradient of y.
        y: y.
        dhB: dh . B, then du.
        wA: w . A log2(e), then ddelta.
        z: z, then its gradient but for the factor y.
        B: B, then dB summed over the lanes.
        C: C, then dC summed over the lanes.
        before: h_{t-1} of a block of states.
        decays: a_t of a block of states.
        products: Vectors that are to be summed across their lanes.
        dB: Sums for dB, [step][state] for each block of states of 64 steps.
        dC: Sums for dC.
        state: States at the beginning of the chunk.
        kept: What each channel tile keeps over a sequence, see `_Kept`.
    """

    u: int
    raw: int
    dt: int
    x: int
    gy: int
    y: int
    dhB: int
    wA: int
    z: int
    B: int
    C: int
    before: int
    decays: int
    products: int
    dB: int
    dC: int
    state: int
    kept: int


class _Kept(NamedTuple):
    """Addresses of what one channel tile keeps: sums, and the gradient sent back in time."""

    parameters: int
    dA: int
    dbias: int
    dD: int
    later: int


def scratch_size(scan: Scan, tiles: int) -> int:
    """float32s of scratch memory that a worker with `tiles` channel tiles needs."""
    of_room = TILES + 2 * -(-scan.states // LANES)
    of_tiles = LANES + scan.states + tiles * (3 * scan.states + 4)
    of_chunk = 2 * STEPS * (LANES * STATES_AT_ONCE + scan.states)
    return LANES * (scan.room * of_room + of_tiles) + of_chunk


@device
def _lay_out(scan: Scan, scratch: int) -> _Memory:
    tile = scan.room * VECTOR_BYTES
    of_states = (scan.states + LANES - 1) // LANES * tile
    of_block = STATES_AT_ONCE * TILE_BYTES
    of_sums = 4 * scan.states * STEPS
    B = scratch + TILES * tile
    before = B + 2 * of_states
    products = before + 2 * of_block
    dB = products + LANES * VECTOR_BYTES
    state = dB + 2 * of_sums
    return _Memory(
        scratch, scratch + tile, scratch + 2 * tile, scratch + 3 * tile, scratch + 4 * tile,
        scratch + 5 * tile, scratch + 6 * tile, scratch + 7 * tile, scratch + 8 * tile,
        B, B + of_states, before, before + of_block, products, dB, dB + of_sums,
        state, state + scan.states * VECTOR_BYTES,
    )  # fmt: skip


@device
def _kept_by(scan: Scan, memory: _Memory, tile: int) -> _Kept:
    """Where the worker's channel tile number `tile` keeps things."""
    N = scan.states
    own = memory.kept + tile * (3 * N + 4) * VECTOR_BYTES
    dA = own + (N + 2) * VECTOR_BYTES
    dbias = dA + N * VECTOR_BYTES
    return _Kept(own, dA, dbias, dbias + VECTOR_BYTES, dbias + 2 * VECTOR_BYTES)


@device
def _add_sums(products: int, sums: int, at: int) -> None:
    """Adds, from element `at` of `sums` on, the sums across their lanes of LANES vectors."""
    store(sums, at, load(sums, at, 1) + lane_sums(products, 0, LANES))


def _recompute(rows: int) -> Any:
    together = LANES // rows

    @device
    def recompute(scan: Scan, memory: _Memory, kept: _Kept, n: int, first: int, steps: int) -> None:
        """The forward pass of states n .. n + rows; keeps h_{t-1} and decays, adds to dC."""
        x, dt, gy, y = memory.x, memory.dt, memory.gy, memory.y
        B, C = states_from(scan, memory.B, n), states_from(scan, memory.C, n)
        before, decays = memory.before, memory.decays
        products, dC = memory.products, memory.dC + 4 * n * STEPS
        rate = load(kept.parameters, n * LANES, rows)
        h = load(memory.state, n * LANES, rows)
        for start in range(0, steps, together):
            for t in range(start, min(start + together, steps)):
                i, j = (first + t) * LANES, t * rows * LANES
                decay = exp2(load(dt, i, 1) * rate)
                store(decays, j, decay)
                store(before, j, h)
                h = fma(decay, h, load(x, i, 1) * spread(B, i, rows))
                store(y, i, dot(h, spread(C, i, rows), load(y, i, 1)))
                store(products, (t - start) * rows * LANES, load(gy, i, 1) * h)
            _add_sums(products, dC, start * rows)

    return recompute


def _reverse(rows: int) -> Any:
    together = LANES // rows

    @device
    def reverse(scan: Scan, memory: _Memory, kept: _Kept, n: int, first: int, steps: int) -> None:
        """The backward pass of the same states; adds to dB, dh . B, w . A and dA."""
        x, dt, gy, dhB, wA = memory.x, memory.dt, memory.gy, memory.dhB, memory.wA
        B, C = states_from(scan, memory.B, n), states_from(scan, memory.C, n)
        before, decays = memory.before, memory.decays
        products, dB = memory.products, memory.dB + 4 * n * STEPS
        rate = load(kept.parameters, n * LANES, rows)
        g = load(kept.later, n * LANES, rows)
        dA = fill(0.0, rows)
        for start in range((steps - 1) // together * together, -1, -together):
            for t in range(min(start + together, steps) - 1, start - 1, -1):
                i, j = (first + t) * LANES, t * rows * LANES
                dh = fma(load(gy, i, 1), spread(C, i, rows), g)
                store(products, (t - start) * rows * LANES, dh * load(x, i, 1))
                store(dhB, i, dot(dh, spread(B, i, rows), load(dhB, i, 1)))
                g = dh * load(decays, j, rows)
                w = g * load(before, j, rows)
                store(wA, i, dot(w, rate, load(wA, i, 1)))
                dA = fma(w, load(dt, i, 1), dA)
            _add_sums(products, dB, start * rows)
        store(kept.later, n * LANES, g)
        store(kept.dA, n * LANES, load(kept.dA, n * LANES, rows) + dA)

    return reverse


_recompute_block, _recompute_one = _recompute(STATES_AT_ONCE), _recompute(1)
_reverse_block, _reverse_one = _reverse(STATES_AT_ONCE), _reverse(1)


@device
def _enter(scan: Scan, memory: _Memory, parameters: int, steps: int) -> None:
    """From u, delta, grad_out and z to the tiles that the states are scanned with."""
    bias = load(parameters, scan.states * LANES, 1)
    skip = load(parameters, (scan.states + 1) * LANES, 1)
    zero, one = fill(0.0, 1), fill(1.0, 1)
    for i in range(0, steps * LANES, LANES):
        u = load(memory.u, i, 1)
        raw = load(memory.raw, i, 1) + bias
        step = raw
        if scan.softplus:
            step = softplus(raw)
        store(memory.raw, i, raw)
        store(memory.dt, i, step)
        store(memory.x, i, step * u)
        store(memory.y, i, skip * u)
        store(memory.dhB, i, zero)
        store(memory.wA, i, zero)
        if scan.z != 0:
            z, grad = load(memory.z, i, 1), load(memory.gy, i, 1)
            part = sigmoid(z)
            silu = z * part
            store(memory.z, i, grad * (part * (one + z - silu)))
            store(memory.gy, i, grad * silu)


@device
def _leave(scan: Scan, memory: _Memory, kept: _Kept, steps: int) -> None:
    """Turns dh . B into du and w . A into ddelta; adds to the gradients of delta_bias and D."""
    skip = load(kept.parameters, (scan.states + 1) * LANES, 1)
    ln2 = fill(LN_2, 1)
    dbias, dD = fill(0.0, 1), fill(0.0, 1)
    for i in range(0, steps * LANES, LANES):
        u, grad, inner = load(memory.u, i, 1), load(memory.gy, i, 1), load(memory.dhB, i, 1)
        ddelta = fma(inner, u, load(memory.wA, i, 1) * ln2)
        if scan.softplus:
            ddelta = ddelta * sigmoid(load(memory.raw, i, 1))
        store(memory.wA, i, ddelta)
        store(memory.dhB, i, fma(inner, load(memory.dt, i, 1), skip * grad))
        dbias = dbias + ddelta
        dD = fma(grad, u, dD)
    store(kept.dbias, 0, load(kept.dbias, 0, 1) + dbias)
    store(kept.dD, 0, load(kept.dD, 0, 1) + dD)


@device
def _add_stored(
    scan: Scan, source: int, kind: int, batch: int, channel: int, lanes: int, walk: Walk,
    tile: int, spare: int,
) -> None:  # fmt: skip
    """Adds to a tile what the orders before left in a tensor (Bt, D, L)."""
    read(source, kind, batch, scan.channels, channel, lanes, walk, spare)
    for i in range(0, walk.steps * LANES, LANES):
        store(tile, i, load(tile, i, 1) + load(spare, i, 1))


@device
def _write_tile(
    scan: Scan, grad: Gradients, memory: _Memory, batch: int, order: int, channel: int, lanes: int,
    walk: Walk,
) -> None:  # fmt: skip
    """Writes ddelta, du and dz of a tile.

    Orders that share u add to du one after another. The memory of dz gathers the y of the orders;
    the last one turns their sum into dz.
    """
    rows, row = scan.orders * scan.channels, order * scan.channels + channel
    write(grad.delta, scan.kind, batch, rows, row, lanes, walk, memory.wA)
    kind, spare = grad.u_kind, memory.u
    if scan.shared:
        if order > 0:
            _add_stored(scan, grad.u, kind, batch, channel, lanes, walk, memory.dhB, spare)
        write(grad.u, kind, batch, scan.channels, channel, lanes, walk, memory.dhB)
    else:
        write(grad.u, kind, batch, rows, row, lanes, walk, memory.dhB)
    if scan.z == 0:
        return
    kind, y = grad.z_kind, memory.y
    if order > 0:
        _add_stored(scan, grad.z, kind, batch, channel, lanes, walk, y, spare)
    if order == scan.orders - 1:
        for i in range(0, walk.steps * LANES, LANES):
            store(y, i, load(y, i, 1) * load(memory.z, i, 1))
    write(grad.z, kind, batch, scan.channels, channel, lanes, walk, y)


@device
def _scan_chunk(
    scan: Scan, memory: _Memory, kept: _Kept, batch: int, order: int, channel: int, lanes: int,
    walk: Walk, first: int,
) -> None:  # fmt: skip
    """At most 64 steps of a tile, from its step `first` on."""
    steps, n = min(STEPS, walk.steps - first), 0
    chunk = (walk.first + first) // STEPS
    take_checkpoint(scan, batch, order, chunk, channel, lanes, memory.state)
    while n + STATES_AT_ONCE <= scan.states:
        _recompute_block(scan, memory, kept, n, first, steps)
        _reverse_block(scan, memory, kept, n, first, steps)
        n += STATES_AT_ONCE
    while n < scan.states:
        _recompute_one(scan, memory, kept, n, first, steps)
        _reverse_one(scan, memory, kept, n, first, steps)
        n += 1


@device
def _clear(address: int, vectors: int) -> None:
    for i in range(vectors):
        store(address, i * LANES, fill(0.0, 1))


@device
def _put_sums(scan: Scan, sums: int, tile: int) -> None:
    """Puts sums for dB or dC into tiles like those of B."""
    in_blocks = scan.states // STATES_AT_ONCE * STATES_AT_ONCE
    for n in range(scan.states):
        rows = STATES_AT_ONCE if n < in_blocks else 1
        source, target = n // rows * rows * STEPS + n % rows, states_from(scan, tile, n)
        for t in range(STEPS):
            store_element(
                target, t * LANES, load_element(sums, source + t * rows, FLOAT32), FLOAT32
            )


@device
def _put_chunk(scan: Scan, memory: _Memory, first: int) -> None:
    """Puts the sums of a chunk, from step `first` on, in the place of its B and C."""
    _put_sums(scan, memory.dB, memory.B + first * VECTOR_BYTES)
    _put_sums(scan, memory.dC, memory.C + first * VECTOR_BYTES)


@device
def _scan_tile(
    scan: Scan, grad: Gradients, memory: _Memory, kept: _Kept, batch: int, order: int,
    channel: int, lanes: int, walk: Walk,
) -> None:  # fmt: skip
    """One tile, from the tensors to the gradients.

    The sums over its channels are left in `memory`, but for a band, which has more than one chunk:
    in the tiles of B and C.
    """
    rows, row = scan.orders * scan.channels, order * scan.channels + channel
    if scan.shared:
        read(scan.u, scan.kind, batch, scan.channels, channel, lanes, walk, memory.u)
    else:
        read(scan.u, scan.kind, batch, rows, row, lanes, walk, memory.u)
    read(scan.delta, scan.kind, batch, rows, row, lanes, walk, memory.raw)
    read(grad.out, scan.out_kind, batch, scan.channels, channel, lanes, walk, memory.gy)
    if scan.z != 0:
        read(scan.z, scan.kind, batch, scan.channels, channel, lanes, walk, memory.z)
    _enter(scan, memory, kept.parameters, walk.steps)
    last = (walk.steps - 1) // STEPS * STEPS
    for first in range(last, -1, -STEPS):
        _scan_chunk(scan, memory, kept, batch, order, channel, lanes, walk, first)
        if walk.rows > 1:
            _put_chunk(scan, memory, first)
            _clear(memory.dB, 2 * STEPS * scan.states // LANES)
    _leave(scan, memory, kept, walk.steps)
    _write_tile(scan, grad, memory, batch, order, channel, lanes, walk)


@device
def _write_group(
    scan: Scan, grad: Gradients, memory: _Memory, batch: int, order: int, group: int, walk: Walk,
    part: int, add: bool,
) -> None:  # fmt: skip
    """Writes dB and dC of a tile of one group, or adds to what other channel tiles gave."""
    if group < 0:
        return
    size = 4 * scan.batch * scan.orders * scan.groups * scan.states * scan.length
    dB, dC, spare = grad.B + part * size, grad.C + part * size, memory.u
    if walk.rows <= 1:
        _put_chunk(scan, memory, 0)
    if add:
        add_states(scan, dB, batch, order, group, walk, memory.B, spare)
        add_states(scan, dC, batch, order, group, walk, memory.C, spare)
    write_states(scan, dB, batch, order, group, walk, memory.B)
    write_states(scan, dC, batch, order, group, walk, memory.C)


@device
def _begin(
    scan: Scan, grad: Gradients, memory: _Memory, batch: int, order: int, first_tile: int,
    last_tile: int,
) -> None:  # fmt: skip
    """Gets what the worker's channel tiles keep over a sequence."""
    row = (batch * scan.orders + order) * scan.channels
    for tile in range(first_tile, last_tile):
        _, channel, lanes = locate(scan, tile)
        kept = _kept_by(scan, memory, tile - first_tile)
        get_parameters(scan, order, channel, lanes, kept.parameters)
        _clear(kept.dA, scan.states + 2)
        get_state(grad.last_state, row + channel, scan.states, lanes, kept.later)


@device
def _end(
    scan: Scan, grad: Gradients, memory: _Memory, batch: int, order: int, first_tile: int,
    last_tile: int, part: int,
) -> None:  # fmt: skip
    """Adds to the gradients of the parameters, and puts those of the initial states."""
    row = (batch * scan.orders + order) * scan.channels
    own = (part * scan.orders + order) * scan.channels
    for tile in range(first_tile, last_tile):
        _, channel, lanes = locate(scan, tile)
        kept = _kept_by(scan, memory, tile - first_tile)
        add_state(grad.A, own + channel, scan.states, lanes, kept.dA)
        add_state(grad.delta_bias, own + channel, 1, lanes, kept.dbias)
        add_state(grad.D, own + channel, 1, lanes, kept.dD)
        put_state(grad.initial_state, row + channel, scan.states, lanes, kept.later)


@device
def _scan_sequence(
    scan: Scan, grad: Gradients, orders: Any, places: Any, memory: _Memory, batch: int, order: int,
    first_tile: int, last_tile: int, part_of_A: int, part_of_B: int, add: bool,
) -> None:  # fmt: skip
    """One order of one batch entry, from the last tile to the first, over some channel tiles."""
    _begin(scan, grad, memory, batch, order, first_tile, last_tile)
    for number in range(tiles_of(scan, orders, order) - 1, -1, -1):
        walk = walk_tile(scan, orders, order, number, places, True)
        loaded = -1
        for tile in range(first_tile, last_tile):
            group, channel, lanes = locate(scan, tile)
            if group != loaded:
                _write_group(scan, grad, memory, batch, order, loaded, walk, part_of_B, add)
                read_states(scan, scan.B, batch, order, group, walk, memory.B)
                read_states(scan, scan.C, batch, order, group, walk, memory.C)
                _clear(memory.dB, 2 * STEPS * scan.states // LANES)
                loaded = group
            kept = _kept_by(scan, memory, tile - first_tile)
            _scan_tile(scan, grad, memory, kept, batch, order, channel, lanes, walk)
        _write_group(scan, grad, memory, batch, order, loaded, walk, part_of_B, add)
    _end(scan, grad, memory, batch, order, first_tile, last_tile, part_of_A)


@kernel
def backward_kernel(
    scan: Scan, grad: Gradients, orders: Any, places: Any, scratch: int,
    first_batch: int, last_batch: int, first_tile: int, last_tile: int,
    part_of_A: int, part_of_B: int,
) -> None:  # fmt: skip
    """A worker's share: some batch entries, some channel tiles, all orders one after another.

    Workers that share channels add to their own part of the gradients of A, D and delta_bias,
    those that share batch entries to their own part of those of B and C. All parts start at zero.
    """
    memory = _lay_out(scan, scratch)
    for sequence in range(first_batch * scan.orders, last_batch * scan.orders):
        batch, order = sequence // scan.orders, sequence % scan.orders
        tiles = tiles_in_step(orders, order, scan.channels_last, last_tile - first_tile)
        for tile in range(first_tile, last_tile, tiles):
            _scan_sequence(
                scan, grad, orders, places, memory, batch, order, tile, tile + tiles,
                part_of_A, part_of_B, tile > first_tile,
            )  # fmt: skip
