"""SEG round trips: written over a source, read back by ourselves, by highdicom and by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medplat.dicom import seg
from medplat.errors import Refused
from medplat.types import Geometry
from medplat.workflow.schema import Code, Label

SHAPE = (13, 9, 7)
LABELS = (
    Label(name="liver", value=2, code=Code(value="10200004", meaning="Liver")),
    Label(name="lesion", value=5, code=Code(value="52988006", meaning="Lesion")),
    Label(name="odd_thing", value=300),
)
PLANES: dict[str, Any] = {
    "axial": ((1, 0, 0), (0, 1, 0), (0.8, 0.8), 2.5),
    "sagittal": ((0, 1, 0), (0, 0, -1), (1.3, 0.7), 3.1),
    "coronal": ((1, 0, 0), (0, 0, -1), (0.9, 1.1), 2.0),
    "oblique": (
        (0.9993283937786787, 0.0, 0.03664370871),
        (0.0120, 0.94, -0.34),
        (0.977, 0.651),
        1.7,
    ),
}


def plane(name: str) -> tuple[Any, Any, tuple[float, float], float]:
    row, column, spacing, step = PLANES[name]
    r = np.asarray(row, np.float64)
    r = r / np.linalg.norm(r)
    c = np.asarray(column, np.float64)
    c = c - (c @ r) * r
    return r, c / np.linalg.norm(c), spacing, step


def sources(name: str, *, reverse_numbers: bool = False) -> list[Dataset]:
    """A single-frame MR series in the order of +normal; InstanceNumber may run against it."""
    r, c, spacing, step = plane(name)
    series, study, frame = (generate_uid(entropy_srcs=[name, what]) for what in "abc")
    found = []
    for k in range(SHAPE[2]):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        one.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(k)])
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.SeriesNumber, one.Manufacturer = "MR", 4, "maker"
        one.PatientID, one.PatientName = "P1", "Test^Patient"
        one.PatientBirthDate, one.PatientSex = "", "F"
        one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber = "1", "20200102", "1200", ""
        one.InstanceNumber = SHAPE[2] - k if reverse_numbers else k + 1
        one.Columns, one.Rows = SHAPE[:2]
        one.PixelSpacing = [spacing[0], spacing[1]]
        one.SliceThickness = step
        one.ImageOrientationPatient = [round(float(v), 10) for v in (*r, *c)]
        position = np.array([-31.25, 17.5, 44.0]) + k * step * np.cross(r, c)
        one.ImagePositionPatient = [round(float(v), 8) for v in position]
        found.append(one)
    return found


def oracle(name: str) -> npt.NDArray[np.float64]:
    """Affine to RAS by the textbook, in float64."""
    r, c, spacing, step = plane(name)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = r * spacing[1], c * spacing[0]
    lps[:3, 2], lps[:3, 3] = np.cross(r, c) * step, (-31.25, 17.5, 44.0)
    return np.asarray(np.diag([-1.0, -1, 1, 1]) @ lps)


def mask(seed: int = 0) -> npt.NDArray[np.uint16]:
    """Asymmetric structures; slices 0 and 3 stay empty."""
    random = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.uint16)
    array[2:9, 1:4, 1:3] = 2
    array[5:6, 5:8, 4:7] = 5
    array[9:12, 0:2, 4] = 300
    array[random.random(SHAPE) < 0.03] = 2
    array[:, :, [0, 3]] = 0
    return array


def write(name: str, kind: seg.Kind, path: Path, array: Any, **options: Any) -> Dataset:
    built = seg.build(
        array,
        sources(name, **options),
        LABELS,
        kind=kind,
        model="phantom",
        version="3",
        weights_sha256="ab" * 32,
    )
    seg.save(built, path)
    return dcmread(path)


def centroids(dataset: Dataset) -> dict[int, npt.NDArray[np.float64]]:
    """Mean world position (RAS) of each segment, straight from the per-frame positions."""
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    points: dict[int, list[Any]] = {}
    for own, frame in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        position = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
        for value in set(np.unique(frame).tolist()) - {0}:
            number = value
            if dataset.SegmentationType == "BINARY":
                number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            j, i = np.nonzero(frame == value)
            world = (
                position + np.outer(i * columns, direction[:3]) + np.outer(j * rows, direction[3:])
            )
            points.setdefault(number, []).append(world)
    flip = np.array([-1.0, -1, 1])
    return {number: np.vstack(found).mean(0) * flip for number, found in points.items()}


@pytest.mark.parametrize("reverse_numbers", [False, True])
@pytest.mark.parametrize("kind", ["labelmap", "binary"])
@pytest.mark.parametrize("name", list(PLANES))
def test_round_trip(tmp_path: Path, name: str, kind: seg.Kind, reverse_numbers: bool) -> None:
    array = mask()
    path = tmp_path / "seg.dcm"
    dataset = write(name, kind, path, array, reverse_numbers=reverse_numbers)
    numbers = {2: 2, 5: 5, 300: 300} if kind == "labelmap" else {2: 1, 5: 2, 300: 3}
    found = centroids(dataset)
    affine = oracle(name)
    for value, number in numbers.items():
        voxels = np.argwhere(array == value)
        truth = (voxels @ affine[:3, :3].T + affine[:3, 3]).mean(0)
        assert np.abs(found[number] - truth).max() < 0.01
    volume = seg.read(path)
    back = seg.onto(volume, Geometry(affine, SHAPE))
    for value, number in numbers.items():
        assert np.array_equal(back == number, array == value)
    assert [one.name for one in volume.segments] == ["liver", "lesion", "odd_thing"]
    assert volume.segments[0].code == Code(value="10200004", meaning="Liver")
    assert volume.segments[2].code == Code(
        value="ODD_THING", scheme="99MEDPLAT", meaning="odd_thing"
    )
    assert volume.referenced_series_uid == sources(name)[0].SeriesInstanceUID


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_highdicom_reads_the_same(tmp_path: Path, kind: seg.Kind) -> None:
    import highdicom

    array = mask(1)
    write("oblique", kind, tmp_path / "seg.dcm", array)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    to_ras = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    values = [2, 5, 300] if kind == "labelmap" else [1, 2, 3]
    for value, truth in zip(values, (2, 5, 300), strict=True):
        there = np.argwhere(volume.array == value) @ to_ras[:3, :3].T + to_ras[:3, 3]
        affine = oracle("oblique")
        here = np.argwhere(array == truth) @ affine[:3, :3].T + affine[:3, 3]
        assert len(there) == len(here)
        assert np.abs(np.sort(there, axis=0) - np.sort(here, axis=0)).max() < 1e-3


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_same_input_same_bytes(kind: seg.Kind, tmp_path: Path) -> None:
    for at in "ab":
        write("axial", kind, tmp_path / at, mask())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = write("axial", kind, tmp_path / "c", mask(2))
    assert other.SOPInstanceUID != dcmread(tmp_path / "a").SOPInstanceUID
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize(("kind", "frames"), [("labelmap", 7), ("binary", 21)])
def test_empty_mask_keeps_all_frames(tmp_path: Path, kind: seg.Kind, frames: int) -> None:
    path = tmp_path / "seg.dcm"
    dataset = write("axial", kind, path, np.zeros(SHAPE, np.uint8))
    assert dataset.NumberOfFrames == frames
    assert not seg.read(path).array.any()


def test_deidentified_source_is_filled_and_source_untouched() -> None:
    found = sources("axial")
    for one in found:
        for keyword in ("PatientName", "PatientBirthDate", "StudyID", "StudyDate", "StudyTime"):
            delattr(one, keyword)
    built = seg.build(mask(), found, LABELS)
    assert built.PatientName == ""
    assert str(built.ContentDate) == "19000101"
    assert "PatientName" not in found[0]


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
)
def test_empty_uid_is_refused(keyword: str) -> None:
    found = sources("axial")
    for one in found:
        setattr(one, keyword, "")
    with pytest.raises(Refused, match=r"NO_UID: seg\.dcm is not written") as caught:
        seg.build(mask(), found, LABELS)
    assert caught.value.code == "NO_UID"


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        seg.build(mask()[:-1], sources("axial"), LABELS)
    array = mask()
    array[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"without a label: \[7\]"):
        seg.build(array, sources("axial"), LABELS)


def test_onto_refuses_other_grids(tmp_path: Path) -> None:
    write("axial", "binary", tmp_path / "seg.dcm", mask())
    volume = seg.read(tmp_path / "seg.dcm")
    affine = oracle("axial")

    def code(changed: npt.NDArray[np.float64], shape: tuple[int, int, int] = SHAPE) -> str:
        with pytest.raises(Refused) as caught:
            seg.onto(volume, Geometry(changed, shape))
        return caught.value.code

    shifted = affine.copy()
    shifted[0, 3] += 0.01
    assert code(shifted) == "LABEL_GRID_MISMATCH"
    assert code(affine, (13, 10, 7)) == "LABEL_GRID_MISMATCH"
    flipped = affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (SHAPE[0] - 1)
    flipped[:3, 0] *= -1
    assert code(flipped) == "LABEL_FLIPPED"
    assert code(affine, (13, 9, 5)) == "LABEL_OUTSIDE"


def test_a_single_frame_finds_its_slice_whatever_its_thickness() -> None:
    """One slice tells no distance to the next: thinner slices than their distance are common."""
    drawn = np.zeros_like(mask())
    drawn[2:5, 3:6, 2] = 2
    built = seg.build(drawn, sources("axial"), LABELS, kind="binary")
    measures = built.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = 0.5
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    found = seg.onto(seg.from_dataset(built), Geometry(oracle("axial"), SHAPE))
    np.testing.assert_array_equal(found > 0, drawn > 0)


def test_overlap_and_unknown_values_are_refused() -> None:
    built = seg.build(mask(), sources("axial"), LABELS, kind="binary")
    first = built.PerFrameFunctionalGroupsSequence
    same = first[0].PlanePositionSequence
    for one in first:
        one.PlanePositionSequence = same
    with pytest.raises(Refused, match="LABEL_OVERLAP"):
        seg.from_dataset(built)
    built = seg.build(mask(), sources("axial"), LABELS, kind="labelmap")
    del built.SegmentSequence[1]
    with pytest.raises(Refused, match=r"LABEL_UNKNOWN_VALUE.*\[2\]"):
        seg.from_dataset(built)


def test_binary_file_is_conformant(tmp_path: Path) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed (Debian: apt-get install dicom3tools)")
    write("oblique", "binary", tmp_path / "seg.dcm", mask())
    done = subprocess.run([tool, str(tmp_path / "seg.dcm")], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
    assert "Segmentation" in said


def test_read_published_segmentations(realdata: Path) -> None:
    folder = realdata / "dicom" / "dcmqi" / "segmentations"
    liver = seg.read(folder / "liver.dcm")
    assert int((liver.array > 0).sum()) == 107_098
    for name, size in (("23x38x3", 322), ("24x38x3", 315)):
        assert int((seg.read(folder / name / "seg" / "label.seg").array > 0).sum()) == size
    sparse = seg.read(folder / "sparse-labelmap-noppv.dcm")
    assert int((sparse.array == 1).sum()) == 630
    padded = seg.read(folder / "sparse-labelmap-ppv5.dcm")
    assert (padded.padding, int((padded.array == 1).sum())) == (5, 630)
    with pytest.raises(Refused, match="LABEL_OVERLAP"):
        seg.read(folder / "partial_overlaps.dcm")
