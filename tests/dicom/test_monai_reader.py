"""The MONAI reader gives the same volume as the core."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import test_realdata

from medplat import nifti
from medplat.dicom.read import read_volume
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


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_every_convertible_set_is_what_convert_writes(realdata: Path, tmp_path: Path) -> None:
    from monai.transforms import LoadImage

    loaded = 0
    for source in (*test_realdata.TABLE, *test_realdata.PARTS):
        path = realdata / "dicom" / source
        fit = (
            [one for one in test_realdata.plans_of(path) if one.convertible]
            if path.is_dir()
            else []
        )
        if len(fit) != 1:
            continue
        loaded += 1
        image = LoadImage(reader=monai_reader.DicomSeriesReader())(str(path))
        nifti.write(read_volume(fit[0]), tmp_path / "one.nii.gz")
        wanted = nifti.read(tmp_path / "one.nii.gz")
        real = wanted.array * np.float64(wanted.slope) + wanted.intercept
        np.testing.assert_allclose(image.numpy(), real.astype(np.float32), rtol=1e-6)
        np.testing.assert_allclose(image.affine.numpy(), wanted.geometry.affine, atol=1e-6)
    assert loaded >= 20
