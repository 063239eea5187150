"""What the scan's numba kernels share: the call they are given, and the transport of states."""

from __future__ import annotations

from typing import Any, NamedTuple

from medplat_kernels.vector_memory import FLOAT32, load_element, store_element
from medplat_kernels.vector_tiles import (
    STEPS,
    VECTOR_BYTES,
    Walk,
    get_state,
    put_state,
    read,
    walk_band,
    walk_chunk,
    write,
)
from medplat_kernels.vectors import LANES, device, load, store

LOG2_E = 1.4426950408889634


class Scan(NamedTuple):
    """One call: addresses of its tensors (0 for an absent one), its sizes and its switches.

    Shapes are those of the package's docstring. `channels` is D, that of one order; `groups` that
    of one order too. `room` is the number of steps of the largest tile.
    """

    u: int
    delta: int
    A: int
    B: int
    C: int
    D: int
    z: int
    delta_bias: int
    initial_state: int
    out: int
    checkpoints: int
    last_state: int
    batch: int
    orders: int
    channels: int
    groups: int
    states: int
    length: int
    kind: int
    out_kind: int
    softplus: int
    channels_last: int
    shared: int
    room: int


class Gradients(NamedTuple):
    """Addresses of what the backward pass reads and writes besides a `Scan`."""

    out: int
    last_state: int
    u: int
    delta: int
    A: int
    B: int
    C: int
    D: int
    z: int
    delta_bias: int
    initial_state: int
    u_kind: int
    z_kind: int


@device
def walk_tile(scan: Scan, orders: Any, order: int, number: int, places: Any, back: bool) -> Walk:
    """The steps of tile `number` of a sequence: 64, or a band."""
    if orders[order, 3] > 0:
        return walk_band(orders, order, number, scan.length, places)
    return walk_chunk(orders, order, number, scan.length, scan.channels_last, places, back)


@device
def tiles_of(scan: Scan, orders: Any, order: int) -> int:
    """Number of tiles of a sequence."""
    steps: int = max(STEPS, orders[order, 3])
    return (scan.length + steps - 1) // steps


@device
def states_from(scan: Scan, tile: int, n: int) -> int:
    """Address of state n at step 0 in the tiles of B or C: LANES states a tile."""
    return tile + n // LANES * scan.room * VECTOR_BYTES + 4 * (n % LANES)


@device
def locate(scan: Scan, tile: int) -> tuple[int, int, int]:
    """Group, first channel and number of channels of a tile."""
    per_group = scan.channels // scan.groups
    tiles = (per_group + LANES - 1) // LANES
    group = tile // tiles
    within = tile % tiles * LANES
    return group, group * per_group + within, min(LANES, per_group - within)


@device
def read_states(
    scan: Scan, source: int, batch: int, order: int, group: int, walk: Walk, tile: int
) -> None:
    """Fills tiles, LANES states each, with B or C of one group."""
    total = scan.orders * scan.groups * scan.states
    first = (order * scan.groups + group) * scan.states
    for n in range(0, scan.states, LANES):
        lanes = min(LANES, scan.states - n)
        read(source, scan.kind, batch, total, first + n, lanes, walk, states_from(scan, tile, n))


@device
def add_states(
    scan: Scan, source: int, batch: int, order: int, group: int, walk: Walk, tile: int, spare: int
) -> None:  # fmt: skip
    """Adds to such tiles what lies in a gradient of B or C, float32."""
    total = scan.orders * scan.groups * scan.states
    first = (order * scan.groups + group) * scan.states
    for n in range(0, scan.states, LANES):
        lanes, target = min(LANES, scan.states - n), states_from(scan, tile, n)
        read(source, FLOAT32, batch, total, first + n, lanes, walk, spare)
        for i in range(0, walk.steps * LANES, LANES):
            store(target, i, load(target, i, 1) + load(spare, i, 1))


@device
def write_states(
    scan: Scan, target: int, batch: int, order: int, group: int, walk: Walk, tile: int
) -> None:
    """Writes such tiles to a gradient of B or C, float32."""
    total = scan.orders * scan.groups * scan.states
    first = (order * scan.groups + group) * scan.states
    for n in range(0, scan.states, LANES):
        lanes = min(LANES, scan.states - n)
        write(target, FLOAT32, batch, total, first + n, lanes, walk, states_from(scan, tile, n))


@device
def _checkpoint_row(scan: Scan, batch: int, order: int, chunk: int, channel: int) -> int:
    """Row, of N float32, that holds the state of a channel before a chunk."""
    chunks = (scan.length + STEPS - 1) // STEPS
    return ((batch * scan.orders + order) * chunks + chunk) * scan.channels + channel


@device
def save_checkpoint(
    scan: Scan, batch: int, order: int, chunk: int, channel: int, lanes: int, block: int
) -> None:
    """Saves the states before a chunk, [state][lane] for a whole tile, else [lane][state]."""
    row = _checkpoint_row(scan, batch, order, chunk, channel)
    if lanes < LANES:
        put_state(scan.checkpoints, row, scan.states, lanes, block)
        return
    for n in range(scan.states):
        store(scan.checkpoints, row * scan.states + n * LANES, load(block, n * LANES, 1))


@device
def take_checkpoint(
    scan: Scan, batch: int, order: int, chunk: int, channel: int, lanes: int, block: int
) -> None:
    """Takes them back."""
    row = _checkpoint_row(scan, batch, order, chunk, channel)
    if lanes < LANES:
        get_state(scan.checkpoints, row, scan.states, lanes, block)
        return
    for n in range(scan.states):
        store(block, n * LANES, load(scan.checkpoints, row * scan.states + n * LANES, 1))


@device
def get_parameters(scan: Scan, order: int, channel: int, lanes: int, block: int) -> None:
    """Fills a block with N rows of A log2(e), a row of delta_bias and a row of D."""
    first = order * scan.channels + channel
    get_state(scan.A, first, scan.states, lanes, block)
    for i in range(scan.states * LANES):
        value = load_element(block, i, FLOAT32) * LOG2_E
        store_element(block, i, value, FLOAT32)
    rest = block + scan.states * VECTOR_BYTES
    get_state(scan.delta_bias, first, 1, lanes, rest)
    get_state(scan.D, first, 1, lanes, rest + VECTOR_BYTES)
