"""`medplat verify`: faults planted into NIfTI files are named, true files are left alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import CTImageStorage

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat.commands import convert, verify, verify_match, verify_source
from medplat.dicom.codes import CODES
from medplat.errors import UsageError

Image = nib.Nifti1Image
# By hand from the tags of `convert_export.image`: rows 1.5 mm, columns 0.75 mm, LPS to RAS.
CT_AFFINE = np.array([[-0.75, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 3], [0, 0, 0, 1.0]])
DYNAMIC_AFFINE = np.array([[-0.75, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
Fault = Callable[[Any, np.ndarray], tuple[Any, np.ndarray]]


def moved(affine: np.ndarray, *by: float) -> np.ndarray:
    found = affine.copy()
    found[:3, 3] += affine[:3, :3] @ by
    return found


def turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def changed(array: np.ndarray) -> np.ndarray:
    found = array.copy()
    found[:, :, 1] = found[::-1, ::-1, 2] // 2 + 1
    return found


def reordered(array: np.ndarray) -> np.ndarray:
    return array[:, :, [0, 2, 1, *range(3, array.shape[2])]]


AFFINE_FAULTS: dict[str, tuple[str, Fault]] = {
    "columns reversed": ("NIFTI_FLIPPED", lambda a, m: (a[::-1], m)),
    "rows reversed": ("NIFTI_FLIPPED", lambda a, m: (a[:, ::-1], m)),
    "slices reversed": ("NIFTI_FLIPPED", lambda a, m: (a[:, :, ::-1], m)),
    "LPS written as RAS": ("NIFTI_FLIPPED", lambda a, m: (a, np.diag([-1.0, -1, 1, 1]) @ m)),
    "rows for columns": ("NIFTI_AXES", lambda a, m: (a.swapaxes(0, 1), m)),
    "pixel spacings swapped": (
        "NIFTI_SPACING",
        lambda a, m: (a, m @ np.diag([2.0, 0.5, 1, 1])),
    ),
    "slice distance wrong": ("NIFTI_SPACING", lambda a, m: (a, m @ np.diag([1, 1, 1.25, 1]))),
    "a quarter of a voxel off": ("NIFTI_SHIFTED", lambda a, m: (a, moved(m, 0.25, 0, 0))),
    "far away": ("NIFTI_SHIFTED", lambda a, m: (a, moved(m, 40, -3, 7))),
    "rotated": ("NIFTI_ROTATED", lambda a, m: (a, turned(m, 11))),
}
VOXEL_FAULTS: dict[str, tuple[str, Fault]] = {
    "a slice at the end is absent": ("NIFTI_SLICES", lambda a, m: (a[:, :, :-1], m)),
    "a slice in the middle is absent": (
        "NIFTI_SLICES",
        lambda a, m: (np.delete(a, 2, axis=2), m),
    ),
    "a slice is there twice": (
        "NIFTI_SLICES",
        lambda a, m: (np.insert(a, 2, a[:, :, 1], axis=2), m),
    ),
    "two slices swapped": ("NIFTI_SLICE_ORDER", lambda a, m: (reordered(a), m)),
    "a slice of something else": ("NIFTI_VALUES", lambda a, m: (changed(a), m)),
}
PHASE_FAULTS: dict[str, tuple[str, Fault]] = {
    "phases reversed": ("NIFTI_PHASE_ORDER", lambda a, m: (a[..., ::-1], m)),
    "two phases swapped": ("NIFTI_PHASE_ORDER", lambda a, m: (a[..., [0, 2, 1]], m)),
    "a phase is absent": ("NIFTI_PHASES", lambda a, m: (a[..., :2], m)),
    "a phase is there twice": ("NIFTI_PHASES", lambda a, m: (a[..., [0, 1, 1, 2]], m)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    export.stack(folder / "ct", 1, 1, (3.0, 5, 7, 9, 11), Modality="CT",
                 SOPClassUID=CTImageStorage, RescaleSlope=2, RescaleIntercept=-1024)  # fmt: skip
    export.dynamic(folder / "dyn", 1, 2)
    export.stack(folder / "gap", 1, 3, (0.0, 2, 4, 8, 10, 12))
    return folder


def stored(source: Path, name: str) -> np.ndarray:
    """Voxels by pydicom alone: (x, y, z), or (x, y, z, t) for the dynamic series."""
    paths = sorted((source / name).iterdir())
    if name == "ct":
        return export.expected(paths)
    phases = [paths[t * 4 : t * 4 + 4] for t in range(3)]
    return np.stack([export.expected(one) for one in phases], axis=-1)


def like_dcm2niix(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows from the bottom up, and an affine that says so."""
    back = np.diag([1.0, -1, 1, 1])
    back[1, 3] = array.shape[1] - 1
    return array[:, ::-1], affine @ back


