"""Degradations against closed forms: Rayleigh and Rician moments, a disc's projections, a point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medplat import degrade
from medplat.errors import DataError
from medplat.workflow.schema import Blur, KSpace, Rician, Sinogram

SQUARE = (1.0, 1.0, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_without_signal_is_rayleigh() -> None:
    found = degrade.rician(np.zeros((1, 40, 50, 60), np.float32), 3.0, rng())
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.01)
    assert found.std() == pytest.approx(3 * math.sqrt(2 - math.pi / 2), rel=0.01)


def test_second_moment_of_rician_noise() -> None:
    found = degrade.rician(np.full((1, 40, 50, 60), 20.0, np.float32), 5.0, rng())
    assert np.square(found, dtype=np.float64).mean() == pytest.approx(400 + 2 * 25, rel=0.01)


def test_noise_is_given_in_percent_of_the_clean_signal() -> None:
    step = Rician(kind="rician", noise_percent=4.0)
    clean = np.full((1, 30, 30, 30), 1000.0, np.float32)
    assert degrade.signal_level(clean) == 1000.0
    found = degrade.degrade(clean, SQUARE, [step], rng(), level=1000.0)
    assert found.std() == pytest.approx(40.0, rel=0.02)
    again = degrade.degrade(clean, SQUARE, [step], rng(), level=1000.0)
    other = degrade.degrade(clean, SQUARE, [step], rng(1), level=1000.0)
    assert np.array_equal(found, again)
    assert not np.array_equal(found, other)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_undersampling_is_that_of_the_whole_slice(axis: str) -> None:
    step = KSpace(kind="kspace", acceleration=3, centre=0.1, axis=axis)
    image = rng().uniform(0, 9, (2, 13, 18, 3)).astype(np.float32)
    found = degrade.undersample(image, step, rng(5))
    kept = degrade.kept_lines(image.shape[1 + "xy".index(axis)], step, rng(5))
    mask = kept[:, None, None] if axis == "x" else kept[None, :, None]
    whole = np.fft.fft2(image.astype(np.float64), axes=(1, 2)) * mask
    wanted = np.abs(np.fft.ifft2(whole, axes=(1, 2)))
    assert np.allclose(found, wanted, atol=1e-5)
    assert not np.allclose(found, image, atol=0.1)


@pytest.mark.parametrize("lines", ["random", "regular"])
@pytest.mark.parametrize(("count", "acceleration", "centre"), [(64, 4, 0.08), (37, 2.5, 0.1)])
def test_lines_that_are_kept(lines: str, count: int, acceleration: float, centre: float) -> None:
    step = KSpace(kind="kspace", acceleration=acceleration, centre=centre, lines=lines)
    kept = degrade.kept_lines(count, step, rng())
    assert kept.sum() == round(count / acceleration)
    middle = np.fft.fftshift(kept)[count // 2 - round(centre * count) // 2 :]
    assert middle[: round(centre * count)].all()


def test_a_fully_sampled_image_is_unchanged() -> None:
    image = rng().uniform(0, 9, (1, 8, 9, 2)).astype(np.float32)
    step = KSpace(kind="kspace", acceleration=1.01, centre=1.0)
    assert np.allclose(degrade.undersample(image, step, rng()), image, atol=1e-5)


def disc(radius: float, centre: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """A disc drawn with 8 x 8 points a pixel."""
    fine = [(np.arange(8 * side) + 0.5) / 8 - side / 2 for side in shape]
    inside = (fine[0][:, None] - centre[0]) ** 2 + (fine[1][None, :] - centre[1]) ** 2 <= radius**2
    return inside.reshape(shape[0], 8, shape[1], 8).mean(axis=(1, 3))


def test_projections_of_a_disc() -> None:
    side_mm, radius, centre = 1.5, 14.0, (6.0, -3.0)
    image = 0.02 * disc(radius, centre, (51, 60))
    angles = np.linspace(0, math.pi, 12, endpoint=False)
    found = degrade.project(image, side_mm, angles)
    across = np.arange(found.shape[1]) - (found.shape[1] - 1) / 2
    for view, angle in zip(found, angles, strict=True):
        away = across - centre[0] * math.cos(angle) - centre[1] * math.sin(angle)
        wanted = 2 * np.sqrt(np.maximum(radius**2 - away**2, 0)) * side_mm * 0.02
        inside = np.abs(np.abs(away) - radius) > 1
        assert np.abs(view - wanted)[inside].max() < 0.03 * wanted.max()
        assert view.sum() == pytest.approx(image.sum() * side_mm, rel=0.01)


def test_many_photons_and_views_give_the_image_back() -> None:
    shape, water = (51, 60), 0.0193
    hu = 1000 * disc(14, (6, -3), shape) - 1000
    step = Sinogram(kind="sinogram", photons=1e9, views=120, water_per_mm=water)
    found = degrade.few_photons(hu[None, :, :, None].astype(np.float32), (2, 2, 5), step, rng())
    inside, outside = disc(11, (6, -3), shape) == 1, disc(17, (6, -3), shape) == 0
    assert abs(found[0, ..., 0][inside].mean()) < 10
    assert found[0, ..., 0][outside].mean() == pytest.approx(-1000, abs=10)


def test_noise_of_a_ct_falls_with_the_root_of_the_photons() -> None:
    hu = (1000 * disc(20, (0, 0), (48, 48)) - 1000).astype(np.float32)[None, :, :, None]
    spread = []
    for photons in (1e4, 4e4):
        step = Sinogram(kind="sinogram", photons=photons, views=90)
        pair = [degrade.few_photons(hu, SQUARE, step, rng(seed)) for seed in (0, 1)]
        spread.append(np.std((pair[0] - pair[1])[0, 14:34, 14:34]))
    assert spread[0] / spread[1] == pytest.approx(2.0, rel=0.15)


def test_a_sinogram_needs_square_pixels() -> None:
    step = Sinogram(kind="sinogram")
    with pytest.raises(DataError, match=r"0\.7 x 0\.9 mm, not square: add Spacingd"):
        degrade.few_photons(np.zeros((1, 4, 4, 1), np.float32), (0.7, 0.9, 3), step, rng())


@pytest.mark.parametrize("dims", [2, 3])
def test_blur_has_the_stated_width(dims: int) -> None:
    point = np.zeros((1, 41, 41, 21), np.float32)
    point[0, 20, 20, 10] = 1
    spacing = (0.5, 1.0, 2.0)
    found = degrade.blur(point, spacing, Blur(kind="blur", fwhm_mm=6.0), dims)[0]
    assert found.sum() == pytest.approx(1, rel=1e-3)
    for axis in range(dims):
        at = np.arange(found.shape[axis]) - found.shape[axis] // 2
        along = found.sum(axis=tuple(other for other in range(3) if other != axis))
        width = math.sqrt((along * at**2).sum() / along.sum()) * spacing[axis]
        assert width * 2.3548 == pytest.approx(6.0, rel=0.02)
    if dims == 2:
        assert not found[:, :, [9, 11]].any()


def test_shrinking_is_the_mean_of_blocks() -> None:
    image = rng().normal(size=(2, 6, 8, 5)).astype(np.float32)
    found = degrade.shrink(image, 2, 2)
    assert found.shape == (2, 3, 4, 5)
    assert found[1, 2, 3, 4] == pytest.approx(image[1, 4:6, 6:8, 4].mean(), abs=1e-6)
    assert degrade.shrink(image[..., :4], 2, 3).shape == (2, 3, 4, 2)
