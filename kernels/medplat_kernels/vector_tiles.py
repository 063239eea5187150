"""Tiles: float32, some steps of LANES channels, and their way from and to tensors.

Row t of a tile holds the LANES channels at step t, so that one vector operation advances LANES
channels and no sum runs across lanes. `read` fills tiles from tensors of any layout, scan order
and dtype, `write` puts them back; the kernels see tiles only.

A tile has 64 steps. Where an order runs down the columns of a grid, channels first, consecutive
steps lie far apart, and a tile is a band instead: all rows of so many columns that whole cache
lines are read, transposed in registers on their way to the steps they belong to. Steps that are
neighbours are a band of one row.
"""

from __future__ import annotations

import math
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
# float32s in a cache line, and the steps up to which a band still fits the caches.
LINE = 16
MOST_IN_BAND = 8192
# Rows of a band that are asked for before they are needed.
ROWS_AHEAD = 4


class Walk(NamedTuple):
    """Where the steps of one tile lie in a tensor (Bt, channels, L) or (Bt, L, channels).

    Attributes:
        places: Raster position of each step, but of those of a band of several rows.
        first: Number of the first step.
        steps: Number of steps: 64, or those of a band, but at the end of the sequence.
        direction: 1, or -1 where the columns of a band come from right to left.
        ahead: How far what is soon needed of a band lies from what is being read.
        length: L.
        rows: Rows of a band, 0 where this is none.
        columns: Columns of a band.
        left: Raster position of its first row and column.
        channels_last: 1 for (Bt, L, channels).
    """

    places: Any
    first: int
    steps: int
    direction: int
    ahead: int
    length: int
    rows: int
    columns: int
    left: int
    channels_last: int


def band_steps(rows: int, columns: int, channels_last: bool) -> int:
    """Steps of a band: a multiple of 64, of whole columns and of whole vectors; 0 for no bands."""
    width = max(LINE, STEPS // math.gcd(rows, STEPS))
    fits = rows > 1 and columns >= LANES and rows * width <= MOST_IN_BAND and not channels_last
    return rows * width if fits else 0


@device
def tiles_in_step(orders: Any, order: int, channels_last: int, tiles: int) -> int:
    """How many of a worker's channel tiles go through the tiles of an order side by side.

    All, so that what they share is read once; but one after another where steps are not
    neighbours in memory: a cache line holds steps of many chunks, and must still be there.
    """
    rows, columns = orders[order, 0], orders[order, 1]
    return 1 if rows > 1 and columns > 1 and not channels_last else tiles


@device
def walk_band(orders: Any, order: int, band: int, length: int, places: Any) -> Walk:
    """A band's columns, from left to right, or from right to left where the order is reversed."""
    rows, wide, reverse, most = orders[order]
    first = band * most
    steps = min(most, length - first)
    columns, left, direction = steps // rows, first // rows, 1
    if reverse:
        left, direction = wide - left - columns, -1
    ahead = ROWS_AHEAD * wide
    return Walk(places, first, steps, direction, ahead, length, rows, columns, left, 0)


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
    rows, columns, reverse = orders[order, 0], orders[order, 1], orders[order, 2]
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
    direction = -1 if reverse else 1
    ahead = direction * (-STEPS if backwards else STEPS)
    one = int(not channels_last and (rows == 1 or columns == 1))
    left = length - first - steps if reverse else first
    return Walk(
        places, first, steps, direction, ahead, length, one, steps, left, channels_last
    )  # fmt: skip


@device
def _strides(walk: Walk, batch: int, channels: int, channel: int) -> tuple[int, int, int]:
    """Of a tensor (Bt, channels, L), or (Bt, L, channels): first element, step and lane stride."""
    base = batch * channels * walk.length
    if walk.channels_last:
        return base + channel, channels, 1
    return base + channel * walk.length, 1, walk.length


@device
def _band_place(walk: Walk, wide: int, row: int, column: int) -> tuple[int, int]:
    """Raster position and step in the band, of a row and of a column counted from its left."""
    step = column * walk.rows + row
    if walk.direction < 0:
        step = walk.steps - 1 - step
    return walk.left + row * wide + column, step


@device
def _read_band(
    source: int, kind: int, base: int, lane: int, lanes: int, walk: Walk, tile: int
) -> None:
    wide, blocks = walk.length // walk.rows, walk.columns // LANES
    row = column = 0
    for _ in range(blocks * walk.rows):
        place, step = _band_place(walk, wide, row, column)
        read_block(
            source, base + place, lane, lanes, kind, walk.ahead,
            tile, step * LANES, walk.direction * walk.rows * LANES,
        )  # fmt: skip
        row += 1
        if row == walk.rows:
            row, column = 0, column + LANES
    for row in range(walk.rows):
        for column in range(blocks * LANES, walk.columns):
            place, step = _band_place(walk, wide, row, column)
            store(tile, step * LANES, gather(source, base + place, lane, lanes, kind))


@device
def _write_band(
    target: int, kind: int, base: int, lane: int, lanes: int, walk: Walk, tile: int
) -> None:
    wide, blocks = walk.length // walk.rows, walk.columns // LANES
    row = column = 0
    for _ in range(blocks * walk.rows):
        place, step = _band_place(walk, wide, row, column)
        write_block(
            tile, step * LANES, walk.direction * walk.rows * LANES,
            target, base + place, lane, lanes, kind, walk.ahead,
        )  # fmt: skip
        row += 1
        if row == walk.rows:
            row, column = 0, column + LANES
    for row in range(walk.rows):
        for column in range(blocks * LANES, walk.columns):
            place, step = _band_place(walk, wide, row, column)
            scatter(target, base + place, lane, lanes, load(tile, step * LANES, 1), kind)


@device
def read(
    source: int, kind: int, batch: int, channels: int, channel: int, lanes: int,
    walk: Walk, tile: int,
) -> None:  # fmt: skip
    """Fills a tile with `lanes` channels from `channel` on of a tensor of `channels`."""
    base, step, lane = _strides(walk, batch, channels, channel)
    if walk.rows > 0:
        _read_band(source, kind, base, lane, lanes, walk, tile)
    elif walk.channels_last and lanes == LANES:
        for t in range(walk.steps):
            store(tile, t * LANES, load_row(source, base + walk.places[t] * step, kind))
    else:
        for t in range(walk.steps):
            store(tile, t * LANES, gather(source, base + walk.places[t] * step, lane, lanes, kind))


@device
def write(
    target: int, kind: int, batch: int, channels: int, channel: int, lanes: int,
    walk: Walk, tile: int,
) -> None:  # fmt: skip
    """Puts the first `lanes` columns of a tile where `read` would take them from."""
    base, step, lane = _strides(walk, batch, channels, channel)
    if walk.rows > 0:
        _write_band(target, kind, base, lane, lanes, walk, tile)
    elif walk.channels_last and lanes == LANES:
        for t in range(walk.steps):
            row = load(tile, t * LANES, 1)
            store_row(target, base + walk.places[t] * step, row, kind)
    else:
        for t in range(walk.steps):
            row = load(tile, t * LANES, 1)
            scatter(target, base + walk.places[t] * step, lane, lanes, row, kind)


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
