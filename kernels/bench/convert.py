"""Reading a CT series of 100 slices of 512 x 512: medplat against SimpleITK and MONAI's reader.

From a folder of files to an array with its affine in memory; nothing is written. The series is
drawn by this program: noise over a cylinder, 16 bit, not compressed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import SimpleITK
from monai.data import PydicomReader

from medplat.dicom import read, scan, series, write
from medplat.types import Geometry, Volume

HERE = Path(__file__).resolve().parent
SHAPE = (512, 512, 100)


def _draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(100, 20, SHAPE).astype(np.int16)
    x, y = np.ogrid[:512, :512]
    array[(x - 256) ** 2 + (y - 256) ** 2 < 150**2] += 900
    affine = np.diag([-0.7, -0.7, 2.0, 1.0])
    uids = {f"{what}InstanceUID": write.uid("bench", what) for what in ("Study", "Series")}
    write.write_series(
        Volume(array, Geometry(affine, SHAPE)), folder, {"Modality": "CT", "PatientID": "1", **uids}
    )


def _medplat(folder: Path) -> Any:
    plan = read.plan(series.group(scan.scan(folder))[0])[0]
    return read.read_volume(plan).array


def _sitk(folder: Path) -> Any:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)


def _monai(folder: Path) -> Any:
    reader = PydicomReader()
    return reader.get_data(reader.read(str(folder)))[0]


def _same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def main() -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _draw(folder)
        rows = harness.compare(
            {
                "medplat": lambda: _medplat(folder),
                "SimpleITK": lambda: _sitk(folder),
                "MONAI PydicomReader": lambda: _monai(folder),
            },
            same=_same,
        )
    return harness.report("reading a CT of 512 x 512 x 100", rows, HERE / "convert.json")
