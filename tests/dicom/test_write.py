"""Written series read back with pydicom: pixels, and geometry by the standard's own formula."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medplat.dicom import wheel
from medplat.dicom.write import uid, write_report, write_series
from medplat.types import Geometry, Volume

HEADERS = {
    "StudyInstanceUID": uid("study"),
    "PatientID": "1",
    "PatientName": "A^B",
    "PatientSex": "F",
    "StudyDate": "20000101",
    "StudyTime": "120000",
    "StudyID": "1",
    "BodyPartExamined": "BREAST",
    "Laterality": "L",
}


def oblique(shape: tuple[int, ...], dtype: str) -> Volume:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 1.9, 3.3)
    affine[:3, 3] = -123.456789, 1 / 3, 1e-7
    low = 0 if dtype == "uint16" else -1000
    array = rng.integers(low, 30000, shape).astype(dtype)
    return Volume(array, Geometry(affine, (shape[0], shape[1], shape[2])), 2.0, -5.0)


@pytest.mark.parametrize(("modality", "dtype"), [("MR", "uint16"), ("CT", "int16")])
def test_reads_back(tmp_path: Path, modality: str, dtype: str) -> None:
    volume = oblique((7, 5, 4, 3), dtype)
    headers = {**HEADERS, "Modality": modality, "SeriesInstanceUID": uid(modality)}
    phases = [{"AcquisitionNumber": at} for at in range(3)]
    paths = write_series(volume, tmp_path / "new", headers, phases=phases)
    assert len(list((tmp_path / "new").iterdir())) == 12
    for phase in range(3):
        for index in range(4):
            one = pydicom.dcmread(paths[phase][index])
            assert np.array_equal(one.pixel_array, volume.array[:, :, index, phase].T)
            assert one.pixel_array.dtype == dtype
            assert (one.RescaleSlope, one.RescaleIntercept) == (2, -5)
            assert one.AcquisitionNumber == phase
            # PS3.3 C.7.6.2.1.1: position of column i and row j
            row, column = np.reshape(np.array(one.ImageOrientationPatient, float), (2, 3))
            between_rows, between_columns = (float(x) for x in one.PixelSpacing)
            i, j = 6, 4
            lps = (
                np.array(one.ImagePositionPatient, float)
                + i * row * between_columns
                + j * column * between_rows
            )
            ras = (volume.geometry.affine @ (i, j, index, 1))[:3]
            assert lps * (-1, -1, 1) == pytest.approx(ras, abs=1e-6)


def test_uids_are_valid_repeatable_and_distinct(tmp_path: Path) -> None:
    volume = oblique((4, 4, 2, 2), "uint16")
    headers = {**HEADERS, "Modality": "MR", "SeriesInstanceUID": uid("x")}
    first = write_series(volume, tmp_path / "a", headers)
    second = write_series(volume, tmp_path / "b", headers, first=5)
    again = write_series(volume, tmp_path / "c", headers)
    uids = [pydicom.dcmread(one).SOPInstanceUID for row in (*first, *second) for one in row]
    assert len(set(uids)) == 8
    assert all(one.is_valid for one in uids)
    for row, other in zip(first, again, strict=True):
        assert [one.read_bytes() for one in row] == [one.read_bytes() for one in other]


def test_headers_by_slice_and_instance_numbers(tmp_path: Path) -> None:
    headers = {**HEADERS, "Modality": "MR", "SeriesInstanceUID": uid("y")}
    headers["SliceLocation"] = lambda k: str(10 * k)
    paths = write_series(
        oblique((4, 4, 3, 2), "int16"), tmp_path, headers, number=lambda t, k: 100 * t - k
    )
    read = [[pydicom.dcmread(one) for one in row] for row in paths]
    assert [[int(one.SliceLocation) for one in row] for row in read] == [[0, 10, 20]] * 2
    assert [[int(one.InstanceNumber) for one in row] for row in read] == [
        [0, -1, -2],
        [100, 99, 98],
    ]


def test_refuses(tmp_path: Path) -> None:
    headers = {**HEADERS, "Modality": "MR", "SeriesInstanceUID": uid("z")}
    volume = oblique((4, 4, 2, 2), "int16")
    with pytest.raises(ValueError, match="PT series"):
        write_series(volume, tmp_path, {**headers, "Modality": "PT"})
    with pytest.raises(ValueError, match="float32"):
        write_series(Volume(volume.array.astype("float32"), volume.geometry), tmp_path, headers)
    with pytest.raises(ValueError, match="1 phase headers for 2 phases"):
        write_series(volume, tmp_path, headers, phases=[{}])


def test_wheel_holds_real_files() -> None:
    found = wheel.files("dicomdirtests/98892001/CT5N/*")
    assert len(found) == 5
    assert {pydicom.dcmread(one).Modality for one in found} == {"CT"}
    assert wheel.files("nothing/*") == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("modality", ["MR", "CT", "SR"])
def test_dciodvfy_finds_no_error(tmp_path: Path, modality: str) -> None:
    headers = {**HEADERS, "Modality": modality, "SeriesInstanceUID": uid(modality)}
    path = tmp_path / "sr.dcm"
    if modality == "SR":
        del headers["BodyPartExamined"], headers["Laterality"]
        write_report(path, headers, "none")
    else:
        path = write_series(oblique((4, 4, 2), "int16"), tmp_path, headers)[0][1]
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []
