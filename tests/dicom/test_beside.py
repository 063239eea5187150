"""A slice that was lost before it was known to be of its series never shortens it in silence."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medplat.dicom import scan, source
from medplat.dicom.read import plan, read_volume
from medplat.dicom.series import group
from medplat.errors import Refused


def plans(folder: Path) -> list[Any]:
    return [one for series in group(scan.scan(folder)) for one in plan(series)]


def cut_before_series_uid(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x20\x00\x0e\x00UI")])


def last_slice(folder: Path, made: Any) -> Path:
    wanted = made.images[-1][-1].SOPInstanceUID.encode()
    return next(p for p in folder.rglob("*") if p.is_file() and wanted in p.read_bytes())


def test_the_only_series_is_refused(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=6)
    folder = dicom.write(tmp_path, made.flat)
    cut_before_series_uid(last_slice(folder, made))
    (one,) = plans(folder)
    assert (one.series.status, one.series.codes) == ("rejected", ("IMAGE_LOST",))


def test_series_that_disagree_with_what_is_left_are_let_be(dicom: Any, tmp_path: Path) -> None:
    first, second = dicom.make(slices=6), dicom.make(slices=6, seed=2)
    second.each(lambda image, t, z: setattr(image, "SeriesDescription", "another"))
    first.each(lambda image, t, z: setattr(image, "SeriesDescription", "this one"))
    folder = dicom.write(tmp_path, [*first.flat, *second.flat])
    cut_before_series_uid(last_slice(folder, first))
    found = {one.series.description: one.series.codes for one in plans(folder)}
    assert found == {"this one": ("IMAGE_LOST",), "another": ()}


def test_several_series_that_agree_are_warned_of(dicom: Any, tmp_path: Path) -> None:
    first, second = dicom.make(slices=6), dicom.make(slices=6, seed=2)
    second.each(lambda i, t, z: setattr(i, "StudyInstanceUID", first.flat[0].StudyInstanceUID))
    folder = dicom.write(tmp_path, [*first.flat, *second.flat])
    cut_before_series_uid(last_slice(folder, first))
    for one in plans(folder):
        assert (one.series.status, one.series.codes) == ("warned", ("IMAGE_LOST",))


def test_names_and_folders_prove_nothing(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=3)
    for number, image in enumerate(made.flat):
        image.save_as(tmp_path / f"IM{number}", enforce_file_format=True)
    (tmp_path / "IM3").write_bytes(b"")
    (tmp_path / "IM4").write_bytes(bytes(4000))
    (one,) = plans(tmp_path)
    assert one.series.status == "converted"


def test_what_could_not_be_read_at_all(
    dicom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the system is told from damage, while headers and while pixels are read."""
    made = dicom.make(slices=5)
    folder = dicom.write(tmp_path, made.flat)
    (whole,) = plans(folder)
    bad = last_slice(folder, made)
    real = Path.open

    def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == bad:
            raise OSError(5, os.strerror(5))
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    files = {one.path: one.code for one in scan.scan(folder)}
    assert files[bad.relative_to(folder).as_posix()] == "UNREADABLE"
    with pytest.raises(Refused) as caught:
        read_volume(whole)
    assert caught.value.code == "UNREADABLE"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_that_the_dicomdir_names_under_a_series(dicom: Any, tmp_path: Path) -> None:
    made, other = dicom.make(slices=4), dicom.make(slices=4, seed=3)
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    index.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    records = []
    for letter, series in (("A", made), ("B", other)):
        record = Dataset()
        record.DirectoryRecordType = "SERIES"
        record.SeriesInstanceUID = series.flat[0].SeriesInstanceUID
        records.append(record)
        for number, image in enumerate(series.flat):
            image.save_as(tmp_path / f"{letter}{number}", enforce_file_format=True)
            record = Dataset()
            record.DirectoryRecordType = "IMAGE"
            record.ReferencedFileID = [f"{letter}{number}"]
            records.append(record)
    index.DirectoryRecordSequence = records
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    (tmp_path / "A3").unlink()
    found = {one.series.series_uid: one.series.codes for one in plans(tmp_path / "DICOMDIR")}
    assert found == {
        made.flat[0].SeriesInstanceUID: ("IMAGE_LOST",),
        other.flat[0].SeriesInstanceUID: (),
    }


def test_a_file_called_like_the_member_of_an_archive(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=2)
    one, other = made.flat
    other.save_as(tmp_path / "a.zip!b", enforce_file_format=True)
    one.save_as(tmp_path / "one", enforce_file_format=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "one", "b")
    (tmp_path / "one").unlink()
    paths = [file.path for file in scan.scan(tmp_path)]
    assert paths == ["a.zip", "a.zip!b", "a.zip!b#2"]
    (found,) = plans(tmp_path)
    np.testing.assert_array_equal(read_volume(found).array, made.array)


def test_files_are_opened_once(dicom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dicom.write(tmp_path, dicom.make(slices=5).flat)
    opened: list[str] = []
    real = source.open_entry

    def count(entry: Any) -> Any:
        opened.append(entry.path)
        return real(entry)

    monkeypatch.setattr(source, "open_entry", count)
    assert sorted(opened_once := [one.path for one in scan.scan(folder)]) == sorted(opened)
    assert len(opened_once) == 5
