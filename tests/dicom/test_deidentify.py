from __future__ import annotations

import json
import struct
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "datasets"))
import breastdcedl_exports as cohorts
import regular_exports as regular

from medplat import pseudonym
from medplat.commands import convert
from medplat.dicom.deidentify import Deidentifier
from medplat.errors import UsageError
from medplat.pseudonym import Pseudonyms

MARKER = "Zyzzyx"
TEXTS = {
    "AE": 0x00080054, "AS": 0x00101010, "CS": 0x00180015, "LO": 0x0008103E, "LT": 0x00104000,
    "PN": 0x00100010, "SH": 0x00080050, "ST": 0x00080081, "UC": 0x00189908, "UR": 0x00081190,
    "UT": 0x0040A160,
}  # fmt: skip


def run(source: Path, project: Path, name: str, **options: Any) -> list[dict[str, Any]]:
    """Convert; the manifest's lines."""
    out = project.parent / name
    convert.run(source, out, project=project, workers=1, **options)
    text = (out / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


def volumes(out: Path, lines: list[dict[str, Any]]) -> list[tuple[Any, Any, Any, Any]]:
    """Affine, voxels, phase times and time in the study of every output, sorted by content."""
    found = []
    for line in lines:
        for output in line["outputs"]:
            if output["kind"] != "volume":
                continue
            image: Any = nib.load(out / output["path"])
            sidecar = json.loads((out / output["path"].replace(".nii.gz", ".json")).read_text())
            array = np.asarray(image.dataobj)
            found.append((array, image.affine, output["phase_times_s"], sidecar["study_time_s"]))
    return sorted(found, key=lambda one: one[0].tobytes())


def test_converted_again_it_gives_the_same(tmp_path: Path, project: Path) -> None:
    source, rng = tmp_path / "export", np.random.default_rng(3)
    cohorts.ispy2(seed=1).write(source / "a")
    cohorts.duke(seed=2, reverse=True).write(source / "b", 1)
    for nr, phases in enumerate((1, 1, 3, 4, 2)):
        regular.make(rng, phases=phases).write(source / f"r{nr}", rng)
    first = run(source, project, "first", deidentify=tmp_path / "copies")
    second = run(tmp_path / "copies", project, "second")
    assert len(first) == len(second) == 10
    pairs = zip(
        volumes(tmp_path / "first", first), volumes(tmp_path / "second", second), strict=True
    )
    for (array, affine, times, start), (again, affine2, times2, start2) in pairs:
        assert array.dtype == again.dtype
        np.testing.assert_array_equal(array, again)
        np.testing.assert_array_equal(affine, affine2)
        assert times == times2
        assert start == start2
    for line in first:
        record = line["deidentified"]
        assert "113107 Retain Longitudinal" in record["options"][1]
        assert (tmp_path / "copies" / record["folder"]).is_dir()
    # No original UID, date or name is left in any byte.
    forbidden = [b"Doe^Jane", b"19990606", b"20010203", b"ISPY2-100899", b"Breast_MRI_001"]
    forbidden += [line["series_uid"].encode() for line in first]
    forbidden += [line["study_uid"].encode() for line in first]
    for path in (tmp_path / "copies").rglob("*.dcm"):
        data = path.read_bytes()
        assert not any(text in data for text in forbidden)


@pytest.mark.parametrize(("name", "count"), [("dcm_qa_enh", 3), ("totalseg_ct", 1), ("dcmqi", 5)])
def test_real_series_converted_again(
    realdata: Path, tmp_path: Path, project: Path, name: str, count: int
) -> None:
    """Enhanced multi-frame, JPEG 2000 without UIDs in the data set, CT and MR."""
    first = run(realdata / "dicom" / name, project, "first", deidentify=tmp_path / "copies")
    second = run(tmp_path / "copies", project, "second")
    pairs = list(
        zip(volumes(tmp_path / "first", first), volumes(tmp_path / "second", second), strict=True)
    )
    assert len(pairs) == count
    for (array, affine, times, start), (again, affine2, times2, start2) in pairs:
        np.testing.assert_array_equal(array, again)
        np.testing.assert_array_equal(affine, affine2)
        assert (times, start) == (times2, start2)


def test_visits_of_one_patient_stay_together(tmp_path: Path, project: Path) -> None:
    """UIDs and shifts are the same in every run; the distance of two visits stays."""
    copies = []
    for nr, date in enumerate(("19990606", "19990906")):
        study = cohorts.ispy1(seed=nr)
        for image in study.images:
            image.StudyDate = image.AcquisitionDate = image.ContentDate = date
            image.FrameOfReferenceUID = "1.2.3.4.5"
        source = study.write(tmp_path / f"visit{nr}", nr)
        run(source, project, f"out{nr}", deidentify=tmp_path / f"copies{nr}")
        path = next((tmp_path / f"copies{nr}").rglob("*.dcm"))
        copies.append(dcmread(path))
    one, two = copies
    assert one.PatientID == two.PatientID == one.PatientName
    assert one.FrameOfReferenceUID == two.FrameOfReferenceUID != "1.2.3.4.5"
    assert one.StudyInstanceUID != two.StudyInstanceUID
    days = np.datetime64(_iso(two.StudyDate)) - np.datetime64(_iso(one.StudyDate))
    assert days == np.timedelta64(92, "D")
    assert one.StudyDate != "19990606"
    assert one.PatientIdentityRemoved == "YES"
    assert one.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [item.CodeValue for item in one.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113111"]


def _iso(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}"


def planted(image: Dataset) -> Dataset:
    """The image with a marker in every kind of text: top level, nested, private, overlays."""
    image.PatientName = f"{MARKER}^Jane"
    value = {"AS": "042Y", "CS": MARKER.upper(), "UR": f"http://{MARKER}"}
    item = Dataset()
    for where in (image, item):
        for vr, tag in TEXTS.items():
            where.add_new(tag, vr, value.get(vr, f"{MARKER} {vr}"))
        where.add_new(0x00081080, "LO", [MARKER, f"a {MARKER}"])
        where.add_new(0x00080070, "LO", f"Maker {MARKER}")  # Kept, without the name in it.
        where.add_new(0x00091010, "LO", MARKER)
        where.add_new(0x00090010, "LO", f"{MARKER} PRIVATE")
        where.add_new(0x60004000, "LT", MARKER)
        where.add_new(0x00104444, "UN", MARKER.encode())
    block = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "800")
    block.add_new(0x0E, "LO", MARKER)
    image.add_new(0x00400275, "SQ", Sequence([item]))
    image.add_new(0x00081111, "SQ", Sequence([deepcopy(item)]))
    image.add_new(0x00082112, "SQ", Sequence([deepcopy(item)]))
    image.file_meta.PrivateInformationCreatorUID = "1.2.3.99"
    image.file_meta.PrivateInformation = MARKER.encode()
    image.file_meta.SourceApplicationEntityTitle = MARKER
    image.preamble = (MARKER.encode() * 32)[:128]
    return image


def test_markers_in_every_text_are_gone(tmp_path: Path, project: Path) -> None:
    study = cohorts.ispy2()
    for image in study.images:
        planted(image)
    source = study.write(tmp_path / "export")
    assert any(MARKER.encode() in path.read_bytes() for path in source.rglob("*") if path.is_file())
    run(source, project, "out", deidentify=tmp_path / "copies")
    files = list((tmp_path / "copies").rglob("*.dcm"))
    assert len(files) == len(study.images)
    for path in files:
        assert MARKER.lower().encode() not in path.read_bytes().lower()
    image = dcmread(files[0])
    assert image.Manufacturer == "Maker"
    # Safe private numbers are kept, by creator; the phase time under a neutral one.
    assert image.private_block(0x0019, "SIEMENS MR HEADER")[0x0C].value == 800
    assert (0x0019, 0x100E) not in image
    assert Tag(0x0117, 0x1034) in image
    assert "PatientBirthDate" not in image or not image.PatientBirthDate


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("keyword", ["SOPClassUID", "StudyDate", "AcquisitionTime", "Manufacturer",
                                     "SliceThickness", "ImageType", "SeriesNumber"])  # fmt: skip
def test_a_damaged_length_lets_no_other_element_through(
    keyword: str, tmp_path: Path, project: Path
) -> None:
    """The value takes in the elements that follow it, names among them."""
    study = cohorts.ispy1()
    image = study.images[0]
    image.ReferringPhysicianName = image.PatientComments = f"{MARKER}^Name"
    image.InstitutionName = image.OperatorsName = image.StationName = MARKER
    image.StudyDescription = image.PatientName = image.DeviceSerialNumber = MARKER
    image.StudyID = image.PerformedProcedureStepDescription = MARKER
    image.SliceThickness, image.Manufacturer, image.SeriesNumber = "2", "Maker", "3"
    image.StudyDate, image.AcquisitionTime = "20240131", "101112"
    image.save_as(tmp_path / "whole", enforce_file_format=True)
    data = (tmp_path / "whole").read_bytes()

    def place(tag: int) -> int:
        return data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132 + 200)

    tags = [int(one.tag) for one in image]
    tag = int(image[keyword].tag)
    start = place(tag) + 6
    end = place(tags[tags.index(tag) + 8])
    (tmp_path / "spoiled").write_bytes(
        data[:start] + struct.pack("<H", end - start - 2) + data[start + 2 :]
    )
    spoiled = dcmread(tmp_path / "spoiled")
    Deidentifier(tmp_path / "copies", pseudonym.load(project)).clean(spoiled, "patient-x")
    spoiled.save_as(tmp_path / "clean", enforce_file_format=True)
    found = (tmp_path / "clean").read_bytes()
    assert MARKER.lower().encode() not in found.lower()
    assert b"20240131" not in found


