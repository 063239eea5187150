"""Scan orders as data: in which sequence the tokens of a grid are visited.

Every order here is one rule. Lay the L raster positions out as `rows x columns` and read them
down the columns; then step t reads raster position

    (s % rows) * columns + s // rows,    s = t, or L - 1 - t where the order is reversed.

Raster is one row; `column` is the (H, W) grid itself; `inter_slice` has the slices as rows. A
kernel needs the three numbers of `ScanOrder.walk` and no table of indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanOrder:
    """One order of visiting the tokens of a grid.

    Attributes:
        name: What models and workflows call it.
        reverse: The sequence runs from its last position to its first.
        dims: Number of grid axes it is meant for; 0 for any.
        fastest_axis: The grid's axis that changes at every step; the axes behind it are the
            slowest. None where `rows` or `columns` say it, or for raster.
        rows: A fixed number of rows; 0 where the grid gives it.
        columns: A fixed number of columns; 0 where the grid gives it.
    """

    name: str
    reverse: bool = False
    dims: int = 0
    fastest_axis: int | None = None
    rows: int = 0
    columns: int = 0

    @property
    def pad_multiple(self) -> int:
        """L must be a multiple of this; the caller pads."""
        return self.rows or self.columns or 1

    def walk(self, grid: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the rule above for a grid of prod(grid) tokens.

        Raises:
            ValueError: The grid has another number of axes, or a length that this order can't cut.
        """
        if self.dims and len(grid) != self.dims:
            raise ValueError(
                f"scan order {self.name!r} needs a grid of {self.dims} axes, got {tuple(grid)}"
            )
        length = math.prod(grid)
        if length % self.pad_multiple:
            raise ValueError(
                f"scan order {self.name!r} needs a length that is a multiple of "
                f"{self.pad_multiple}, got {length}: pad the sequence first"
            )
        if self.rows:
            return self.rows, length // self.rows
        if self.columns:
            return length // self.columns, self.columns
        if self.fastest_axis is not None:
            split = self.fastest_axis + 1
            return math.prod(grid[:split]), math.prod(grid[split:])
        return 1, length

    def positions(self, grid: Sequence[int]) -> Tensor:
        """Raster position that step t visits, int64 (L,)."""
        rows, columns = self.walk(grid)
        steps = self._steps(rows * columns)
        return steps % rows * columns + steps // rows

    def inverse(self, grid: Sequence[int]) -> Tensor:
        """Step that visits raster position p, int64 (L,)."""
        rows, columns = self.walk(grid)
        raster = torch.arange(rows * columns)
        steps = raster % columns * rows + raster // columns
        return rows * columns - 1 - steps if self.reverse else steps

    def _steps(self, length: int) -> Tensor:
        return torch.arange(length - 1, -1, -1) if self.reverse else torch.arange(length)


ORDERS: dict[str, ScanOrder] = {
    order.name: order
    for order in (
        ScanOrder("raster"),
        ScanOrder("raster_reversed", reverse=True),
        ScanOrder("column", dims=2, fastest_axis=0),
        ScanOrder("column_reversed", dims=2, fastest_axis=0, reverse=True),
        ScanOrder("inter_slice", dims=3, fastest_axis=0),
        ScanOrder("inter_slice_reversed", dims=3, fastest_axis=0, reverse=True),
        ScanOrder("inter_row", dims=3, fastest_axis=1),
        ScanOrder("inter_row_reversed", dims=3, fastest_axis=1, reverse=True),
    )
}

# Orders that run together; the outputs of a set are summed.
SETS: dict[str, tuple[str, ...]] = {
    "bi": ("raster", "raster_reversed"),
    "cross2d": ("raster", "column", "raster_reversed", "column_reversed"),
    "tri3d": ("raster", "raster_reversed", "inter_slice"),
    "axes3d": (
        "raster",
        "inter_slice",
        "inter_row",
        "raster_reversed",
        "inter_slice_reversed",
        "inter_row_reversed",
    ),
}


def find(name: str) -> ScanOrder:
    """The order of a name: one of `ORDERS`, `strided(RATE)` or `inter_slice_legacy(SLICES)`.

    Raises:
        ValueError: No order has this name.
    """
    if name in ORDERS:
        return ORDERS[name]
    family, _, number = name.partition("(")
    if number[:-1].isdecimal() and number.endswith(")") and int(number[:-1]) > 0:
        if family == "strided":
            return ScanOrder(name, dims=1, columns=int(number[:-1]))
        if family == "inter_slice_legacy":
            return ScanOrder(name, rows=int(number[:-1]))
    known = ", ".join((*ORDERS, "strided(RATE)", "inter_slice_legacy(SLICES)", *SETS))
    raise ValueError(f"there is no scan order {name!r}; known: {known}")


def names_of(order: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the orders that an operator's `order` argument stands for.

    Args:
        order: An order, a set of `SETS`, or a sequence of orders.
    """
    if isinstance(order, str):
        return SETS.get(order, (order,))
    return tuple(order)


def found(orders: str) -> tuple[ScanOrder, ...]:
    """The orders of names separated by commas, as the torch operators pass them on."""
    return tuple(find(name) for name in orders.split(","))


def checked_grid(names: tuple[str, ...], grid: Sequence[int] | None, length: int) -> list[int]:
    """The grid of `length` tokens, (length,) where none is given and no order needs one.

    Raises:
        ValueError: An order is unknown or does not fit the grid, or the grid the tokens.
    """
    orders = [find(name) for name in names]
    if not orders:
        raise ValueError("order names no scan order")
    if grid is None:
        needy = [each.name for each in orders if each.name not in ("raster", "raster_reversed")]
        if needy:
            raise ValueError(f"scan order {needy[0]!r} needs grid, the shape of the tokens")
        return [length]
    if math.prod(grid) != length:
        raise ValueError(f"grid {tuple(grid)} has {math.prod(grid)} tokens, not {length}")
    for each in orders:
        each.walk(grid)
    return list(grid)


def is_channels_last(layout: str) -> bool:
    """Whether a layout is "bld", (Bt, L, D), and not "bdl", (Bt, D, L).

    Raises:
        ValueError: It is neither.
    """
    if layout not in ("bdl", "bld"):
        raise ValueError(f"layout must be 'bdl' or 'bld', got {layout!r}")
    return layout == "bld"
