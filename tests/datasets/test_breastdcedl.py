from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import breastdcedl_exports as exports

from medplat import nifti
from medplat.commands import Outcome, convert
from medplat.errors import DataError, Refused, UsageError
from medplat.types import Volume
from medplat.workflow import read as workflow_read
from medplat.workflow.schema import TrainWorkflow
from medplat_datasets import _breastdcedl_layout as layout
from medplat_datasets import _breastdcedl_read as reading
from medplat_datasets import breastdcedl
from medplat_datasets._breastdcedl_table import read_table

HEADER = (
    "pid,n_xy,n_z,n_times,pre,post_early,post_late,slice_thick,slice_space,xy_spacing,mask_start,"
    "mask_end,sraw,eraw,scol,ecol,age,r_white,pCR,HR,HRposHER2neg,HER2pos,TripleNeg,test,drug"
)
SPY2 = "ISPY2-100899,16,6,7,0.0,2.0,5.0,2.0,2.0,0.7031,,,,,,,44.0,1.0,1,1,1,0,0,0.0,A"
SPY1 = "ISPY1_1004,16,6,3,,,,2.0,2.0,0.7031,,,,,,,50.0,,0,0,0,0,1,2.0,"
DUKE = "Breast_MRI_001,16,6,4,,,,2.0,2.0,0.7031,1,4,3,9,5,12,,,,1,0,1,0,1.0,"


def table(folder: Path, *rows: str) -> Path:
    path = folder / "clinical.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def run(source: Path, clinical: Path, project: Path, **options: Any) -> tuple[Path, Outcome]:
    out = project.parent / "out"
    given = {"settings": [f"dataset.clinical_table={clinical}"], "keep": ["patient-id"]} | options
    return out, convert.run(
        source, out, project=project, dataset="breastdcedl", workers=1, **given
    )  # fmt: skip