def save(path: Path, array: np.ndarray, affine: np.ndarray, **scale: float) -> Path:
    image = Image(np.ascontiguousarray(array).astype(np.int16), affine)
    image.header.set_slope_inter(scale.get("slope", 1), scale.get("inter", 0))
    nib.save(image, path)
    return path


def ct(source: Path, path: Path, fault: Fault | None = None, **scale: float) -> Path:
    array, affine = like_dcm2niix(stored(source, "ct"), CT_AFFINE)
    array, affine = fault(array, affine) if fault else (array, affine)
    return save(path, array, affine, **({"slope": 2, "inter": -1024} | scale))


def check(path: Path, source: Path, project: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    outcome = verify.run(path, source, project=project, **options)
    (row,) = [one for one in outcome.summary["files"] if "_repaired" not in one["path"]]
    return outcome.exit_code, row


def codes(row: dict[str, Any]) -> list[str]:
    return [one["code"] for one in row["findings"]]


@pytest.mark.parametrize("order", ["as DICOM", "as dcm2niix", "sagittal first", "float"])
def test_true_files_are_left_alone(order: str, source: Path, project: Path, tmp_path: Path) -> None:
    array, affine = stored(source, "ct"), CT_AFFINE
    path = tmp_path / "a.nii.gz"
    if order == "as dcm2niix":
        array, affine = like_dcm2niix(array, affine)
    if order == "sagittal first":
        array, affine = array.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]
    if order == "float":
        nib.save(Image((array * 2.0 - 1024).astype(np.float32), affine), path)
    else:
        save(path, array, affine, slope=2, inter=-1024)
    code, row = check(path, source, project, repair=True)
    assert (code, row["status"], codes(row)) == (0, "true", [])
    assert row["paired_by"] == "slice contents"
    assert row["series_uid"] == export.uid(1, 1)
    assert row["repaired"] is None


@pytest.mark.parametrize("fault", AFFINE_FAULTS)
def test_faults_of_the_affine_are_named_and_repaired(
    fault: str, source: Path, project: Path, tmp_path: Path
) -> None:
    wanted, spoil = AFFINE_FAULTS[fault]
    path = ct(source, tmp_path / "scan.nii.gz", spoil)
    before = path.read_bytes()
    code, row = check(path, source, project, repair=True)
    assert (code, codes(row)) == (3, [wanted])
    assert path.read_bytes() == before
    repaired = tmp_path / "scan_repaired.nii.gz"
    assert row["repaired"] == repaired.name
    assert_equal_in_the_world(repaired, source, project)
    old, new = nib.load(path), nib.load(repaired)
    np.testing.assert_array_equal(old.dataobj.get_unscaled(), new.dataobj.get_unscaled())
    assert verify.run(repaired, source, project=project).exit_code == 0


def assert_equal_in_the_world(path: Path, source: Path, project: Path) -> None:
    """Equal to our own conversion, once both run along the axes of the body."""
    out = project.parent / "out"
    convert.run(source, out, project=project, workers=1)
    lines = [json.loads(text) for text in (out / "manifest.jsonl").read_text().splitlines()]
    (own,) = [one for one in lines if one["series_uid"] == export.uid(1, 1)]
    ours = nib.as_closest_canonical(nib.load(out / own["outputs"][0]["path"]))
    theirs = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


