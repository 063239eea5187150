"""Labels of five formats: good ones lie on the source grid exactly, faults are named."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export
import drawn_labels as drawn

from medplat import nifti
from medplat.commands import convert
from medplat.dicom import codes

PLACES = (3.0, 5.0, 7.0, 9.0, 11.0)
UID = export.uid(1, 1)
# By hand from the tags of `convert_export.image`: rows 1.5 mm, columns 0.75 mm, LPS to RAS.
AFFINE = np.array([[-0.75, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 3], [0, 0, 0, 1.0]])


def drawing() -> drawn.Drawing:
    layers = np.zeros((2, 8, 6, 5), np.uint8)
    layers[0, 1:4, 2, 1:3] = 1
    layers[1, 4:6, 4:, 3:] = 1
    return drawn.Drawing(layers, AFFINE, ("lesion", "cyst"), UID)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    export.stack(tmp_path / "source" / "s1", 1, 1, PLACES)
    return tmp_path / "source"


def run(source: Path, project: Path, **options: Any) -> tuple[list[Any], list[dict[str, str]], int]:
    out = project.parent / "out"
    outcome = convert.run(source, out, project=project, workers=1, **options)
    lines = [json.loads(text) for text in (out / "manifest.jsonl").read_text().splitlines()]
    with (out / "files.csv").open(newline="") as file:
        return lines, list(csv.DictReader(file)), outcome.exit_code


def labels_of(lines: list[Any], project: Path) -> list[Any]:
    outputs = [one for line in lines for one in line["outputs"] if one["kind"] == "label"]
    return [nifti.read(project.parent / "out" / one["path"]) for one in outputs]


@pytest.mark.parametrize("name", drawn.WRITERS)
def test_a_good_label_lies_on_the_source_grid(name: str, source: Path, project: Path) -> None:
    folder = project.parent / "drawn"
    folder.mkdir()
    drawn.WRITERS[name](drawing(), folder)
    lines, rows, code = run(source, project, labels=folder)
    assert code == 0
    assert (lines[0]["status"], lines[0]["codes"]) == ("converted", [])
    (label,) = labels_of(lines, project)
    np.testing.assert_array_equal(label.array, drawing().values)
    np.testing.assert_allclose(label.geometry.affine, AFFINE, atol=1e-9)
    assert [(one["value"], one["name"]) for one in label.metadata["values"]] == [
        (1, "lesion"),
        (2, "cyst"),
    ]
    if name == "seg.nrrd":
        assert label.metadata["values"][0]["code"] == {
            "value": "4147007", "scheme": "SCT", "meaning": "Mass",
        }  # fmt: skip
    assert {row["status"] for row in rows} == {"used"}
    assert len(rows) == len(PLACES) + len(list(folder.iterdir()))


def test_fifty_of_fifty_faults_are_named(tmp_path: Path, project: Path) -> None:
    """Every format with every fault, each on a series of its own in one export."""
    source, folder = tmp_path / "source", tmp_path / "drawn"
    cases = [(name, fault) for name in drawn.WRITERS for fault in drawn.FAULTS]
    expected = {}
    for number, (name, fault) in enumerate(cases, start=1):
        export.stack(source / f"case{number:03d}", 1, number, PLACES)
        place = folder / f"d{number:03d}"
        place.mkdir(parents=True)
        wanted, spoil = drawn.FAULTS[fault]
        spoiled = spoil(replace(drawing(), series_uid=export.uid(1, number)))
        path = drawn.WRITERS[name](spoiled, place)
        expected[f"(labels)/{path.relative_to(folder).as_posix()}"] = (name, fault, wanted)
    _, rows, code = run(source, project, labels=folder)
    found = {row["path"]: row["reason"] for row in rows}
    wrong = [
        (*what, found.get(path)) for path, what in expected.items() if found.get(path) != what[2]
    ]
    assert len(expected) >= 50
    assert wrong == []
    assert code == 3
    assert not list((project.parent / "out").rglob("*_label*"))
    wanted_codes = {wanted for wanted, _ in drawn.FAULTS.values()}
    assert wanted_codes == {name for name in codes.CODES if name.startswith("LABEL_")}


def test_labels_are_found_in_source_by_name_and_folder(source: Path, project: Path) -> None:
    export.stack(source / "s2", 1, 2, PLACES)
    image = nib.Nifti1Image(drawing().values, AFFINE)
    nib.save(image, source / "s1" / "tumour_mask.nii.gz")
    nib.save(image, source / "s2_seg.nii")
    nib.save(image, source / "t1_brain.nii.gz")
    lines, rows, code = run(source, project)
    assert code == 0
    by_path = {row["path"]: row for row in rows}
    assert by_path["s1/tumour_mask.nii.gz"]["output"].split("/")[1].startswith("0001-")
    assert by_path["s2_seg.nii"]["output"].split("/")[1].startswith("0002-")
    assert by_path["t1_brain.nii.gz"]["reason"] == "NOT_DICOM"
    names = [one["name"] for one in labels_of(lines, project)[0].metadata["values"]]
    assert names == ["label 1", "label 2"]


def test_a_patients_label_goes_to_the_only_series_that_it_fits(source: Path, project: Path) -> None:
    export.stack(source / "s2", 1, 2, (*PLACES, 13.0))
    folder = project.parent / "drawn"
    folder.mkdir()
    nib.save(nib.Nifti1Image(drawing().values, AFFINE), folder / "PID0001.nii.gz")
    _, rows, _ = run(source, project, labels=folder)
    row = next(one for one in rows if one["path"] == "(labels)/PID0001.nii.gz")
    assert row["output"].split("/")[1].startswith("0001-")
    export.stack(source / "s3", 1, 3, PLACES)
    _, rows, code = run(source, project, labels=folder)
    row = next(one for one in rows if one["path"] == "(labels)/PID0001.nii.gz")
    assert (row["reason"], code) == ("LABEL_WRONG_SERIES", 3)


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 0, 2)])
def test_an_image_in_another_voxel_order_is_put_right_by_its_affine(
    axes: tuple[int, int, int], source: Path, project: Path
) -> None:
    """As dcm2niix and nibabel store it: axes reversed or swapped, the world the same."""
    turn = np.zeros((4, 4))
    for new, old in enumerate(axes):
        turn[old, new] = 1
    turn[3, 3] = 1
    back = np.diag([1.0, -1, 1, 1])
    back[1, 3] = 5
    image = nib.Nifti1Image(drawing().values[:, ::-1].transpose(axes), AFFINE @ back @ turn)
    nib.save(image, source / "s1" / "label.nii.gz")
    lines, _, code = run(source, project)
    assert (code, lines[0]["codes"]) == (0, ["LABEL_FLIPPED"])
    (label,) = labels_of(lines, project)
    np.testing.assert_array_equal(label.array, drawing().values)


def test_layers_of_slicer_that_do_not_overlap_become_one_label(source: Path, project: Path) -> None:
    """Both layers hold value 1: the values are numbered anew, none is lost."""

    class Layered(drawn.Drawing):
        overlapping = True  # type: ignore[assignment]

    given = drawing()
    layered = Layered(given.layers, given.affine, given.names, given.series_uid)
    drawn.write_seg_nrrd(layered, source / "s1")
    lines, _, code = run(source, project)
    assert code == 0
    np.testing.assert_array_equal(labels_of(lines, project)[0].array, given.values)


def test_a_header_that_points_elsewhere_is_not_followed(source: Path, project: Path) -> None:
    image = sitk.GetImageFromArray(np.ones((2, 2, 2), np.uint8))
    sitk.WriteImage(image, str(project / "away.mhd"))
    header = (project / "away.mhd").read_text().replace("away.raw", str(project / "away.raw"))
    (source / "s1" / "label.mha").write_text(header)
    _, rows, code = run(source, project)
    row = next(one for one in rows if one["path"].endswith("label.mha"))
    assert (row["reason"], code) == ("OUTSIDE_ROOT", 3)


def test_a_label_inside_an_archive_is_read(source: Path, project: Path, tmp_path: Path) -> None:
    path = drawn.write_nifti(drawing(), source / "s1")
    path.rename(path.with_name("drawn_label.nii.gz"))
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", source)
    lines, rows, code = run(Path(archive), project)
    assert (code, lines[0]["codes"]) == (0, [])
    assert {row["status"] for row in rows} == {"used"}
    np.testing.assert_array_equal(labels_of(lines, project)[0].array, drawing().values)


def test_fractions_are_kept_as_fractions(source: Path, project: Path) -> None:
    path = drawn.write_seg(drawing(), source)
    ds = pydicom.dcmread(path)
    ds.SegmentationType, ds.SegmentationFractionalType = "FRACTIONAL", "PROBABILITY"
    ds.MaximumFractionalValue = 200
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    planes = [
        layer[:, :, k].T * 50
        for layer in drawing().layers
        for k in range(layer.shape[2])
        if layer[:, :, k].any()
    ]
    ds.PixelData = np.array(planes, np.uint8).tobytes()
    ds.save_as(path)
    lines, rows, code = run(source, project)
    assert code == 0
    found = [one for one in lines[0]["outputs"] if one["kind"] == "fraction"]
    assert [Path(one["path"]).name.split("_")[1] for one in found] == [
        "fraction.nii.gz",
        "fraction2.nii.gz",
    ]
    for one, layer, name in zip(found, drawing().layers, drawing().names, strict=True):
        volume = nifti.read(project.parent / "out" / one["path"])
        assert volume.array.dtype == np.float32
        np.testing.assert_allclose(volume.array, layer * 0.25)
        assert volume.metadata["fraction"] == "PROBABILITY"
        assert [value["name"] for value in volume.metadata["values"]] == [name]
    assert next(row for row in rows if row["path"] == "drawn.seg")["status"] == "used"


def test_names_of_structures_tell_no_patient(source: Path, project: Path) -> None:
    given = replace(drawing(), names=("GTV Lastname1", "cyst"))
    drawn.write_rtstruct(given, source)
    lines, _, _ = run(source, project)
    names = [one["name"] for one in labels_of(lines, project)[0].metadata["values"]]
    assert names == ["GTV", "cyst"]


def test_codes_of_structures_tell_no_patient(source: Path, project: Path) -> None:
    path = drawn.write_seg(drawing(), source)
    ds = pydicom.dcmread(path)
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "4147007", "SCT"
    code.CodeMeaning = "Mass of Lastname1"
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [code]
    ds.save_as(path)
    lines, _, _ = run(source, project)
    found = labels_of(lines, project)[0].metadata["values"][0]["code"]
    assert found == {"value": "4147007", "scheme": "SCT", "meaning": "Mass of"}


def test_published_segmentations_equal_their_nrrd_twins(realdata: Path, project: Path) -> None:
    """The same liver as DICOM SEG and as NRRD, in one export: each finds the series it was on."""
    root = realdata / "dicom" / "dcmqi" / "segmentations"
    _, rows, _ = run(root, project)
    outputs = {row["path"]: row["output"] for row in rows if row["status"] == "used"}
    seg, nrrd = (
        nifti.read(project.parent / "out" / outputs[name])
        for name in ("liver.dcm", "liver_seg.nrrd")
    )
    np.testing.assert_array_equal(seg.array > 0, nrrd.array > 0)
    assert int((seg.array > 0).sum()) == 107_098
    np.testing.assert_allclose(seg.geometry.affine, nrrd.geometry.affine, atol=1e-9)


@pytest.mark.parametrize("name", ["seg.nrrd", "seg", "rtstruct"])
def test_a_person_may_split_structures_that_overlap(name: str, source: Path, project: Path) -> None:
    """A target inside its margin: refused with the decision to take, then one file for each."""
    layers = drawing().layers.copy()
    layers[1] |= layers[0]
    drawn.WRITERS[name](replace(drawing(), layers=layers), source / "s1")
    lines, _, code = run(source, project)
    assert (code, lines[0]["codes"]) == (3, ["LABEL_OVERLAP"])
    assert "1 and 2 of 2 share voxels" in lines[0]["messages"][0]
    assert "split-label" in (project.parent / "out" / "report.html").read_text()
    decided = project / "decided.csv"
    decided.write_text(f"series_uid,action,by,reason\n{UID},split-label,me,nested targets\n")
    lines, rows, code = run(source, project, decisions=decided)
    assert (code, lines[0]["status"], lines[0]["codes"]) == (0, "warned", ["LABEL_OVERLAP"])
    assert {row["status"] for row in rows} == {"used"}
    found = labels_of(lines, project)
    assert [[one["name"] for one in label.metadata["values"]] for label in found] == [
        ["lesion"],
        ["cyst"],
    ]
    for label, layer in zip(found, layers, strict=True):
        np.testing.assert_array_equal(label.array > 0, layer > 0)
        np.testing.assert_allclose(label.geometry.affine, AFFINE, atol=1e-9)


@pytest.mark.parametrize("name", drawn.WRITERS)
def test_a_label_has_no_place_on_a_resampled_series(
    name: str, tmp_path: Path, project: Path
) -> None:
    """Drawn at equal steps, as most tools show uneven slices: the grid alone would not tell."""
    export.stack(tmp_path / "source" / "s1", 1, 1, (3.0, 5.4, 7.0, 9.0, 11.0))
    folder = tmp_path / "drawn"
    folder.mkdir()
    drawn.WRITERS[name](drawing(), folder)
    lines, rows, code = run(tmp_path / "source", project, resample=True, labels=folder)
    assert (code, lines[0]["codes"]) == (3, ["UNEVEN_SPACING", "LABEL_GRID_MISMATCH"])
    assert {row["reason"] for row in rows} <= {"", "LABEL_GRID_MISMATCH"}
    assert labels_of(lines, project) == []
