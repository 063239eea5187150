"""No byte of the output tells who, where or when: markers planted in every text element."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import DicomDictionary

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat.commands import convert

# What the sidecar's allow-list lets through, and what the volume is made from.
ALLOWED = {
    "Modality", "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "BodyPartExamined",
    "PatientPosition", "ScanningSequence", "SequenceVariant", "MRAcquisitionType",
    "ConvolutionKernel", "ImageType", "LossyImageCompression", "SeriesDescription", "ProtocolName",
    "PhotometricInterpretation", "SpecificCharacterSet", "Units", "ViewPosition", "Laterality",
    "ImageLaterality", "ComplexImageComponent", "BurnedInAnnotation", "PatientSex",
}  # fmt: skip
TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT", "CS", "AE"}
DATES = ("19701122", "20240131", "1970-11-22", "2024-01-31", "101112")


def plant(path: Path) -> list[str]:
    """Put a marker of its own into every text element; returns the markers."""
    ds = pydicom.dcmread(path)
    markers = []
    for tag, (vr, vm, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        wanted = vr in TEXT and vm.startswith("1") and not retired and keyword not in ALLOWED
        if not wanted or group not in (0x8, 0x10, 0x12, 0x18, 0x20, 0x28, 0x32, 0x38, 0x40, 0x88):
            continue
        marker = f"MK{tag:08X}"
        ds.add_new(tag, vr, marker)
        markers.append(marker)
    block = ds.private_block(0x0009, "MKPRIVATECREATOR", create=True)
    block.add_new(0x01, "LO", "MKPRIVATETEXT")
    block.add_new(0x02, "UN", b"MKPRIVATEBYTES")
    ds.SeriesDescription = f"ax MK{0x00100010:08X} T1 20240131"
    ds.ProtocolName = f"p_mk{0x00100020:08x}_2024-01-31"
    ds.Manufacturer = f"Maker mk{0x00080080:08X}"
    ds.save_as(path)
    return [*markers, "MKPRIVATECREATOR", "MKPRIVATETEXT", "MKPRIVATEBYTES"]


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, list[str]]:
    folder = tmp_path / "source"
    paths = export.stack(folder / "MKFOLDER", 1, 1, (0, 2, 4))
    paths += export.dynamic(folder / "MKDYN", 1, 2)
    paths += export.stack(folder / "MKBAD", 1, 3, (0, 2, 4, 8))
    for path in paths[:-1]:
        markers = plant(path)
    paths[-1].rename(paths[-1].with_name("MKFILE.dcm"))
    assert len(markers) > 400
    return folder, [*markers, "MKFOLDER", "MKDYN", "MKBAD", "MKFILE"]


def everything(out: Path) -> dict[str, bytes]:
    """Each output file, unpacked; of files.csv all but the path column; the names themselves."""
    found: dict[str, bytes] = {}
    for path in out.rglob("*"):
        found[f"name of {path.name}"] = path.relative_to(out).as_posix().encode()
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        if path.name == "files.csv":
            with path.open(newline="") as file:
                kept = [",".join(row[1:]) for row in csv.reader(file)]
            data = "\n".join(kept).encode()
        found[path.relative_to(out).as_posix()] = data
    return found


def test_no_marker_name_id_or_date_comes_out(
    planted: tuple[Path, list[str]], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, markers = planted
    out = project.parent / "out"
    outcome = convert.run(source, out, project=project, workers=2)
    assert outcome.summary["counts"]["converted"] == 2
    assert outcome.summary["counts"]["rejected"] == 1
    shown = "\n".join(
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("resume with")
    )
    files = everything(out) | {"stderr": shown.encode()}
    for path in project.rglob("*"):
        if path.is_file():
            files[f"project {path.name}"] = path.read_bytes()
    for name, data in files.items():
        lowered = data.lower()
        leaked = [one for one in [*markers, *DATES] if one.lower().encode() in lowered]
        assert not leaked, f"{name} holds {leaked}"
    assert b"ax T1" in files["manifest.jsonl"]


def test_a_damaged_length_lets_no_other_element_through(tmp_path: Path, project: Path) -> None:
    """Each text element in turn takes in what follows it: names, ids, dates."""
    (whole,) = export.stack(tmp_path / "whole", 1, 1, (0.0,))
    markers = plant(whole)
    data = whole.read_bytes()
    for number, element in enumerate(pydicom.dcmread(whole, stop_before_pixels=True)):
        if element.VR not in TEXT | {"UI", "DA", "TM", "DS", "IS"} or element.VR == "UT":
            continue
        tag = element.tag
        head = bytes([tag.group & 255, tag.group >> 8, tag.element & 255, tag.element >> 8])
        at = data.index(head + element.VR.encode()) + 6
        own = int.from_bytes(data[at : at + 2], "little")
        for more in (20, 300):
            spoiled = data[:at] + (own + more).to_bytes(2, "little") + data[at + 2 :]
            path = tmp_path / "source" / f"{number}" / f"{more}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(spoiled)
    out = project.parent / "out"
    convert.run(tmp_path / "source", out, project=project, workers=1)
    assert len(list((tmp_path / "source").iterdir())) > 200
    for name, content in everything(out).items():
        lowered = content.lower()
        leaked = [one for one in [*markers, *DATES] if one.lower().encode() in lowered]
        assert not leaked, f"{name} holds {leaked}"


def test_keep_lets_through_what_it_names_and_no_more(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    export.stack(source, 1, 1, (0, 2, 4))
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, keep in enumerate(((), ("patient-id",), ("demographics",))):
        out = project.parent / f"out{number}"
        convert.run(source, out, project=project, keep=keep)
        (sidecar,) = out.glob("case-*/*.json")
        kept[keep] = json.loads(sidecar.read_text())
        text = b"".join(everything(out).values())
        assert (b"PID0001" in text) == ("patient-id" in keep)
        for never in (b"Lastname1", b"ACC00001", b"19701122", b"20240131"):
            assert never not in text
    assert kept["patient-id",]["patient_id"] == "PID0001"
    demographics = kept["demographics",]
    assert (demographics["sex"], demographics["age_years"]) == ("F", 90.0)
    assert not {"sex", "age_years", "patient_id"} & kept[()].keys()


def test_the_link_table_is_the_sites_own_key(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    export.stack(source / "1", 1, 1, (0, 2, 4), PatientID="=cmd()")
    export.stack(source / "2", 2, 1, (0, 2, 4), PatientID="same")
    export.stack(source / "3", 3, 1, (0, 2, 4), PatientID="same")
    table = tmp_path / "keys" / "link.csv"
    out = project.parent / "out"
    for _ in range(2):
        convert.run(source, out, project=project, link_table=table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["patient_id"] for row in rows} == {"'=cmd()", "same"}
    assert len({row["patient"] for row in rows}) == 2
    assert len({row["case"] for row in rows}) == 3
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    found = {(line["study_uid"], line["patient"], line["case"]) for line in lines}
    assert found == {(row["study_uid"], row["patient"], row["case"]) for row in rows}
    assert table.stat().st_mode & 0o077 == 0
