from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medplat import nifti
from medplat.errors import DataError
from medplat.types import Geometry, Volume

OBLIQUE = np.array(
    [
        [0.8, -0.3, 0.2, -91.25],
        [0.4, 0.7, -0.35, 12.5],
        [-0.05, 0.3, 2.4, -301.125],
        [0, 0, 0, 1],
    ]
)


def rotated(spacing: tuple[float, float, float]) -> np.ndarray:
    """An orthogonal oblique affine, from the QR decomposition of a fixed matrix."""
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = q * spacing
    affine[:3, 3] = OBLIQUE[:3, 3]
    return affine


def volume(
    dtype: str, shape: tuple[int, ...] = (5, 7, 3), affine: np.ndarray | None = None, **more: object
) -> Volume:
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "ui" else None
    rng = np.random.default_rng(0)
    array = (
        rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
        if info
        else rng.normal(size=shape).astype(dtype)
    )
    placed = rotated((0.7, 0.9, 2.5)) if affine is None else affine
    return Volume(array, Geometry(placed, shape[:3]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_stored_values_and_affine_come_back_in_nibabel(
    tmp_path: Path, dtype: str, name: str
) -> None:
    given = volume(dtype)
    digest = nifti.write(given, tmp_path / name)
    assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(image.dataobj.get_unscaled()), given.array)
    np.testing.assert_allclose(image.affine, given.geometry.affine, atol=3e-5)
    assert int(image.header["sform_code"]) == 1
    np.testing.assert_allclose(image.get_qform(), given.geometry.affine, atol=1e-4)
    back = nifti.read(tmp_path / name)
    assert back.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back.array, given.array)


def test_simpleitk_sees_the_same_place_and_values(tmp_path: Path) -> None:
    given = volume("int16", slope=0.5, intercept=-7.0)
    nifti.write(given, tmp_path / "a.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_allclose(values, given.array * 0.5 - 7.0)
    at = np.array(image.TransformIndexToPhysicalPoint((4, 6, 2))) * (-1, -1, 1)
    np.testing.assert_allclose(at, (given.geometry.affine @ (4, 6, 2, 1))[:3], atol=1e-3)


def test_slope_stays_exact_through_the_sidecar(tmp_path: Path) -> None:
    slope, intercept = 0.12345678901234, -3.00000000001
    given = volume("uint16", slope=slope, intercept=intercept)
    nifti.write(given, tmp_path / "a.nii.gz")
    alone = nifti.read(tmp_path / "a.nii.gz")
    assert alone.slope == np.float32(slope)
    exact = {"rescale": {"slope": slope, "intercept": intercept}}
    nifti.write_json(tmp_path / "a.json", exact)
    assert nifti.read(tmp_path / "a.nii.gz").slope == slope
    # A sidecar that tells of another slope is not believed.
    nifti.write_json(tmp_path / "a.json", {"rescale": {"slope": 2.0, "intercept": 0.0}})
    assert nifti.read(tmp_path / "a.nii.gz").slope == np.float32(slope)


def test_a_sheared_affine_keeps_its_sform_and_has_no_qform(tmp_path: Path) -> None:
    nifti.write(volume("int16", affine=OBLIQUE), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=3e-5)


def test_a_left_handed_grid_keeps_its_handedness(tmp_path: Path) -> None:
    affine = rotated((1, 1, 3)) @ np.diag([1.0, 1.0, -1.0, 1.0])
    nifti.write(volume("int16", affine=affine), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=3e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)


def test_same_volume_same_bytes_and_no_name_in_the_gzip_header(tmp_path: Path) -> None:
    given = volume("int16")
    nifti.write(given, tmp_path / "one.nii.gz")
    nifti.write(given, tmp_path / "another name.nii.gz")
    first = (tmp_path / "one.nii.gz").read_bytes()
    assert first == (tmp_path / "another name.nii.gz").read_bytes()
    assert first[3] == 0
    assert first[4:8] == b"\0\0\0\0"
    fortran = Volume(np.asfortranarray(given.array), given.geometry)
    nifti.write(fortran, tmp_path / "f.nii.gz")
    assert (tmp_path / "f.nii.gz").read_bytes() == first
    big = Volume(given.array.astype(">i2"), given.geometry)
    nifti.write(big, tmp_path / "big.nii.gz")
    assert (tmp_path / "big.nii.gz").read_bytes() == first


@pytest.mark.parametrize(
    ("times", "step"),
    [
        ((0.0, 10.0, 20.0), 10.0),
        ((0.0, 10.0, 20.05), 10.025),
        ((0.0, 60.0, 75.0), 0.0),
        (None, 0.0),
    ],
)
def test_phases(tmp_path: Path, times: tuple[float, ...] | None, step: float) -> None:
    given = volume("int16", (4, 3, 2, 3), phase_times_s=times)
    nifti.write(given, tmp_path / "a.nii.gz")
    if times:
        nifti.write_json(tmp_path / "a.json", {"phase_times_s": list(times)})
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (4, 3, 2, 3)
    assert float(image.header["pixdim"][4]) == pytest.approx(step, abs=1e-4)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    back = nifti.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.array, given.array)
    assert back.phase_times_s == times
    for phase in range(3):
        one = nifti.read(tmp_path / "a.nii.gz", phase)
        np.testing.assert_array_equal(one.array, given.array[..., phase])
        assert one.phase_times_s is None
    with pytest.raises(DataError, match="phase 3 does not exist"):
        nifti.read(tmp_path / "a.nii.gz", 3)


