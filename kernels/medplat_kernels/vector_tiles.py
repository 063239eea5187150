"""Tiles: float32, 64 steps of LANES channels, and their way from and to tensors.

Row t of a tile holds the LANES channels at step t, so that one vector operation advances LANES
channels and no sum runs across lanes. `read` fills tiles from tensors of any layout, scan order
and dtype, `write` puts them back; the kernels see tiles only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .vector_memory import (
    FLOAT32,
    gather,
    load_element,
    load_row,
    read_block,
    scatter,
    store_element,
    store_row,
    write_block,
)
from .vectors import LANES, device, load, store

STEPS = 64
VECTOR_BYTES = 4 * LANES
TILE_BYTES = STEPS * VECTOR_BYTES


class Walk(NamedTuple):
    """Where the steps of one tile lie in a tensor (Bt, channels, L) or (Bt, L, channels).

    Attributes:
        places: Raster position of each step.
        steps: Number of steps, 64 but at the end of the sequence.
        direction: 1 or -1 when they are neighbours, 0 when they are not.
        ahead: How far the tile that comes next lies from this one, where steps are neighbours.
        length: L.
        channels_last: 1 for (Bt, L, channels).
    """

    places: Any
    steps: int
    direction: int
    ahead: int
    length: int
    channels_last: int


@device
def tiles_in_step(orders: Any, order: int, channels_last: int, tiles: int) -> int:
    """How many of a worker's channel tiles go through the chunks of an order side by side.

    All, so that what they share is read once; but one after another where steps are not
    neighbours in memory: a cache line holds steps of many chunks, and must still be there.
    """
    rows, columns, _ = orders[order]
    return 1 if rows > 1 and columns > 1 and not channels_last else tiles


@device
def walk_chunk(
    orders: Any, order: int, chunk: int, length: int, channels_last: int, places: Any,
    backwards: bool,
) -> Walk:  # fmt: skip
    """Raster positions of the steps of a chunk, written to `places`.

    Chunks are taken from the first to the last, or `backwards`.

    `orders` has a row an order: rows and columns of its rule (see `scan_orders`), and 1 if
    reversed.
    """
    rows, columns, reverse = orders[order]
    first = chunk * STEPS
    steps = min(STEPS, length - first)
    step = length - 1 - first if reverse else first
    row, column = step % rows, step // rows
    for t in range(steps):
        places[t] = row * columns + column
        if reverse:
            row -= 1
            if row < 0:
                row, column = rows - 1, column - 1
        else:
            row += 1
            if row == rows:
                row, column = 0, column + 1
    direction = 0 if rows > 1 and columns > 1 else -1 if reverse else 1
    ahead = direction * (-STEPS if backwards else STEPS)
    return Walk(places, steps, direction, ahead, length, channels_last)


@device
def _strides(walk: Walk, batch: int, channels: int, channel: int) -> tuple[int, int, int]:
    """Of a tensor (Bt, channels, L), or (Bt, L, channels): first element, step and lane stride."""
    base = batch * channels * walk.length
    if walk.channels_last:
        return base + channel, channels, 1
    return base + channel * walk.length, 1, walk.length


@device
def read(
    source: int, kind: int, batch: int, channels: int, channel: int, lanes: int,
    walk: Walk, tile: int,
) -> None:  # fmt: skip
    """Fills a tile with `lanes` channels from `channel` on of a tensor of `channels`."""
    base, step, lane = _strides(walk, batch, channels, channel)
    t = 0
    if walk.channels_last and lanes == LANES:
        while t < walk.steps:
            store(tile, t * LANES, load_row(source, base + walk.places[t] * step, kind))
            t += 1
    if not walk.channels_last and walk.direction != 0:
        back = 0 if walk.direction > 0 else LANES - 1
        while t + LANES <= walk.steps:
            read_block(
                source, base + walk.places[t + back], lane, lanes, kind, walk.ahead,
                tile, (t + back) * LANES, walk.direction * LANES,
            )  # fmt: skip
            t += LANES
    while t < walk.steps:
        store(tile, t * LANES, gather(source, base + walk.places[t] * step, lane, lanes, kind))
        t += 1


@device
def write(
    target: int, kind: int, batch: int, channels: int, channel: int, lanes: int,
    walk: Walk, tile: int,
) -> None:  # fmt: skip
    """Puts the first `lanes` columns of a tile where `read` would take them from."""
    base, step, lane = _strides(walk, batch, channels, channel)
    t = 0
    if walk.channels_last and lanes == LANES:
        while t < walk.steps:
            row = load(tile, t * LANES, 1)
            store_row(target, base + walk.places[t] * step, row, kind)
            t += 1
    if not walk.channels_last and walk.direction != 0:
        back = 0 if walk.direction > 0 else LANES - 1
        while t + LANES <= walk.steps:
            write_block(
                tile, (t + back) * LANES, walk.direction * LANES,
                target, base + walk.places[t + back], lane, lanes, kind, walk.ahead,
            )  # fmt: skip
            t += LANES
    while t < walk.steps:
        row = load(tile, t * LANES, 1)
        scatter(target, base + walk.places[t] * step, lane, lanes, row, kind)
        t += 1


@device
def get_state(source: int, first: int, states: int, lanes: int, block: int) -> None:
    """Fills a block [state][lane] from (channels, N) rows, float32; 0 for absent ones."""
    for n in range(states):
        for lane in range(LANES):
            there = source != 0 and lane < lanes
            value = load_element(source, (first + lane) * states + n, FLOAT32) if there else 0.0
            store_element(block, n * LANES + lane, value, FLOAT32)


@device
def put_state(target: int, first: int, states: int, lanes: int, block: int) -> None:
    """The inverse of `get_state`; an absent target is left alone."""
    if target == 0:
        return
    for n in range(states):
        for lane in range(lanes):
            value = load_element(block, n * LANES + lane, FLOAT32)
            store_element(target, (first + lane) * states + n, value, FLOAT32)


@device
def add_state(target: int, first: int, states: int, lanes: int, block: int) -> None:
    """Adds a block to (channels, N) rows."""
    if target == 0:
        return
    for n in range(states):
        for lane in range(lanes):
            at = (first + lane) * states + n
            value = load_element(target, at, FLOAT32) + load_element(
                block, n * LANES + lane, FLOAT32
            )
            store_element(target, at, value, FLOAT32)
