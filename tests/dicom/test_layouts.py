"""Every layout of a dynamic series: phases found and voxels equal, or refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from enhanced_layouts import ENHANCED
from layouts import LAYOUTS, Case

from medplat.dicom.read import plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group

EVERY = LAYOUTS | ENHANCED


SEEDS = st.integers(0, 2**32 - 1)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", EVERY)
@settings(UNHURRIED, max_examples=2)
@given(seed=SEEDS)
def test_layout(name: str, seed: int) -> None:
    run(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@settings(UNHURRIED, max_examples=12)
@given(seed=SEEDS)
def test_layout_of_many_seeds(name: str, seed: int) -> None:
    run(name, seed)


def run(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = EVERY[name](rng)
    with TemporaryDirectory() as folder:
        check(case, case.write(Path(folder), rng))


def check(case: Case, folder: Path) -> None:
    files = scan(folder)
    (one,) = [one for series in group(files) for one in plan(series, **case.options)]
    series = one.series
    assert (series.status, series.codes) == (case.status, case.codes), series.messages
    assert sorted(fate.path for fate in one.fates) == [file.path for file in files]
    if case.status == "rejected":
        assert not one.convertible
        assert case.names in series.messages[0]
        return
    volume = read_volume(one)
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    assert array.shape == case.truth.shape
    real = array * np.float64(volume.slope) + volume.intercept
    varies = "RESCALE_VARIES" in series.codes
    np.testing.assert_allclose(real, case.truth, rtol=0, atol=1e-6 * np.abs(case.truth).max())
    assert varies == (array.dtype == np.float32)
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(case.truth.shape[:3]) - 1)
    corners = np.c_[corners, np.ones(8)]
    off = corners @ (volume.geometry.affine - case.affine).T
    assert np.abs(off).max() <= (0.02 if case.affine is not None and _rounded(case) else 1e-3)
    if case.times is None:
        assert volume.phase_times_s is None
    else:
        assert volume.phase_times_s == pytest.approx(case.times, abs=1e-3)


def _rounded(case: Case) -> bool:
    """Whether the positions stand in the headers with two decimals only."""
    return all(
        len(str(value).partition(".")[2]) <= 2
        for image in case.images
        for value in image.get("ImagePositionPatient", ["0.000"])
    )