def test_what_is_not_safe_is_not_copied(tmp_path: Path, project: Path) -> None:
    study = cohorts.ispy1()
    for image in study.images:
        image.BurnedInAnnotation = "YES"
    (line,) = run(study.write(tmp_path / "export"), project, "out", deidentify=tmp_path / "copies")
    assert "burned into" in line["deidentified"]["refused"]
    assert not list((tmp_path / "copies").rglob("*.dcm"))


def test_an_image_that_cannot_be_written_again_costs_its_copies_alone(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, image: Dataset, patient: str) -> None:
        raise ValueError("a value that pydicom reads and does not write")

    monkeypatch.setattr(Deidentifier, "clean", refuse)
    source = cohorts.ispy1().write(tmp_path / "export")
    (line,) = run(source, project, "out", deidentify=tmp_path / "copies")
    assert line["status"] == "converted"
    assert "too damaged to be written again (ValueError)" in line["deidentified"]["refused"]
    assert not list((tmp_path / "copies").rglob("*.dcm"))


def test_a_resumed_run_writes_lost_copies_again(tmp_path: Path, project: Path) -> None:
    source, copies = cohorts.ispy1().write(tmp_path / "export"), tmp_path / "copies"
    run(source, project, "out", deidentify=copies)
    files = sorted(copies.rglob("*.dcm"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    run(source, project, "out", deidentify=copies)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
    files[3].unlink()
    run(source, project, "out", deidentify=copies)
    assert {path: path.read_bytes() for path in files} == {k: v[0] for k, v in before.items()}


def test_dates_that_are_none_are_emptied() -> None:
    image = cohorts.ispy1().images[0]
    image.add_new(0x0008002A, "DT", "20240229235959.5+0100")
    image.add_new(0x00080022, "DA", "")
    image.PatientBirthDate, image.PatientBirthTime = "19501231", "1200"
    Deidentifier(Path(), Pseudonyms(b"0" * 16)).clean(image, "patient-x")
    assert str(image[0x0008002A].value).endswith("235959.5+0100")
    assert not str(image[0x0008002A].value).startswith("20240229")
    assert not image.PatientBirthDate


def test_the_folder_lies_apart(tmp_path: Path, project: Path) -> None:
    source = cohorts.ispy1().write(tmp_path / "export")
    for folder in (source / "copies", project.parent / "out" / "copies", tmp_path):
        with pytest.raises(UsageError, match="overlaps"):
            run(source, project, "out", deidentify=folder)
