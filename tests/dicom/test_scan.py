"""Every file of SOURCE is accounted for, and nothing outside it is ever read."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medplat.dicom.read import plan, read_volume
from medplat.dicom.scan import SourceFile, scan
from medplat.dicom.series import group
from medplat.errors import UsageError


def verdicts(files: list[SourceFile]) -> dict[str, str | None]:
    assert len({file.path for file in files}) == len(files)
    return {file.path: file.code for file in files}


def volume_of(source: Path) -> Any:
    (one,) = [one for series in group(scan(source)) for one in plan(series)]
    return read_volume(one)


def test_litter_is_named_and_skipped(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=3)
    dicom.write(tmp_path, made.flat)
    litter = {
        "README.txt": b"hello", ".DS_Store": b"\0\0\0\1Bud1", "empty": b"",
        "thumb.jpg": b"\xff\xd8", "short": b"\x08\x00", "text": b"\x08\x00 more or less",
        "viewer.exe": b"MZ" + bytes(500), "fake": bytes(128) + b"DICM",
    }  # fmt: skip
    for name, data in litter.items():
        (tmp_path / name).write_bytes(data)
    found = verdicts(scan(tmp_path))
    assert {name: found[name] for name in litter} == dict.fromkeys(litter, "NOT_DICOM")
    assert len(found) == len(litter) + 3
    np.testing.assert_array_equal(volume_of(tmp_path).array, made.array)


def test_objects_that_are_no_images(dicom: Any, tmp_path: Path) -> None:
    wanted = {}
    for name, sop_class in {
        "sr": "1.2.840.10008.5.1.4.1.1.88.33", "pr": "1.2.840.10008.5.1.4.1.1.11.1",
        "raw": "1.2.840.10008.5.1.4.1.1.66", "pdf": "1.2.840.10008.5.1.4.1.1.104.1",
    }.items():  # fmt: skip
        thing = Dataset()
        thing.file_meta = FileMetaDataset()
        thing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        thing.SOPClassUID, thing.SOPInstanceUID = sop_class, "1.2.3"
        thing.save_as(tmp_path / name, enforce_file_format=True)
        wanted[name] = "NOT_IMAGE"
    assert verdicts(scan(tmp_path)) == wanted


def test_zip_as_source_and_in_a_folder(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    folder = dicom.write(tmp_path / "in", made.flat)
    archive = tmp_path / "out" / "export.bin"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in folder.rglob("*"):
            if path.is_file():
                file.write(path, path.relative_to(folder))
    np.testing.assert_array_equal(volume_of(archive).array, made.array)
    np.testing.assert_array_equal(volume_of(archive.parent).array, made.array)
    inside = verdicts(scan(archive.parent))
    assert inside.pop("export.bin") == "NOT_DICOM"
    assert set(inside) == {f"export.bin!{name}" for name in verdicts(scan(archive))}


def test_unsafe_members_are_refused_by_name(dicom: Any, tmp_path: Path) -> None:
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("a", b"x")
    source = tmp_path / "source"
    source.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source / "evil.zip", "w") as file:
        file.writestr("../../escape", b"x")
        file.writestr("/absolute", b"x")
        file.writestr("C:\\drive", b"x")
        file.writestr(link, b"/etc/passwd")
        file.write(inner, "nested.zip")
        file.writestr("fine.txt", b"x")
    found = verdicts(scan(source))
    assert found.pop("evil.zip") == "NOT_DICOM"
    assert found.pop("evil.zip!fine.txt") == "NOT_DICOM"
    assert set(found.values()) == {"OUTSIDE_ROOT"}
    assert len(found) == 5


def test_bombs(dicom: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(65 << 20), compresslevel=5)
    made = dicom.make(slices=1)
    image = made.flat[0]
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    image.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    head = (tmp_path / "bomb.dcm").read_bytes()
    start = 144 + int.from_bytes(head[140:144], "little")
    pack = zlib.compressobj(5, zlib.DEFLATED, -15)
    body = pack.compress(bytes(65 << 20)) + pack.flush()
    (tmp_path / "bomb.dcm").write_bytes(head[:start] + body)
    found = verdicts(scan(tmp_path))
    assert found == {"bomb.zip": "OUTSIDE_ROOT", "bomb.dcm": "UNSUPPORTED_SYNTAX"}
    with pytest.raises(UsageError, match="times its size"):
        scan(tmp_path / "bomb.zip")


def test_a_member_damaged_inside_the_archive(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=3)
    folder = dicom.write(tmp_path / "in", made.flat)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for index, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
            file.write(path, str(index))
    data = bytearray(archive.read_bytes())
    data[600] ^= 0xFF
    archive.write_bytes(data)
    assert verdicts(scan(archive))["0"] == "TRUNCATED"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_does_not_unpack_is_refused_alone(tmp_path: Path, packing: int) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", packing) as file:
        file.writestr("broken", bytes(range(256)) * 400)
        file.writestr("whole", b"hello")
    data = bytearray(archive.read_bytes())
    for index in range(40, 70):
        data[index] ^= 0xFF
    archive.write_bytes(data)
    found = verdicts(scan(tmp_path))
    assert (found["a.zip!broken"], found["a.zip!whole"]) == ("TRUNCATED", "NOT_DICOM")


def test_links_that_lead_to_one_another(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("c")
    assert verdicts(scan(tmp_path)) == dict.fromkeys("abc", "MISSING_FILE")


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "file").write_bytes(b"hello")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert verdicts(scan(tmp_path)) == {"closed": "UNREADABLE", "file": "NOT_DICOM"}


def test_links_and_special_files(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    outside = dicom.write(tmp_path / "outside", made.flat)
    source = dicom.write(tmp_path / "source", made.flat)
    (source / "away").symlink_to(outside)
    (source / "file").symlink_to(next(p for p in outside.rglob("*") if p.is_file()))
    (source / "loop").symlink_to(source)
    (source / "nowhere").symlink_to(source / "absent")
    os.mkfifo(source / "pipe")
    found = verdicts(scan(source))
    assert found["away"] == found["file"] == "OUTSIDE_ROOT"
    assert found["nowhere"] == "MISSING_FILE"
    assert found["pipe"] == "NOT_DICOM"
    assert len(found) == 7 + 4


def _dicomdir(folder: Path, references: list[list[str]]) -> Path:
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    index.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    records = []
    for reference in references:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", reference
        records.append(record)
    index.DirectoryRecordSequence = records
    index.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dicomdir_as_source(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=4)
    source = tmp_path / "cd"
    (source / "IMG").mkdir(parents=True)
    for index, image in enumerate(made.flat):
        image.save_as(source / "IMG" / f"I{index}", enforce_file_format=True)
    shutil.copy(source / "IMG" / "I0", tmp_path / "SECRET")
    (source / "LITTER").write_bytes(b"not in the index")
    references = [["IMG", f"I{index}"] for index in range(5)]
    references += [["..", "SECRET"], [str(tmp_path / "SECRET")], ["IMG/../../SECRET"]]
    files = scan(_dicomdir(source, references))
    found = verdicts(files)
    assert found["IMG/I4"] == "MISSING_FILE"
    assert sorted(code or "" for code in found.values()) == [
        *[""] * 4, "MISSING_FILE", "NOT_IMAGE", *["OUTSIDE_ROOT"] * 3,
    ]  # fmt: skip
    assert sum(file.counted for file in files) == 5
    np.testing.assert_array_equal(volume_of(source / "DICOMDIR").array, made.array)
    assert verdicts(scan(source))["DICOMDIR"] == "NOT_IMAGE"


def test_what_is_no_source(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=1)
    made.flat[0].save_as(tmp_path / "single", enforce_file_format=True)
    (tmp_path / "text").write_text("hello")
    for name in ("absent", "single", "text"):
        with pytest.raises(UsageError):
            scan(tmp_path / name)


def test_any_damage_ends_in_a_verdict(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=3, rows=4, columns=4)
    made.flat[1].RequestAttributesSequence = [Dataset()]
    rng = np.random.default_rng(11)
    for trial in range(60):
        folder = dicom.write(tmp_path / str(trial), made.flat, trial)
        path = sorted(p for p in folder.rglob("*") if p.is_file())[trial % 3]
        data = bytearray(path.read_bytes())
        for _ in range(1 + trial % 4):
            data[rng.integers(132, len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.integers(100, len(data))] if trial % 5 == 0 else data)
        files = scan(folder)
        assert len(files) == 3
        for series in group(files):
            for one in plan(series):
                if one.convertible:
                    read_volume(one)
                else:
                    assert one.series.codes