@pytest.mark.parametrize("fault", VOXEL_FAULTS)
def test_faults_of_the_voxels_are_named_and_not_repaired(
    fault: str, source: Path, project: Path, tmp_path: Path
) -> None:
    wanted, spoil = VOXEL_FAULTS[fault]
    path = ct(source, tmp_path / "scan.nii.gz", spoil)
    code, row = check(path, source, project, repair=True)
    assert (code, codes(row)) == (3, [wanted])
    assert not list(tmp_path.glob("*_repaired*"))


@pytest.mark.parametrize("fault", PHASE_FAULTS)
def test_faults_of_the_phases_are_named(
    fault: str, source: Path, project: Path, tmp_path: Path
) -> None:
    wanted, spoil = PHASE_FAULTS[fault]
    array, affine = spoil(*like_dcm2niix(stored(source, "dyn"), DYNAMIC_AFFINE))
    code, row = check(save(tmp_path / "dyn.nii.gz", array, affine), source, project)
    assert (code, codes(row)) == (3, [wanted])


def test_phases_in_files_of_their_own_are_complete_together(
    source: Path, project: Path, tmp_path: Path
) -> None:
    array = stored(source, "dyn")
    paths = [save(tmp_path / f"p{t}.nii", array[..., t], DYNAMIC_AFFINE) for t in range(3)]
    outcome = verify.run(tmp_path, source, project=project)
    assert outcome.exit_code == 0
    paths[1].unlink()
    outcome = verify.run(tmp_path, source, project=project)
    found = [codes(one) for one in outcome.summary["files"]]
    assert (outcome.exit_code, found) == (3, [["NIFTI_PHASES"], []])


@pytest.mark.parametrize("scale", [{"slope": 1, "inter": 0}, {"inter": 0}, {"slope": 2.5}])
def test_a_wrong_slope_is_named(
    scale: dict[str, float], source: Path, project: Path, tmp_path: Path
) -> None:
    path = ct(source, tmp_path / "scan.nii.gz", None, **scale)
    code, row = check(path, source, project, repair=True)
    assert (code, codes(row)) == (3, ["NIFTI_SLOPE"])
    array = stored(source, "ct").astype(np.float64) * scale.get("slope", 2) + scale.get(
        "inter", -1024
    )
    nib.save(Image(array.astype(np.float32), CT_AFFINE), path)
    assert codes(check(path, source, project)[1]) == ["NIFTI_SLOPE"]


