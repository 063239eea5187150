"""The MONAI reader gives the same volume as the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat.errors import DataError, Refused

monai_reader = pytest.importorskip("medplat.dicom.monai_reader")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_a_folder_through_load_imaged(dicom: Any, tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    made = dicom.make(orientation="oblique").each(
        lambda image, t, z: image.update({"RescaleSlope": "2", "RescaleIntercept": "-1000"})
    )
    dicom.write(tmp_path, made.flat)
    load = LoadImaged(keys="image", reader=monai_reader.DicomSeriesReader())
    image = load({"image": str(tmp_path)})["image"]
    np.testing.assert_array_equal(image.numpy(), made.array.astype(float) * 2 - 1000)
    np.testing.assert_allclose(image.affine.numpy(), made.affine, atol=1e-5)


def test_phases_lie_on_the_last_axis(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=3).each(
        lambda image, t, z: setattr(image, "AcquisitionTime", dicom.clock(60 * t))
    )
    dicom.write(tmp_path, made.flat)
    reader = monai_reader.DicomSeriesReader()
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    array, meta = reader.get_data(reader.read(paths))
    np.testing.assert_array_equal(array, made.array)
    assert meta["original_channel_dim"] == 3
    assert meta["phase_times_s"] == [0, 60, 120]


def test_refusals_are_exceptions(dicom: Any, tmp_path: Path) -> None:
    reader = monai_reader.DicomSeriesReader()
    made = dicom.make()
    dicom.write(tmp_path / "hole", made.flat[:3] + made.flat[4:])
    with pytest.raises(Refused, match="MISSING_SLICE"):
        reader.read(tmp_path / "hole")
    dicom.write(tmp_path / "two", made.flat + dicom.make(seed=2).flat)
    with pytest.raises(DataError, match="2 convertible"):
        reader.read(tmp_path / "two")
