"""The index that lets a resumed conversion parse new files only, and that gives nothing away."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medplat.dicom import scan
from medplat.dicom.header import Entry, Header
from medplat.dicom.index import NAME, Index, pseudonymous
from medplat.pseudonym import Pseudonyms

SALT = Pseudonyms(b"0123456789abcdef")


def scanned(source: Path, out: Path, salt: Pseudonyms = SALT) -> list[scan.SourceFile]:
    out.mkdir(exist_ok=True)
    index = Index(out, salt)
    try:
        return scan.scan(source, 2, index)
    finally:
        index.close()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that were parsed."""
    paths: list[str] = []
    real = scan.read_header

    def read(file: Any, entry: Entry) -> Header:
        paths.append(entry.path)
        return real(file, entry)

    monkeypatch.setattr(scan, "read_header", read)
    return paths


def test_only_new_and_changed_files_are_parsed(
    dicom: Any, tmp_path: Path, parsed: list[str]
) -> None:
    source = dicom.write(tmp_path / "in", dicom.make(phases=2, slices=4).flat)
    (source / "README").write_text("hello")
    first = scanned(source, tmp_path / "out")
    assert len(parsed) == 9
    parsed.clear()
    assert scanned(source, tmp_path / "out") == first
    assert parsed == []
    touched, longer = sorted(path for path in source.rglob("*") if path.is_file())[:2]
    os.utime(touched, ns=(1, 1))
    longer.write_bytes(longer.read_bytes() + b"\0\0")
    (source / "new").write_bytes(touched.read_bytes())
    scanned(source, tmp_path / "out")
    assert sorted(parsed) == sorted(
        [*(path.relative_to(source).as_posix() for path in (touched, longer)), "new"]
    )


def test_headers_come_back_as_they_were_but_for_the_person(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.AcquisitionDate, image.AcquisitionTime = "20240131", f"1010{t:02d}.{z:06d}"
        image.SeriesDescription = "Jane T1 4711 2024-01-31"

    source = dicom.write(tmp_path / "in", dicom.make(phases=2, slices=3).each(change).flat)
    plain = [one.header for one in scan.scan(source)]
    for _ in range(2):
        found = [one.header for one in scanned(source, tmp_path / "out")]
        for ours, theirs in zip(found, plain, strict=True):
            assert ours is not None
            assert theirs is not None
            assert ours == pseudonymous(theirs, SALT)
            assert ours.acquired_us == theirs.acquired_us
            assert ours.series_description == "T1"
            assert ours.identity.texts == ()
            assert ours.identity.pseudonym == SALT.patient("4711")
            assert scan.identity(ours) == theirs.identity


def test_nothing_identifies_in_any_byte(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.AcquisitionDate, image.AcquisitionTime = "20240131", "101010"
        image.SeriesDescription, image.InstitutionName = "MARKHOUSE t1", "MARKHOUSE"
        image.ImageType = ["ORIGINAL", "PRIMARY", "DOE"]
        image.Manufacturer = "maker of markhouse"

    source = dicom.write(tmp_path / "MARKFOLDER", dicom.make(slices=3).each(change).flat)
    (header, *_) = [one.header for one in scan.scan(source) if one.header]
    scanned(source, tmp_path / "out")
    data = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir()).lower()
    stated = str(header.acquired_us).encode()
    for text in (b"doe", b"jane", b"4711", b"markhouse", b"markfolder", b"20240131", stated):
        assert text not in data
    assert header.series_uid.encode() in data


def test_another_salt_or_a_file_that_is_no_index_begins_anew(
    dicom: Any, tmp_path: Path, parsed: list[str]
) -> None:
    source = dicom.write(tmp_path / "in", dicom.make(slices=3).flat)
    scanned(source, tmp_path / "out")
    scanned(source, tmp_path / "out", Pseudonyms(b"another salt of 16"))
    assert len(parsed) == 6
    (tmp_path / "out" / NAME).write_bytes(b"not a database at all" * 100)
    assert len(scanned(source, tmp_path / "out")) == 3
    scanned(source, tmp_path / "out")
    assert len(parsed) == 9


def test_rows_of_another_make_are_parsed_again(
    dicom: Any, tmp_path: Path, parsed: list[str]
) -> None:
    source = dicom.write(tmp_path / "in", dicom.make(slices=3).flat)
    first = scanned(source, tmp_path / "out")
    with sqlite3.connect(tmp_path / "out" / NAME) as store:
        store.execute("UPDATE file SET header = '{\"no_such_field\":1}'")
    store.close()
    assert scanned(source, tmp_path / "out") == first
    assert len(parsed) == 6


def test_an_index_that_cannot_be_written_stops_nothing(dicom: Any, tmp_path: Path) -> None:
    source = dicom.write(tmp_path / "in", dicom.make(slices=3).flat)
    (tmp_path / "out" / NAME).mkdir(parents=True)
    assert len(scanned(source, tmp_path / "out")) == 3


def test_two_patients_of_one_series_still_differ() -> None:
    entry = Entry("a", Path("a"))
    base = Header(entry)
    ids = {
        pseudonymous(
            replace(base, identity=replace(base.identity, patient_id=name)), SALT
        ).identity.patient_id
        for name in ("", "one", "two")
    }
    assert len(ids) == 3
    assert "" in ids