def test_other_faults_are_named(source: Path, project: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    array, affine = stored(source, "ct"), CT_AFFINE
    image = Image(array.astype(np.int16), affine)
    image.header.set_slope_inter(2, -1024)
    image.set_qform(moved(affine, 1, 0, 0), code=1)
    nib.save(image, path)
    assert codes(check(path, source, project)[1]) == ["NIFTI_FORMS"]
    image.set_sform(affine, code=0)
    image.set_qform(affine, code=0)
    nib.save(image, path)
    code, row = check(path, source, project, repair=True)
    assert codes(row) == ["NIFTI_NO_ORIENTATION"]
    assert_equal_in_the_world(tmp_path / row["repaired"], source, project)
    (tmp_path / row["repaired"]).unlink()
    rng = np.random.default_rng(0)
    noisy = array.astype(int) * 2 - 1024 + rng.integers(-2, 3, array.shape)
    noisy[0, 0, 0], noisy[-1, -1, -1] = -1024 + 2 * int(array.min()), -1024 + 2 * int(array.max())
    save(path, noisy, affine)
    code, row = check(path, source, project)
    assert (code, codes(row), row["paired_by"]) == (3, ["NIFTI_VALUES"], "grid and value range")
    save(path, rng.integers(0, 9, (5, 5, 5)), affine)
    code, row = check(path, source, project)
    assert (code, codes(row)) == (3, ["NIFTI_UNPAIRED"])
    (tmp_path / "scan.json").write_text("not JSON, as some tools write it")
    assert codes(check(ct(source, path), source, project)[1]) == []
    path.write_bytes(b"not NIfTI")
    assert codes(check(path, source, project)[1]) == ["NIFTI_UNREADABLE"]


def test_what_convert_writes_is_true(source: Path, project: Path) -> None:
    out = project.parent / "out"
    convert.run(source, out, project=project, workers=1)
    outcome = verify.run(out, source, project=project)
    assert outcome.exit_code == 0
    assert outcome.summary["counts"]["true"] == 2
    page = (out / "verify.html").read_text()
    assert "true" in page
    assert export.uid(1, 1) not in page


def test_usage(source: Path, project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no NIfTI file"):
        verify.run(tmp_path, source, project=project)
    path = ct(source, tmp_path / "scan.nii.gz")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "notes.txt").write_text("no DICOM")
    with pytest.raises(UsageError, match="no series that could be converted"):
        verify.run(path, tmp_path / "only", project=project)
    planted = {wanted for wanted, _ in (AFFINE_FAULTS | VOXEL_FAULTS | PHASE_FAULTS).values()}
    planted |= {"NIFTI_SLOPE", "NIFTI_FORMS", "NIFTI_NO_ORIENTATION", "NIFTI_UNPAIRED"}
    planted |= {"NIFTI_UNREADABLE", "NIFTI_REFUSED"}
    assert planted == {name for name in CODES if name.startswith("NIFTI_")}


@pytest.mark.parametrize(
    "name",
    [
        "dcm_qa_ts",
        "dcm_qa_12bit",
        "dcm_qa_enh",
        "dcm_qa_nih",
    ],
)
def test_no_false_alarm_on_the_references_of_dcm2niix(
    name: str, realdata: Path, project: Path
) -> None:
    root = realdata / "dicom" / name
    page = project / "verify.html"
    outcome = verify.run(root / "Ref", root, project=project, page=page)
    assert [one for one in outcome.summary["files"] if one["status"] != "true"] == []
    assert {one["paired_by"] for one in outcome.summary["files"]} == {"slice contents"}
    assert outcome.exit_code == 0


def test_of_a_radiograph_only_lengths_are_compared(project: Path, tmp_path: Path) -> None:
    ds = export.image(1, 1, 1, (0, 0, 0), Modality="DX", ImagerPixelSpacing=[0.2, 0.1])
    for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(ds, keyword)
    export.save(ds, tmp_path / "source" / "a")
    array = export.pydicom.dcmread(tmp_path / "source" / "a").pixel_array.T[:, :, None]
    path = save(tmp_path / "a.nii", array[:, ::-1], np.diag([-0.1, 0.2, 3, 1.0]))
    assert check(path, tmp_path / "source", project)[0] == 0
    save(path, array, np.diag([0.2, 0.2, 1, 1.0]))
    code, row = check(path, tmp_path / "source", project)
    assert (code, codes(row)) == (3, ["NIFTI_SPACING"])


@pytest.mark.parametrize("scale", [{}, {"slope": 2, "inter": -1024}, {"as real": 1}])
@pytest.mark.parametrize("alone", [False, True])
def test_a_file_made_from_a_refused_series_is_named(
    alone: bool, scale: dict[str, float], source: Path, project: Path, tmp_path: Path
) -> None:
    """The six slices that are there, as other tools write them, though the series lacks one."""
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1024} if scale else {}
    export.stack(tmp_path / "gap", 1, 3, (0.0, 2, 4, 8, 10, 12), **rescale)
    if not alone:
        shutil.copytree(source / "ct", tmp_path / "gap" / "ct")
    array = export.expected(sorted(path for path in (tmp_path / "gap").iterdir() if path.is_file()))
    path = tmp_path / "scan.nii.gz"
    if "as real" in scale:
        nib.save(Image((array * 2.0 - 1024).astype(np.float32), CT_AFFINE), path)
    else:
        save(path, *like_dcm2niix(array, CT_AFFINE), **scale)
    code, row = check(path, tmp_path / "gap", project, repair=True)
    assert (code, codes(row), row["status"]) == (3, ["NIFTI_REFUSED"], "untrue")
    assert "MISSING_SLICE" in row["findings"][0]["message"]
    assert (row["series_uid"], row["repaired"]) == (export.uid(1, 3), None)


