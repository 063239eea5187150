"""Contours filled on a grid, against the analytic ellipse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplat.dicom import rtstruct
from medplat.dicom.labels import Segment
from medplat.errors import Refused
from medplat.types import Geometry

SHAPE = (41, 57, 5)
ANGLE = np.radians(20.0)
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1.0]]
) @ np.diag([0.7, 1.3, 2.5])
AFFINE[:3, 3] = (-12.0, 30.5, 7.25)
GRID = Geometry(AFFINE, SHAPE)


def world(points: np.ndarray) -> np.ndarray:
    return points @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def ellipse(centre: tuple[float, float], axes: tuple[float, float], k: int, n: int) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    x, y = centre[0] + axes[0] * np.cos(t), centre[1] + axes[1] * np.sin(t)
    return np.column_stack([x, y, np.full(n, float(k))])


def level(centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    """Below 1 inside the ellipse."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    return ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2


def fill(*loops: np.ndarray, value: int = 1) -> np.ndarray:
    found = tuple(world(one) for one in loops)
    return rtstruct.onto(rtstruct.Contours((found,), (Segment(value, "a", None),)), GRID)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(12, 28), st.floats(16, 40), st.floats(0.6, 11.0), st.floats(0.6, 15.0),
    st.integers(0, 4),
)  # fmt: skip
def test_an_ellipse_is_filled_voxel_by_voxel(
    x: float, y: float, a: float, b: float, k: int
) -> None:
    n = 2000
    array = fill(ellipse((x, y), (a, b), k, n))
    inside = level((x, y), (a, b))
    # The polygon lies within the ellipse, by the sagitta 1 - cos(pi / n) at most.
    gap = 2 * (1 - np.cos(np.pi / n)) + 1e-9
    doubtful = np.abs(inside - 1) <= gap
    np.testing.assert_array_equal(array[:, :, k][~doubtful], (inside < 1)[~doubtful])
    assert not np.delete(array, k, axis=2).any()
    assert abs(float(array.sum()) - np.pi * a * b) <= 4 * (a + b) + 4


def test_an_inner_contour_and_a_keyhole_are_holes() -> None:
    outer, inner = ellipse((20.3, 28.4), (12, 14), 2, 400), ellipse((20.3, 28.4), (5, 6), 2, 400)
    ring = (level((20.3, 28.4), (12, 14)) < 1) & ~(level((20.3, 28.4), (5, 6)) < 1)
    np.testing.assert_array_equal(fill(outer, inner)[:, :, 2] > 0, ring)
    keyhole = np.vstack([outer, outer[:1], inner[::-1], inner[-1:]])
    differ = (fill(keyhole)[:, :, 2] > 0) != ring
    assert differ.sum() <= 2 * 9  # The slit passes through voxel centres of one row.


def test_neighbours_share_no_voxel_of_their_common_edge() -> None:
    """Edges that run through voxel centres, as tools draw them that follow the voxels."""

    def box(low: float, high: float) -> np.ndarray:
        return world(np.array([[low, 3, 1], [high, 3, 1], [high, 9, 1], [low, 9, 1]], np.float64))

    two = rtstruct.Contours(
        ((box(4, 10),), (box(10, 17),)), (Segment(1, "a", None), Segment(2, "b", None))
    )
    array = rtstruct.onto(two, GRID)
    assert [int((array == value).sum()) for value in (1, 2)] == [6 * 6, 7 * 6]


def test_faults_of_contours_are_named() -> None:
    def code(*loops: np.ndarray) -> str:
        with pytest.raises(Refused) as caught:
            fill(*loops)
        return caught.value.code

    good = ellipse((20, 28), (5, 6), 2, 40)
    assert code(good + np.array([0, 0, 0.3])) == "LABEL_GRID_MISMATCH"
    assert code(good + np.array([18, 0, 0])) == "LABEL_OUTSIDE"
    assert code(good + np.array([0, 0, 3])) == "LABEL_OUTSIDE"
    tilted = good.copy()
    tilted[:, 2] += 0.1 * (good[:, 0] - 20)
    assert code(tilted) == "LABEL_GRID_MISMATCH"
    fill(good + np.array([0, 0, 0.015]))
    two = rtstruct.Contours(
        ((world(good),), (world(good + np.array([3, 0, 0])),)),
        (Segment(1, "a", None), Segment(2, "b", None)),
    )
    with pytest.raises(Refused, match="LABEL_OVERLAP"):
        rtstruct.onto(two, GRID)
