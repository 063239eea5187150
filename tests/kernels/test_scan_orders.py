"""Scan orders against constructions of their own: transposes and flips of a numbered grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medplat_kernels import scan_orders
from medplat_kernels.scan_orders import ORDERS, SETS, find

GRIDS_2D = [(5, 7), (1, 9), (9, 1), (13, 4)]
GRIDS_3D = [(3, 5, 7), (7, 3, 2), (1, 4, 5), (48, 6, 5), (40, 3, 9), (80, 7, 3)]


def numbered(grid: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(grid, dtype=int)).reshape(grid)


def expected(name: str, grid: tuple[int, ...]) -> np.ndarray:
    """The sequence of raster positions, by numpy's own transposes, flips and slices."""
    cells = numbered(grid)
    if name.endswith("_reversed"):
        return np.flip(expected(name.removesuffix("_reversed"), grid))
    if name == "raster":
        return cells.ravel()
    if name == "column":
        return np.concatenate([cells[:, x] for x in range(grid[1])])
    if name == "inter_slice":
        return np.concatenate([cells[:, y, x] for y in range(grid[1]) for x in range(grid[2])])
    if name == "inter_row":
        planes, columns = range(grid[0]), range(grid[2])
        return np.concatenate([cells[z, :, x] for x in columns for z in planes])
    if name.startswith("strided"):
        rate = int(name[8:-1])
        return np.concatenate([cells.ravel()[start::rate] for start in range(rate)])
    slices = int(name[len("inter_slice_legacy(") : -1])
    chunks = np.split(cells.ravel(), slices)
    return np.array([chunk[at] for at in range(len(chunks[0])) for chunk in chunks])


CASES = [
    *[(name, grid) for name in ("raster", "raster_reversed") for grid in [(11,), *GRIDS_3D]],
    *[(name, grid) for name in ("column", "column_reversed") for grid in GRIDS_2D],
    *[
        (name, grid)
        for name in ("inter_slice", "inter_slice_reversed", "inter_row", "inter_row_reversed")
        for grid in GRIDS_3D
    ],
    ("strided(5)", (35,)),
    ("strided(1)", (9,)),
    ("strided(10)", (10,)),
    ("inter_slice_legacy(8)", (6, 4, 7)),
    ("inter_slice_legacy(5)", (5, 3, 2)),
]


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_the_sequence_is_the_true_order(name: str, grid: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(find(name).positions(grid).numpy(), expected(name, grid))


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_inverse_says_when_a_position_is_visited(name: str, grid: tuple[int, ...]) -> None:
    order = find(name)
    np.testing.assert_array_equal(order.inverse(grid).numpy(), np.argsort(expected(name, grid)))


@pytest.mark.parametrize("grid", [*GRIDS_3D, (64, 2, 3), (56, 5, 5)])
def test_inter_slice_runs_through_the_slices_at_each_place(grid: tuple[int, ...]) -> None:
    """The coordinates themselves: the slice counts up while the place in the plane stays."""
    seen = find("inter_slice").positions(grid).numpy()
    slices, rows, columns = np.unravel_index(seen, grid)
    depth = grid[0]
    np.testing.assert_array_equal(slices, np.tile(np.arange(depth), len(seen) // depth))
    place = rows * grid[2] + columns
    np.testing.assert_array_equal(place, np.repeat(np.arange(len(seen) // depth), depth))


@pytest.mark.parametrize("depth", [48, 40, 24, 12, 6])
def test_the_legacy_order_is_another_one_where_its_number_is_not_the_depth(depth: int) -> None:
    grid = (depth, 4, 4)
    legacy = find("inter_slice_legacy(64)") if depth > 24 else find("inter_slice_legacy(16)")
    assert not torch.equal(legacy.positions(grid), find("inter_slice").positions(grid))
    same = find(f"inter_slice_legacy({depth})")
    assert torch.equal(same.positions(grid), find("inter_slice").positions(grid))


@given(st.sampled_from(sorted(ORDERS)), st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_every_order_visits_every_token_once(name: str, extents: list[int]) -> None:
    order = find(name)
    grid = tuple(extents[: order.dims or 3])
    seen, steps = order.positions(grid), order.inverse(grid)
    length = int(np.prod(grid))
    assert seen.dtype == torch.int64
    assert torch.equal(seen.sort().values, torch.arange(length))
    assert torch.equal(seen[steps], torch.arange(length))


def test_sets_name_known_orders() -> None:
    for names in SETS.values():
        for name in names:
            assert find(name).name == name
    assert scan_orders.names_of("cross2d") == SETS["cross2d"]
    assert scan_orders.names_of(["raster"]) == ("raster",)


@pytest.mark.parametrize(
    ("name", "grid", "words"),
    [
        ("column", (2, 3, 4), "needs a grid of 2 axes"),
        ("inter_slice", (6, 4), "needs a grid of 3 axes"),
        ("strided(5)", (7,), "multiple of 5, got 7"),
        ("inter_slice_legacy(8)", (5, 7, 7), "multiple of 8, got 245"),
        ("spiral", (4,), "no scan order 'spiral'; known: raster,"),
        ("strided(0)", (4,), r"no scan order 'strided\(0\)'"),
        ("strided(x)", (4,), "no scan order"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find(name).positions(grid)