def test_files_of_damaged_series_are_told_from_others(project: Path, tmp_path: Path) -> None:
    """Images that cannot be read are passed over; the others are known again."""
    export.stack(tmp_path / "cut", 1, 1, (3.0, 5, 7, 9, 11))
    paths = sorted((tmp_path / "cut").iterdir())
    array = export.expected(paths)
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    path = save(tmp_path / "scan.nii", array, CT_AFFINE)
    code, row = check(path, tmp_path / "cut", project)
    assert (code, codes(row)) == (3, ["NIFTI_REFUSED"])
    assert "TRUNCATED" in row["findings"][0]["message"]
    path = save(tmp_path / "scan.nii", array // 3, CT_AFFINE)
    assert codes(check(path, tmp_path / "cut", project)[1]) == ["NIFTI_UNPAIRED"]


def test_values_that_are_not_finite_spoil_their_slice_alone(
    source: Path, project: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scan.nii"
    real = (stored(source, "ct") * 2.0 - 1024).astype(np.float32)
    real[1, 2, 3] = np.nan
    nib.save(Image(real, moved(CT_AFFINE, 0, 0, 2)), path)
    code, row = check(path, source, project, repair=True)
    assert row["paired_by"] == "slice contents"
    assert (code, set(codes(row))) == (3, {"NIFTI_VALUES", "NIFTI_SHIFTED"})
    texts = [one["message"] for one in row["findings"]]
    assert "values that are no finite numbers: 1" in texts
    assert "the voxels of slices 3 are not the series'" in texts
    assert row["repaired"] is None
    real[2] = np.inf
    nib.save(Image(real, CT_AFFINE), path)
    row = check(path, source, project)[1]
    assert (codes(row)[0], row["paired_by"]) == ("NIFTI_VALUES", "grid and value range")
    nib.save(Image(np.full_like(real, np.nan), CT_AFFINE), path)
    row = check(path, source, project)[1]
    assert (row["status"], codes(row)) == ("unpaired", ["NIFTI_VALUES", "NIFTI_UNPAIRED"])


def test_among_alike_series_none_is_blamed_for_a_changed_file(
    source: Path, project: Path, tmp_path: Path
) -> None:
    """Only a series on whose grid the file lies is held against it; else the file has no series."""
    for series, low in ((1, 3.0), (2, 103.0)):
        places = [low + 2 * k for k in range(5)]
        rescale = {"RescaleSlope": 1, "RescaleIntercept": -7 * series}
        export.stack(tmp_path / "two", 1, series, places, **rescale)
    noisy = np.random.default_rng(1).integers(100, 548, (8, 6, 5))
    noisy[0, 0, 0], noisy[-1, -1, -1] = 100, 547
    path = save(tmp_path / "scan.nii", noisy, moved(CT_AFFINE, 0, 0, 50))
    code, row = check(path, tmp_path / "two", project, repair=True)
    assert (code, codes(row), row["series_uid"]) == (3, ["NIFTI_VALUES"], export.uid(1, 2))
    save(path, noisy, moved(CT_AFFINE, 0, 0, 20))
    code, row = check(path, tmp_path / "two", project, repair=True)
    assert (code, codes(row), row["series_uid"]) == (3, ["NIFTI_UNPAIRED"], None)
    export.stack(tmp_path / "two", 1, 3, places, RescaleSlope=1, RescaleIntercept=-21)
    save(path, noisy, moved(CT_AFFINE, 0, 0, 50))
    code, row = check(path, tmp_path / "two", project, repair=True)
    assert (code, codes(row), row["series_uid"]) == (3, ["NIFTI_VALUES"], None)
    assert "any of 2 series" in row["findings"][0]["message"]


def test_a_file_is_hashed_once_however_many_series_are_alike(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for series in range(1, 7):
        export.stack(tmp_path / "six" / str(series), 1, series, (3.0, 5, 7, 9, 11))
    hashed = []
    real = verify_source.slice_hashes

    def counted(array: np.ndarray, axis: int) -> dict[tuple[int, int], bytes]:
        hashed.append(axis)
        return real(array, axis)

    array = export.expected(sorted((tmp_path / "six" / "4").iterdir()))
    path = save(tmp_path / "a.nii", array, CT_AFFINE)
    monkeypatch.setattr(verify_match, "slice_hashes", counted)
    code, row = check(path, tmp_path / "six", project)
    assert (code, row["series_uid"]) == (0, export.uid(1, 4))
    assert len(hashed) <= 3  # Once for all series, then the file and its own series to lay it.
