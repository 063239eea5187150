"""What scanners do to images when they are given less: noise, missing lines, few photons, blur.

Images are (C, x, y, z) float32 in their own values, with voxel sizes in mm. Everything random comes
from the generator that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medplat.errors import DataError
from medplat.workflow.schema import Blur, Degradation, KSpace, Rician, Sinogram

Values = npt.NDArray[np.float32]
Slice = npt.NDArray[np.float64]
FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations


def signal_level(values: Values) -> float:
    """The 99.9th percentile of the magnitudes: what noise is given in per cent of."""
    return float(np.percentile(np.abs(values), 99.9))


def degrade(
    values: Values,
    spacing_mm: Sequence[float],
    steps: Sequence[Degradation],
    rng: np.random.Generator,
    *,
    level: float,
    dims: int = 3,
) -> Values:
    """Apply the steps of a workflow's `task.degrade`, one after the other.

    Args:
        values: (C, x, y, z).
        spacing_mm: Voxel sizes along x, y, z.
        steps: What to do.
        rng: Source of noise and masks.
        level: `signal_level` of the clean image.
        dims: 2: nothing crosses from slice to slice.

    Raises:
        DataError: The voxels are not square, and a sinogram needs them so.
    """
    for step in steps:
        if isinstance(step, Rician):
            values = rician(values, step.noise_percent / 100 * level, rng)
        elif isinstance(step, KSpace):
            values = undersample(values, step, rng)
        elif isinstance(step, Sinogram):
            values = few_photons(values, spacing_mm, step, rng)
        else:
            values = blur(values, spacing_mm, step, dims)
    return values


def shrink(values: Values, factor: int, dims: int) -> Values:
    """The mean over blocks of `factor` voxels along the first `dims` axes (partial volume).

    Sizes must be multiples of the factor.
    """
    sides: list[int] = []
    for axis, side in enumerate(values.shape[1:]):
        sides += [side // factor, factor] if axis < dims else [side, 1]
    means = values.reshape(values.shape[0], *sides).mean(axis=(2, 4, 6), dtype=np.float32)
    return np.asarray(means, dtype=np.float32)


def rician(values: Values, sigma: float, rng: np.random.Generator) -> Values:
    """Magnitude of a complex image with independent Gaussian noise in both parts.

    Source: Gudbjartsson and Patz, Magn Reson Med 1995, doi 10.1002/mrm.1910340618.
    """
    real = values + rng.normal(0, sigma, values.shape).astype(np.float32)
    imaginary = rng.normal(0, sigma, values.shape).astype(np.float32)
    return np.hypot(real, imaginary)


def undersample(values: Values, step: KSpace, rng: np.random.Generator) -> Values:
    """Magnitude image out of the kept k-space lines, zeros in place of the others.

    Lines differ along one axis, so a transform along that axis alone is the same as one of the
    whole slice.
    """
    axis = 1 + "xy".index(step.axis)
    kept = kept_lines(values.shape[axis], step, rng)
    shape = [1] * values.ndim
    shape[axis] = -1
    result = np.empty_like(values)
    for at in range(values.shape[3]):
        part = values[..., at : at + 1]
        lines = np.fft.fft(part, axis=axis) * kept.reshape(shape)
        result[..., at : at + 1] = np.abs(np.fft.ifft(lines, axis=axis))
    return result


def kept_lines(count: int, step: KSpace, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which lines are kept, line 0 being the zero frequency as in `numpy.fft`."""
    middle = max(1, round(step.centre * count))
    kept = np.zeros(count, np.bool_)
    kept[(np.arange(middle) - middle // 2) % count] = True
    rest = np.flatnonzero(~kept)
    more = min(len(rest), max(0, round(count / step.acceleration) - middle))
    if step.lines == "random":
        kept[rng.choice(rest, more, replace=False)] = True
    elif more:
        kept[rest[np.linspace(0, len(rest) - 1, more).round().astype(np.int64)]] = True
    return kept


def few_photons(
    values: Values, spacing_mm: Sequence[float], step: Sinogram, rng: np.random.Generator
) -> Values:
    """HU to attenuation, line integrals, Poisson counts, filtered back-projection, HU.

    Raises:
        DataError: The voxels are not square in the slice.
    """
    side_mm = float(spacing_mm[0])
    if abs(spacing_mm[1] - side_mm) > 0.01 * side_mm:
        raise DataError(
            f"sinogram: the voxels of a slice are {side_mm:g} x {spacing_mm[1]:g} mm, not square: "
            "add Spacingd to transforms"
        )
    angles = np.arange(step.views) * math.pi / step.views
    result = np.empty_like(values)
    for channel, at in np.ndindex(values.shape[0], values.shape[3]):
        hu = values[channel, :, :, at].astype(np.float64)
        attenuation = np.maximum(step.water_per_mm * (1 + hu / 1000), 0)
        integrals = project(attenuation, side_mm, angles)
        counts = rng.poisson(step.photons * np.exp(-integrals))
        noisy = -np.log(np.maximum(counts, 1) / step.photons)
        found = back_project(noisy, side_mm, angles, (hu.shape[0], hu.shape[1]))
        result[channel, :, :, at] = (found / step.water_per_mm - 1) * 1000
    return result


def project(image: Slice, side_mm: float, angles: Slice) -> Slice:
    """Parallel line integrals (views, bins) of an image (x, y) per mm, bins one voxel wide."""
    from scipy.ndimage import affine_transform

    bins = _bins(image.shape)
    shape, middle = (bins, bins), (bins - 1) / 2
    centre = (np.array(image.shape) - 1) / 2
    views = []
    for angle in angles:
        across = np.array([math.cos(angle), math.sin(angle)])
        along = np.array([-math.sin(angle), math.cos(angle)])
        turn = np.stack([across, along], axis=1)
        offset = centre - turn @ np.array([middle, middle])
        rays = affine_transform(image, turn, offset=offset, output_shape=shape, order=1)
        views.append(rays.sum(axis=1) * side_mm)
    return np.stack(views)


def back_project(integrals: Slice, side_mm: float, angles: Slice, shape: tuple[int, int]) -> Slice:
    """Filtered back-projection onto (x, y).

    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, equation 3.61
    (ramp filter in space, band-limited) and 3.3.
    """
    bins = integrals.shape[1]
    filtered = _ramp(integrals, side_mm)
    x, y = (np.arange(side) - (side - 1) / 2 for side in shape)
    image = np.zeros(shape)
    where = np.arange(bins) - (bins - 1) / 2
    for view, angle in zip(filtered, angles, strict=True):
        across = x[:, None] * math.cos(angle) + y[None, :] * math.sin(angle)
        image += np.interp(across, where, view)
    return image * (math.pi / len(angles))


def _bins(shape: tuple[int, ...]) -> int:
    return math.ceil(math.hypot(*shape)) + 1


def _ramp(integrals: Slice, side_mm: float) -> Slice:
    bins = integrals.shape[1]
    length = 2 ** math.ceil(math.log2(2 * bins))
    at = np.fft.fftfreq(length, 1 / length)
    kernel = np.zeros(length)
    odd = at % 2 == 1
    kernel[odd] = -1 / (math.pi * at[odd] * side_mm) ** 2
    kernel[0] = 1 / (2 * side_mm) ** 2
    spectrum = np.fft.fft(integrals, length, axis=1) * np.fft.fft(kernel).real
    return np.asarray(np.fft.ifft(spectrum, axis=1).real[:, :bins] * side_mm)


def blur(values: Values, spacing_mm: Sequence[float], step: Blur, dims: int) -> Values:
    """Convolution with a Gaussian of that full width at half maximum."""
    from scipy.ndimage import gaussian_filter

    sigmas = [step.fwhm_mm / FWHM / side for side in spacing_mm[:dims]] + [0.0] * (3 - dims)
    return np.asarray(gaussian_filter(values, (0.0, *sigmas)), dtype=np.float32)
