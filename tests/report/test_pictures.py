from __future__ import annotations

import base64
import io
from itertools import permutations, product

import numpy as np
import pytest
from PIL import Image

from medplat.report import charts, pictures
from medplat.types import Geometry, Volume


def head(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A volume with marked ends in any order and sign of the voxel axes, and its affine.

    In the body (RAS+, 1 mm) the outermost layers add 1 at the left, 10 at the right, 200 in front
    and 4000 at the top.
    """
    body = np.zeros((9, 11, 13), dtype=np.int16)
    body[0] += 1
    body[-1] += 10
    body[:, -1] += 200
    body[:, :, -1] += 4000
    stored = body.transpose(order)
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[world, axis] = sign
        if sign < 0:
            matrix[world, 3] += stored.shape[axis] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    return stored[flips], matrix


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_slices_are_shown_as_radiologists_see_them(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array, affine = head(order, signs)
    axial, coronal, sagittal = pictures.panes(array, affine)
    assert (axial.pixels.shape, coronal.pixels.shape, sagittal.pixels.shape) == (
        (11, 9),
        (13, 9),
        (13, 11),
    )
    right = 10  # the patient's right side, on the left of the picture
    assert axial.pixels[5, 0] == right
    assert axial.pixels[5, -1] == 1
    assert coronal.pixels[5, 0] == right
    assert axial.pixels[0, 4] == 200
    assert axial.pixels[-1, 4] == 0
    assert coronal.pixels[0, 4] == 4000
    assert sagittal.pixels[0, 5] == 4000
    assert sagittal.pixels[6, 0] == 200
    assert sagittal.pixels[6, -1] == 0
    assert axial.marks == ("R", "L", "A", "P")


def test_right_is_where_x_is_lowest() -> None:
    """RAS+: x grows to the patient's right; a lone bright voxel there is on the picture's left."""
    array = np.zeros((5, 5, 5), np.int16)
    array[4, 2, 2] = 1
    axial = pictures.panes(array, np.eye(4))[0]
    assert axial.pixels[2, 0] == 1


def test_proportions_follow_the_spacing() -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    volume = Volume(np.zeros((100, 50, 20), np.int16), Geometry(affine, (100, 50, 20)))
    shown = pictures.panes(volume.array, affine)
    drawn = [pictures.draw(pane, (0, 1), 2.0) for pane in shown]
    assert [one.size for one in drawn] == [(200, 100), (200, 200), (100, 200)]
    assert pictures.triptych(volume, size=200).size == (200 + 200 + 100 + 8, 200)


def test_the_window_is_shared_over_phases() -> None:
    array = np.zeros((10, 10, 10, 3), np.int16)
    array[..., 2] = 1000
    low, high = pictures.window(array)
    assert (low, high) == (0.0, 1000.0)
    volume = Volume(array, Geometry(np.eye(4), (10, 10, 10)), phase_times_s=(0.0, 60.0, 120.0))
    strip = np.asarray(pictures.phase_strip(volume))
    width = strip.shape[1] // 3
    assert strip[60:80, :width].max() == 0
    assert strip[60:80, 2 * width + 8 : -8].min() == 255


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 4, 4), 7, np.int16),
        np.full((4, 4, 4), np.nan, np.float32),
        np.array([[[np.inf]]], np.float32),
    ],
)
def test_flat_and_empty_volumes_have_a_window(array: np.ndarray) -> None:
    low, high = pictures.window(array)
    assert np.isfinite([low, high]).all()
    assert high > low


def test_a_negative_slope_and_monochrome1_turn_the_greys() -> None:
    array = np.zeros((30, 30, 1), np.int16)
    array[15:] = 100
    geometry = Geometry(np.eye(4), (30, 30, 1), orientation="unknown")

    def left_minus_right(volume: Volume, invert: bool) -> int:
        grey = np.asarray(pictures.triptych(volume, invert=invert)).astype(int)
        return int(grey[100, 20] - grey[100, -20])

    assert left_minus_right(Volume(array, geometry), False) == -255
    assert left_minus_right(Volume(array, geometry), True) == 255
    assert left_minus_right(Volume(array, geometry, slope=-1.0), False) == 255
    assert left_minus_right(Volume(array, geometry, slope=-1.0), True) == -255


def test_a_mask_is_outlined_where_it_is_largest() -> None:
    array = np.full((40, 40, 40), 50, np.int16)
    mask = np.zeros((40, 40, 40), np.uint16)
    mask[5:15, 5:15, 30:33] = 1
    mask[20:30, 20:30, 30:33] = 900
    shown = pictures.panes(array, np.eye(4), mask=mask)
    assert [pane.mask.any() for pane in shown if pane.mask is not None] == [True] * 3
    picture = np.asarray(pictures.draw(shown[0], (0, 100), 4.0))
    colours = {tuple(int(c) for c in pixel) for pixel in picture.reshape(-1, 3)}
    assert pictures.COLOURS[0] in colours
    assert pictures.COLOURS[1] in colours


def test_pictures_stay_small_and_can_be_read() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900), dtype=np.uint8)
    uri = pictures.data_uri(Image.fromarray(noise))
    assert len(uri) <= 60_000
    head_, _, data = uri.partition(",")
    assert head_.startswith("data:image/")
    assert Image.open(io.BytesIO(base64.b64decode(data))).width > 100


def test_curves_hold_numbers_only_and_survive_odd_input() -> None:
    svg = str(charts.curve([1.0, 5.0, 4.0], [0.0, 60.0, 120.0]))
    assert svg.count("<circle") == 3
    assert "120 s" in svg
    svg = str(charts.curve([32650.0, 32801.5, 99.94], None))
    assert ">32802<" in svg
    assert ">99.9<" in svg
    assert str(charts.curve([1.0], [0.0])) == ""
    assert str(charts.curve([1.0, float("nan")])) == ""
    assert str(charts.curve([2.0, 2.0])) != ""


def test_the_ladder_marks_wide_gaps() -> None:
    svg = str(charts.ladder([0.0, 2.0, 4.0, 8.0, 10.0] * 2 + [0.0, 2.0, 8.0, 10.001]))
    assert svg.count("<rect") == 1
    assert svg.count("<circle") == 1
    assert "5 slice positions over 10.0 mm, 1 wide gaps, 1 with fewer images" in svg
    assert str(charts.ladder([3.0, 3.0])) == ""
