"""The phantom against its own parameters: geometry, enhancement, truth, files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medplat import nifti
from medplat.errors import DataError
from medplat_datasets import _breast, _export, phantom


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[phantom.Study]]:
    folder = tmp_path_factory.mktemp("export")
    return folder, phantom.write_export(folder, patients=2, second_visits=1, seed=5)


def images(folder: Path, series_uid: str) -> list[pydicom.Dataset]:
    found = []
    for path in sorted(folder.rglob("I*")):
        if path.is_file() and (one := pydicom.dcmread(path)).SeriesInstanceUID == series_uid:
            found.append(one)
    return found


def test_lesion_volume_is_that_of_its_ellipsoid() -> None:
    breast = _breast.draw(3)
    smooth = _breast.Lump("lesion", *vars_of(breast.lumps[0]), 0.0, breast.lumps[0].surface)
    breast = _breast.Breast(**{**vars(breast), "lumps": (smooth,)})
    grid = _breast.grid(breast, (64, 60, 50), (1.9, 2.0, 2.1), tilt_deg=(3, -2))
    voxels = int(_breast.lesion(breast, grid).sum())
    expected = 4 / 3 * np.pi * np.prod(smooth.radii)
    assert voxels * 1.9 * 2.0 * 2.1 == pytest.approx(expected, rel=0.03)


def vars_of(lump: _breast.Lump) -> tuple[_breast.Vector, _breast.Vector]:
    return lump.centre, lump.radii


def test_lesion_lies_where_the_affine_says() -> None:
    breast = _breast.draw(4)
    grid = _breast.grid(breast, (61, 64, 24), (2, 2, 4.5), plane="sagittal", tilt_deg=(4, 1))
    voxels = np.argwhere(_breast.lesion(breast, grid))
    world = (grid.affine @ np.r_[voxels.mean(0), 1])[:3]
    expected = breast.centre + breast.lumps[0].centre * (breast.side, 1, 1)
    assert np.linalg.norm(world - expected) < 3.0


@pytest.mark.parametrize("seed", range(6))
def test_three_phases_are_needed(seed: int) -> None:
    """Lesions rise and fall, benign lumps rise all the time, cysts are bright from the start."""
    breast, volume, _ = _export.simulate(seed)
    times = np.array(volume.phase_times_s)
    early, late = np.abs(times - 120).argmin(), np.abs(times - 400).argmin()
    inner = {
        lump: lump.inside(_breast._points(breast, volume.geometry), 1.0) > 0.9
        for lump in breast.lumps
    }
    for lump, inside in inner.items():
        pre, first, last = (volume.array[inside][:, at].mean() for at in (0, early, late))
        if lump.kind == "lesion":
            assert first > 1.5 * pre
            assert last < 0.97 * first
        elif lump.kind == "benign":
            assert last > 1.05 * first > 1.05 * pre
        else:
            assert first == pytest.approx(pre, rel=0.05)
            assert last == pytest.approx(pre, rel=0.05)


def test_seeds_differ_and_visits_are_of_one_breast() -> None:
    first, again, other = _breast.draw(1), _breast.draw(1, visit=1), _breast.draw(2)
    assert np.array_equal(first.size, again.size)
    assert again.lumps[0].radii.mean() < first.lumps[0].radii.mean()
    assert not np.array_equal(first.size, other.size)


def test_export_holds_the_arrays_where_the_affine_says(
    export: tuple[Path, list[phantom.Study]],
) -> None:
    folder, studies = export
    study = studies[0]
    found = images(folder, study.dynamic_uid)
    array = study.volume.array
    assert len(found) == array.shape[2] * array.shape[3]
    times = sorted({str(one.AcquisitionTime) for one in found})
    for one in found[::17]:
        row, column = np.reshape([float(x) for x in one.ImageOrientationPatient], (2, 3))
        position = np.array([float(x) for x in one.ImagePositionPatient])
        lps = np.diag([-1, -1, 1, 1]) @ study.volume.geometry.affine
        index = np.linalg.solve(lps, np.r_[position, 1])[:3]
        assert index[:2] == pytest.approx([0, 0], abs=1e-6)
        assert np.cross(row, column) @ lps[:3, 2] == pytest.approx(np.linalg.norm(lps[:3, 2]))
        phase = times.index(str(one.AcquisitionTime))
        assert np.array_equal(one.pixel_array.T, array[:, :, round(index[2]), phase])


def test_idioms(export: tuple[Path, list[phantom.Study]]) -> None:
    folder, studies = export
    philips, siemens = (images(folder, studies[at].dynamic_uid) for at in (0, 1))
    phases = studies[0].volume.array.shape[3]
    assert {int(one.TemporalPositionIdentifier) for one in philips} == set(range(phases))
    assert {int(one.NumberOfTemporalPositions) for one in philips} == {phases - 1}
    assert {float(one.TriggerTime) for one in philips} == {0.0}
    assert len({str(one.ContentTime) for one in philips}) == 1
    slices = studies[1].volume.array.shape[2]
    assert {int(one.InstanceNumber) for one in siemens} == set(range(1, slices + 1))
    assert "TemporalPositionIdentifier" not in siemens[0]


def test_broken_study_lacks_one_slice_of_one_phase(
    export: tuple[Path, list[phantom.Study]],
) -> None:
    folder, studies = export
    broken = [one for one in studies if one.broken]
    assert len(broken) == 1
    shape = broken[0].volume.array.shape
    assert len(images(folder, broken[0].dynamic_uid)) == shape[2] * shape[3] - 1


def test_export_is_repeatable_and_holds_what_disks_hold(
    export: tuple[Path, list[phantom.Study]], tmp_path: Path
) -> None:
    folder, _ = export
    again = tmp_path / "again"
    phantom.write_export(again, patients=2, second_visits=1, seed=5)
    digests = [
        {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*")
            if path.is_file()
        }
        for root in (folder, again)
    ]
    assert digests[0] == digests[1]
    assert {"README.TXT", "VIEWER.EXE", "DISC2.ZIP", "DICOM/EMPTY", "OTHER/0000"} <= set(digests[0])
    with zipfile.ZipFile(folder / "DISC2.ZIP") as packed:
        assert len(packed.namelist()) > 100


def test_labels_are_dicom_seg_of_the_lesion(export: tuple[Path, list[phantom.Study]]) -> None:
    folder, studies = export
    labels = [
        one
        for path in sorted(folder.glob("DICOM/*/*/I*"))
        if (one := pydicom.dcmread(path)).Modality == "SEG"
    ]
    assert {one.StudyInstanceUID for one in labels} == {one.study_uid for one in studies[:2]}
    for label in labels:
        study = next(one for one in studies if one.study_uid == label.StudyInstanceUID)
        reference = label.ReferencedSeriesSequence[0].SeriesInstanceUID
        assert reference == study.dynamic_uid
        assert int(label.pixel_array.sum()) == int(study.lesion.sum())


def test_plugin_gives_cases(tmp_path: Path) -> None:
    config = phantom.Config(root=tmp_path / "p", patients=2, second_visits=1, seed=3)
    cases = phantom.cases(config)
    assert [case.patient for case in cases] == ["phantom03_000", "phantom03_001", "phantom03_000"]
    _, volume, lesion = _export.simulate(3001)
    image = cases[1].images["late"]
    read = nifti.read(image.path, image.phase)
    assert image.phase == int(np.abs(np.array(volume.phase_times_s) - 400).argmin())
    assert np.array_equal(read.array, volume.array[..., image.phase or 0])
    assert np.allclose(read.geometry.affine, volume.geometry.affine, atol=1e-4)
    assert cases[1].label is not None
    assert np.array_equal(nifti.read(cases[1].label).array, lesion)
    before = {path: path.stat().st_mtime_ns for path in config.root.iterdir()}
    assert phantom.cases(config) == cases
    assert before == {path: path.stat().st_mtime_ns for path in config.root.iterdir()}


def test_plugin_fills_no_folder_of_others(tmp_path: Path) -> None:
    phantom.cases(phantom.Config(root=tmp_path / "p", patients=1, second_visits=0))
    with pytest.raises(DataError, match="another seed"):
        phantom.cases(phantom.Config(root=tmp_path / "p", patients=1, seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="not empty"):
        phantom.cases(phantom.Config(root=tmp_path / "mine", patients=1))


def test_selection_study(tmp_path: Path) -> None:
    roles = phantom.write_selection_study(tmp_path, second=True)
    headers = {
        role: pydicom.dcmread(path, stop_before_pixels=True)
        for path in sorted(tmp_path.iterdir())
        for role, series in roles.items()
        if pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID == series
    }
    assert set(headers) == set(roles) == set(roles) | {"t1", "t1_second"}
    assert headers["t1_contrast"].ContrastBolusAgent
    assert "ContrastBolusAgent" not in headers["t1"]
    assert headers["reformat"].ImageType[0] == "DERIVED"
    assert headers["t1_thick"].SliceThickness != headers["t1"].SliceThickness
    assert len({one.StudyInstanceUID for one in headers.values()}) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy(export: tuple[Path, list[phantom.Study]]) -> None:
    """Nothing wrong but what the Philips-like idiom is known for: a trigger time, no gating."""
    folder, _ = export
    for path in sorted(folder.glob("DICOM/*/*/I*"))[::29]:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
        assert [line for line in errors if "<TriggerTime>" not in line] == [], path