def read_csv(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def check_images(root: Path, names: list[str], study: exports.Study) -> None:
    assert sorted(path.name for path in root.glob("*.nii.gz")) == sorted(names)
    for t, name in enumerate(names):
        image: Any = nib.load(root / name)
        assert image.get_data_dtype() == np.uint16
        np.testing.assert_array_equal(np.asarray(image.dataobj), study.array[..., t])
        np.testing.assert_allclose(image.affine, study.affine, atol=1e-4)
        sidecar = json.loads((root / name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["phase_times_s"] == [pytest.approx(study.times_s[t], abs=1e-3)]
        assert sidecar["phase"] == t


def test_three_cohorts_to_the_published_layout(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "export"
    spy2, spy1, duke = exports.ispy2(seed=1), exports.ispy1(seed=2), exports.duke(seed=3)
    ge = exports.duke("Breast_MRI_002", idiom="ge", reverse=True, seed=4)
    mask = np.zeros((16, 16, 6), bool)
    mask[3:8, 5:9, 1:4] = True
    mask[4, 6, 4] = True
    spy2.images += [exports.segmentation(spy2, mask), exports.localizer(spy2)]
    later = exports.ispy2(visit="T1", seed=5)
    for nr, one in enumerate((spy2, later, spy1, duke, ge)):
        one.write(source / str(nr), nr)
    out, outcome = run(source, table(tmp_path, SPY2, SPY1, DUKE), project)
    assert outcome.exit_code == 0
    root = out / "breastdcedl"
    names = [f"ISPY2-100899_spy2_vis1_dce_aqc_{t}.nii.gz" for t in range(7)]
    check_images(root / "SPY2/vis1/dce", names, spy2)
    names = [f"ISPY1_1004_spy1_vis1_acq{t}.nii.gz" for t in range(3)]
    check_images(root / "SPY1/vis1/dce", names, spy1)
    written = nib.load(root / "SPY2/vis1/mask/ISPY2-100899_spy2_vis1_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)  # type: ignore[attr-defined]
    for pid, study in (("Breast_MRI_001", duke), ("Breast_MRI_002", ge)):
        for t in range(4):
            image: Any = nib.load(root / f"DUKE/dce/{pid}_duke_aqc_{t}.nii.gz")
            np.testing.assert_array_equal(np.asarray(image.dataobj), study.array[..., t])
    rows = read_csv(root / "BreastDCEDL_metadata.csv", "pid")
    assert list(next(iter(rows.values())))[:29] == list(layout.COLUMNS)
    one = rows["ISPY2-100899"]
    wanted = {"pCR": "1", "n_xy": "16", "n_z": "6", "n_times": "7", "pre": "0.0", "test": "0.0"}
    wanted |= {"post_early": "2.0", "post_late": "5.0", "mask_start": "1", "mask_end": "4"}
    wanted |= {"sraw": "5", "eraw": "8", "scol": "3", "ecol": "7", "mask_count": "61"}
    wanted |= {"mask_max": "1", "race_white": "1.0", "HR_HER2_STATUS": "HRposHER2neg", "HER2": "0"}
    wanted |= {"dataset": "spy2", "drug": "A", "pix_type": "uint16", "menopause": "", "tum_vol": ""}
    assert {name: one[name] for name in wanted} == wanted
    # Without indices in the table: the phases nearest to 120 s and 400 s.
    one = rows["Breast_MRI_001"]
    assert [one[name] for name in ("pre", "post_early", "post_late")] == ["0", "1", "3"]
    assert [one[name] for name in ("mask_start", "mask_end", "sraw", "eraw")] == list("1439")
    assert not rows["Breast_MRI_002"]["pCR"]
    assert rows["Breast_MRI_002"]["n_times"] == "4"
    # Every series has a line.
    lines = read_csv(root / "series.csv", "series_uid")
    assert Counter(row["role"] for row in lines.values()) == {"dce": 10, "": 2}
    assert all(row["reason"] for row in lines.values())
    assert "another visit" in lines[str(later.images[0].SeriesInstanceUID)]["reason"]


def test_a_second_run_writes_nothing_anew_and_deletes_what_is_refused(
    tmp_path: Path, project: Path
) -> None:
    source = exports.duke().write(tmp_path / "export")
    clinical = table(tmp_path, DUKE)
    out, _ = run(source, clinical, project)
    root = out / "breastdcedl/DUKE/dce"
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    assert len(before) == 8
    run(source, clinical, project)
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before
    table(tmp_path, DUKE.replace("16,6,4,,,", "16,6,4,0,1,7"))
    out, outcome = run(source, clinical, project)
    assert outcome.exit_code == 4
    assert not list(root.iterdir())
    text = (out / "breastdcedl/notes.csv").read_text()
    assert "post_late 7, the export has 4 phases" in text


def test_header_traps_that_must_be_refused_by_name(tmp_path: Path, project: Path) -> None:
    broken, twice = exports.ispy2(), exports.ispy2("ISPY2-200000", seed=2)
    broken.images.remove(broken.of(3, 2))
    extra = exports.ispy2("ISPY2-200000", seed=7)
    for image in extra.images:
        image.StudyInstanceUID = "1.2.3.4"
        image.StudyDescription = ""
    for image in twice.images:
        image.StudyDescription = ""
    swapped = exports.duke("Breast_MRI_003")
    for image in swapped.images:  # The names say another order than the clock.
        names = {"ax dyn 1st pass": "ax dyn 2nd pass", "ax dyn 2nd pass": "ax dyn 1st pass"}
        image.SeriesDescription = names.get(image.SeriesDescription, image.SeriesDescription)
    lost = exports.duke("Breast_MRI_004")
    lost.images.remove(lost.of(1, 3))
    known_bad = exports.duke("Breast_MRI_250")
    foreign = exports.duke("OTHER-1")
    for nr, one in enumerate((broken, twice, extra, swapped, lost, known_bad, foreign)):
        one.write(tmp_path / "export" / str(nr), nr)
    out, outcome = run(tmp_path / "export", table(tmp_path, SPY2), project)
    assert outcome.exit_code == 4
    root = out / "breastdcedl"
    assert not list(root.rglob("*.nii.gz"))
    with (root / "series.csv").open(newline="") as file:
        codes = {row["pid"]: row["code"] for row in csv.DictReader(file)}
    assert codes == {
        "": "",
        "Breast_MRI_003": "PHASE_CONFLICT",
        "Breast_MRI_004": "MISSING_SLICE",
        "Breast_MRI_250": "",
        "ISPY2-200000": "AMBIGUOUS_INPUT",
    }


def test_without_table_or_patient_id_it_is_a_usage_error(tmp_path: Path, project: Path) -> None:
    source = exports.ispy1().write(tmp_path / "export")
    clinical = table(tmp_path, SPY1)
    for options, word in (
        ({"settings": []}, "clinical_table"),
        ({"settings": ["dataset.clinical_table=absent.csv"]}, "no file absent.csv"),
        ({"keep": []}, "--keep patient-id"),
    ):
        with pytest.raises(UsageError, match=word) as caught:
            run(source, clinical, project, **options)
        assert "\n" not in str(caught.value)


def test_a_dry_run_says_what_is_taken(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = exports.duke(reverse=True)
    study.images.append(exports.localizer(study))
    out, outcome = run(
        study.write(tmp_path / "export"), table(tmp_path, DUKE), project, dry_run=True
    )
    said = capsys.readouterr().err
    assert "Breast_MRI_001: series 8: dce: phase 2" in said
    assert "Breast_MRI_001: series 1: not taken: skipped by convert: LOCALIZER" in said
    assert not (out / "breastdcedl").exists()
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("16,6,7,0.0,2.0,5.0", "16,6,5,0.0,2.0,5.0"), "post_late is 5, there are 5 phases"),
        (("1,1,1,0,0,0.0", "1,2,1,0,0,0.0"), "HR is '2', the codes are 0 and 1"),
        (("0,0,0.0,A", "0,0,3,A"), "test is '3', the codes are 0 train"),
        ((",,,,,,,44.0", ",1,3,2,16,4,9,44.0"), "its box reaches rows 2 to 16, the image has 16"),
        (("ISPY2-100899", "PATIENT-1"), "'PATIENT-1' is not a patient id"),
    ],
)
def test_a_wrong_row_is_named_and_the_others_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    wrong = SPY2.replace(*change)
    assert wrong != SPY2
    clinical = table(tmp_path, SPY1, wrong, DUKE)
    found = breastdcedl.cases(breastdcedl.Config(clinical_table=clinical))
    assert [case.case for case in found] == ["ISPY1_1004", "Breast_MRI_001"]
    assert [case.split for case in found] == ["validation", "test"]
    warned = capsys.readouterr().err
    assert said in warned
    assert "clinical.csv:3" in warned


def test_one_patient_in_two_spellings_is_refused(tmp_path: Path) -> None:
    clinical = table(tmp_path, SPY1, SPY2, SPY1.replace("ISPY1_", "ispy1-"))
    found = read_table(clinical)
    assert list(found.patients) == ["ISPY2-100899"]
    (why,) = found.refused.values()
    assert "clinical.csv:2" in why
    assert "clinical.csv:4" in why


def test_file_names_are_matched_whole() -> None:
    for name, pid, phase in (
        ("ACRIN-6698-102212_spy2_vis1_dce_aqc_11.nii.gz", "ACRIN-6698-102212", 11),
        ("ISPY1_1004_spy1_vis1_acq0.nii", "ISPY1_1004", 0),
        ("Breast_MRI_001_duke_aqc_4.nii.gz", "Breast_MRI_001", 4),
        ("ISPY2-550421_spy2_vis1_mask.nii.gz", "ISPY2-550421", None),
    ):
        found = layout.parse(name)
        assert found is not None
        assert (found.pid, found.phase) == (pid, phase)
    for name in ("ISPY1_1004_spy2_vis1_dce_aqc_0.nii.gz", "Breast_MRI_001_duke_mask.nii.gz"):
        assert layout.parse(name) is None


def published(folder: Path, name: str, array: Any, affine: Any = None) -> Path:
    """A file as the authors' routine writes it: (slice, row, column), identity affine."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), folder / name)
    return folder / name


def test_published_files_become_cases_with_the_table_spacing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = pytest.importorskip("medplat.loaders.batches")
    rng = np.random.default_rng(0)
    root = tmp_path / "published"
    for t in (0, 2, 5):
        array = rng.integers(0, 4000, (6, 16, 16)).astype(np.float64)
        published(root, f"ISPY2-100899_spy2_vis1_dce_aqc_{t}.nii.gz", array)
    mask = np.zeros((6, 16, 16), np.int32)
    mask[2, 3, 4] = 1
    published(root, "ISPY2-100899_spy2_vis1_mask.nii.gz", mask)
    clinical = table(tmp_path, SPY2, SPY1)
    config = breastdcedl.Config(clinical_table=clinical, root=root, store=tmp_path / "store")
    (case,) = breastdcedl.cases(config)
    warned = capsys.readouterr().err
    assert "identity affine" in warned
    assert "ISPY1_1004 (the table names no phases" in warned
    assert case.codes == ("GEOMETRY_FROM_TABLE",)
    assert case.target == "pCR"
    late = nifti.read(case.images["late"].path)
    assert late.geometry.orientation == "unknown"
    assert late.array.dtype == np.uint16
    np.testing.assert_array_equal(late.array, array.transpose(2, 1, 0))
    np.testing.assert_array_equal(late.geometry.affine, np.diag([0.7031, 0.7031, 2.0, 1.0]))
    assert case.label is not None
    label = nifti.read(case.label)
    assert label.array.dtype == np.uint8
    assert np.argwhere(label.array).tolist() == [[4, 3, 2]]
    text = (
        "kind: train\ndataset: {name: breastdcedl}\nmodel: {name: unet}\n"
        "inputs: [{name: pre}, {name: late}]\n"
        "task: {kind: segment, labels: [{name: tumour, value: 1}]}\n"
        "transforms:\n  - Orientationd: {keys: [image, label], axcodes: RAS}\n"
    )
    workflow = workflow_read.read_text(text, "test", kind="train")
    assert isinstance(workflow, TrainWorkflow)
    with pytest.raises(Refused, match="ISPY2-100899: Orientationd needs directions"):
        batches.read_case(case, workflow)
    plain = batches.read_case(case, workflow.model_copy(update={"transforms": ()}))
    assert tuple(plain["image"].shape) == (2, 16, 16, 6)
    assert int(plain["truth"].sum()) == 1
    stamp = case.label.stat().st_mtime_ns
    assert breastdcedl.cases(config)[0].label == case.label
    assert case.label.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("row", "array", "code"),
    [
        (SPY2.replace("0.7031", ""), np.ones((6, 16, 16)), "NO_GEOMETRY"),
        (SPY2, np.ones((7, 16, 16)), "MIXED_SHAPE"),
        (SPY2, np.full((6, 16, 16), 0.5), "NO_GEOMETRY"),
    ],
)
def test_a_published_file_that_contradicts_the_table(
    tmp_path: Path, row: str, array: Any, code: str
) -> None:
    path = published(tmp_path, "ISPY2-100899_spy2_vis1_dce_aqc_0.nii.gz", array)
    patient = read_table(table(tmp_path, row)).patients["ISPY2-100899"]
    with pytest.raises(Refused) as caught:
        reading.read_published(path, patient)
    assert caught.value.code == code
    if code == "NO_GEOMETRY" and array[0, 0, 0] == 1:
        volume = reading.read_published(path, patient, {"ISPY2-100899": 0.729})
        assert volume.geometry.affine[0, 0] == 0.729


def test_a_file_with_a_true_affine_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ISPY2-100899_spy2_vis1_dce_aqc_0.nii.gz"
    study = exports.ispy2()
    place = nifti.Geometry(study.affine, (16, 16, 6))
    nifti.write(Volume(study.array[..., 0], place), path)
    patient = read_table(table(tmp_path, SPY2)).patients["ISPY2-100899"]
    volume = reading.read_published(path, patient)
    np.testing.assert_array_equal(volume.array, study.array[..., 0])
    np.testing.assert_allclose(volume.geometry.affine, study.affine, atol=1e-4)
    assert volume.geometry.orientation == "known"


@pytest.fixture
def real(realdata: Path) -> Path:
    return realdata / "breastdcedl"


def test_the_real_table(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clinical = real / "metadata_spy2_vis1_for_modeling.csv"
    found = breastdcedl.cases(breastdcedl.Config(clinical_table=clinical, unassigned="train"))
    assert len(found) == 982
    warned = capsys.readouterr().err
    assert "45 patients without phases" in warned
    assert "2 patients without in-plane spacing in the table: ISPY2-208265, ISPY2-627981" in warned
    found = breastdcedl.cases(breastdcedl.Config(clinical_table=clinical))
    assert "5 patients left out, without an official split: ACRIN" in capsys.readouterr().err
    counts = {"train": (781, 250), "test": (98, 31), "validation": (98, 32)}
    for side, (n, positive) in counts.items():
        targets = [case.target for case in found if case.split == side]
        assert (len(targets), targets.count("pCR")) == (n, positive)
    subtypes = Counter(
        name
        for patient in read_table(clinical).patients.values()
        for name in layout.SUBTYPES
        if patient.number(name) == 1
    )
    assert subtypes == {"HRposHER2neg": 381, "HER2pos": 242, "TripleNeg": 359}
    agree = total = 0
    for patient in read_table(clinical).patients.values():
        count, late = patient.index("n_times"), patient.index("post_late")
        if late is not None and count is not None:
            total += 1
            agree += breastdcedl.guessed("spy2", count - 1)["late"] == late
    assert (agree, total) == (619, 937)


@pytest.mark.parametrize(
    ("pid", "count", "first", "last", "largest"),
    [
        ("ACRIN-6698-102212", 42_423, 15, 52, 38),
        ("ACRIN-6698-104268", 36_332, 36, 60, 47),
        ("ISPY2-550421", 104_785, 58, 123, 80),
    ],
)
def test_the_real_masks(
    real: Path, pid: str, count: int, first: int, last: int, largest: int
) -> None:
    patients = read_table(real / "metadata_spy2_vis1_for_modeling.csv").patients
    volume = reading.read_published(real / "masks" / f"{pid}_spy2_vis1_mask.nii.gz", patients[pid])
    mask = volume.array
    assert mask.shape == (256, 256, patients[pid].index("n_z"))
    assert mask.dtype == np.uint8
    per_slice = mask.sum(axis=(0, 1), dtype=int)
    places = np.flatnonzero(per_slice)
    assert (per_slice.sum(), places[0], places[-1]) == (count, first, last)
    assert per_slice.argmax() == largest
    assert volume.geometry.orientation == "unknown"
    if pid == "ACRIN-6698-102212":
        voxel_ml = abs(np.linalg.det(volume.geometry.affine[:3, :3])) / 1000
        assert count * voxel_ml == pytest.approx(31.11, abs=0.01)


def test_reading_needs_a_table_and_a_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="clinical_table"):
        breastdcedl.cases(breastdcedl.Config())