def test_files_of_others(tmp_path: Path) -> None:
    """NIfTI-2, big endian, unscaled slopes, two dimensions and no orientation are read."""
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = rotated((1, 2, 3))
    nib.Nifti2Image(array, affine).to_filename(tmp_path / "two.nii")
    back = nifti.read(tmp_path / "two.nii")
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.geometry.affine, affine)
    assert (back.slope, back.intercept) == (1.0, 0.0)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.Nifti1Image(array, affine, header).to_filename(tmp_path / "big.nii.gz")
    np.testing.assert_array_equal(nifti.read(tmp_path / "big.nii.gz").array, array)
    bare = nib.Nifti1Image(array[:, :, 0], None)
    bare.header.set_zooms((0.5, 0.25))
    bare.to_filename(tmp_path / "flat.nii")
    flat = nifti.read(tmp_path / "flat.nii")
    assert flat.array.shape == (2, 3, 1)
    assert flat.geometry.orientation == "unknown"
    np.testing.assert_allclose(np.diag(flat.geometry.affine)[:2], (0.5, 0.25))


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    data = header.binaryblock + bytes(4 + 800)
    (tmp_path / "a.nii").write_bytes(data)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(DataError, match="cannot hold them"):
            nifti.read(tmp_path / name)


def test_short_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    nifti.write(volume("int16"), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    cut = {
        "short.nii.gz": gzip.compress(data[:-10]),
        "torn.nii.gz": gzip.compress(data)[:-30],
        "text.nii": b"hello" * 200,
        "empty.nii.gz": b"",
    }
    for name, content in cut.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            nifti.read(tmp_path / name)
    colour = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colour, np.eye(4)).to_filename(tmp_path / "rgb.nii")
    with pytest.raises(DataError, match="colour"):
        nifti.read(tmp_path / "rgb.nii")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    bad = [
        Volume(np.zeros((2, 2, 2), complex), Geometry(np.eye(4), (2, 2, 2))),
        Volume(np.zeros((2, 2), np.int16), Geometry(np.eye(4), (2, 2, 1))),
        Volume(np.zeros((2, 2, 2), np.int16), Geometry(np.eye(4) * np.nan, (2, 2, 2))),
        Volume(np.zeros((2, 2, 2), np.int16), Geometry(np.eye(4), (2, 2, 3))),
    ]
    for one in bad:
        with pytest.raises(DataError):
            nifti.write(one, tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    digest = nifti.write_json(path, {"name": "Größe", "n": [1, 2.5]})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Größe", "n": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        nifti.write_json(path, {"n": float("nan")})
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "sidecar",
    [
        '{"rescale": {"slope": "x"}}',
        '{"rescale": {"slope": null}}',
        '{"geometry": {"affine": "x"}}',
    ],
)
def test_a_sidecar_that_holds_no_numbers_is_named(tmp_path: Path, sidecar: str) -> None:
    volume = Volume(np.zeros((4, 5, 6), np.int16), Geometry(np.eye(4), (4, 5, 6)))
    nifti.write(volume, tmp_path / "one.nii.gz")
    (tmp_path / "one.json").write_text(sidecar)
    with pytest.raises(DataError, match=r"one\.json: a value is not a number"):
        nifti.read(tmp_path / "one.nii.gz")


def test_series_from_sidecar(tmp_path: Path) -> None:
    content = {
        "series_uid": "1.2",
        "study_uid": "1",
        "case": "case-a",
        "patient": "patient-a",
        "modality": "MR",
        "shape": [4, 3, 2, 5],
        "codes": ["NO_UID"],
        "tags": {"Modality": "MR"},
    }
    nifti.write_json(tmp_path / "a.json", content)
    series = nifti.series_from_sidecar(tmp_path / "a.nii.gz")
    assert (series.shape, series.codes, series.path) == (
        (4, 3, 2, 5),
        ("NO_UID",),
        tmp_path / "a.nii.gz",
    )
    with pytest.raises(DataError, match="not a sidecar"):
        nifti.series_from_sidecar(tmp_path / "other.nii.gz")
