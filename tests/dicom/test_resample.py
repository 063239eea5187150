"""Sheared and uneven stacks on a regular grid: a field that is linear in space must stay itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group

SLICES = 9


def only(folder: Path, **options: bool) -> SeriesPlan:
    (one,) = [one for series in group(scan(folder)) for one in plan(series, **options)]
    return one


def linear(made: Any) -> Any:
    """Give every image the values of 1000 + 3 x + 5 y + 7 z of the patient's LPS position."""
    for image in made.flat:
        place = np.array([float(value) for value in image.ImagePositionPatient])
        row, column = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
        down, across = (float(value) for value in image.PixelSpacing)
        y, x = np.mgrid[: image.Rows, : image.Columns]
        points = place + x[..., None] * across * row + y[..., None] * down * column
        values = np.float32(1000) + points @ [3.0, 5.0, 7.0]
        image.BitsAllocated = image.BitsStored = 32
        image.HighBit = 31
        image.FloatPixelData = values.astype("<f4").tobytes()
        del image.PixelData
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(image, keyword)
    return made


def check_linear(one: SeriesPlan) -> np.ndarray[Any, Any]:
    """Compare the covered voxels with the field; returns which of them are covered."""
    volume = read_volume(one)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == volume.geometry.shape == one.series.shape
    index = np.moveaxis(np.indices(volume.array.shape), 0, -1)
    affine = volume.geometry.affine
    points = (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    truth = 1000 + points @ [3.0, 5.0, 7.0]
    covered = np.abs(volume.array - truth) < 0.02
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-6)
    return covered


@pytest.mark.parametrize("orientation", ["axial", "oblique", "sagittal"])
def test_shear_is_taken_out(dicom: Any, tmp_path: Path, orientation: str) -> None:
    made = dicom.make(
        slices=SLICES, rows=30, columns=28, orientation=orientation,
        shift=lambda z: (0.31 * z, -0.5 * z, 0.0),
    )  # fmt: skip
    one = only(dicom.write(tmp_path, linear(made).flat), resample=True)
    assert (one.series.status, one.series.codes) == ("warned", ("SHEARED",))
    assert one.series.spacing_mm == pytest.approx((0.9, 0.7, 2.5), abs=1e-5)
    covered = check_linear(one)
    # 8 slices of 0.31 and 0.5 mm: the grid grew by 3 columns and 6 rows, and the rest is there.
    assert one.series.shape == (28 + 3, 30 + 6, SLICES)
    assert covered[:, :, 0].sum() == 28 * 30
    assert covered.mean() > 0.65
    assert {fate.slice for fate in one.fates} == {None}
    assert one.metadata["resampled"]["method"] == "linear"


def test_uneven_slices_come_to_the_median_distance(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=SLICES, shift=lambda z: (0.0, 0.0, 0.9 * (z % 2)))
    one = only(dicom.write(tmp_path, linear(made).flat), resample=True)
    assert one.series.codes == ("UNEVEN_SPACING",)
    assert one.series.shape[:2] == (12, 9)
    assert check_linear(one).all()


def test_slices_that_jump_sideways_are_put_back(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=SLICES, rows=20, columns=20, shift=lambda z: (1.3 * (z % 2), 0.0, 0.0))
    one = only(dicom.write(tmp_path, linear(made).flat), resample=True)
    assert one.series.codes[0] == "UNEVEN_SPACING"
    covered = check_linear(one)
    assert covered[2:-2].all()


def test_phases_are_resampled_each_by_itself(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=2, slices=5, shift=lambda z: (0.0, 0.9 * z, 0.0))
    made.each(lambda image, t, z: setattr(image, "TemporalPositionIdentifier", t))
    folder = dicom.write(tmp_path, made.flat)
    volume = read_volume(only(folder, resample=True))
    stored = read_volume(only(folder, allow_shear=True)).array
    assert volume.array.shape[3] == 2
    np.testing.assert_array_equal(
        volume.array[: stored.shape[0], : stored.shape[1], 0], stored[:, :, 0]
    )


def test_an_absent_slice_is_never_filled(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=SLICES)
    images = made.images[0][:3] + made.images[0][4:]
    one = only(dicom.write(tmp_path, images), resample=True)
    assert (one.series.status, one.series.codes) == ("rejected", ("MISSING_SLICE",))


def test_what_would_be_invention_is_refused(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=6, shift=lambda z: (0.0, 0.0, 400.0 * (z > 3)))
    one = only(dicom.write(tmp_path, made.flat), resample=True)
    assert (one.series.status, one.series.codes) == ("rejected", ("UNEVEN_SPACING",))
    assert "four times" in one.series.messages[0]
