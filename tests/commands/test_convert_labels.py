"""DICOM SEG objects of an export become label maps; transforms of a convert workflow."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat import nifti, registry
from medplat.commands import convert
from medplat.dicom import read, scan, seg, series
from medplat.workflow.schema import Code, Label

LABELS = (
    Label(name="lesion", value=3, code=Code(value="52988006", meaning="Lesion")),
    Label(name="cyst", value=7),
)


def planned(source: Path, series_uid: str) -> Any:
    groups = series.group(scan.scan(source))
    return next(read.plan(one)[0] for one in groups if one.series_uid == series_uid)


def mask() -> np.ndarray:
    array = np.zeros((8, 6, 5), np.uint8)
    array[1:4, 2, 1:3] = 3
    array[6, 5, 4] = 7
    return array


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    export.stack(folder / "s1", 1, 1, (0, 2, 4, 6, 8))
    export.stack(folder / "s2", 1, 2, (0, 2, 4, 6, 8))
    return folder


def run(source: Path, project: Path, **options: Any) -> tuple[Path, dict[str, Any], Any]:
    out = project.parent / "out"
    outcome = convert.run(source, out, project=project, workers=1, **options)
    lines = [json.loads(text) for text in (out / "manifest.jsonl").read_text().splitlines()]
    return out, {line["series_uid"]: line for line in lines}, outcome


def row_of(out: Path, name: str) -> dict[str, str]:
    with (out / "files.csv").open(newline="") as file:
        return next(row for row in csv.DictReader(file) if row["path"].endswith(name))


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_a_segmentation_lands_beside_its_series(
    source: Path, project: Path, kind: seg.Kind
) -> None:
    seg.write(mask(), planned(source, export.uid(1, 1)), LABELS, source / "any.seg", kind=kind)
    out, lines, outcome = run(source, project)
    assert outcome.exit_code == 0
    volume, label = lines[export.uid(1, 1)]["outputs"]
    assert label["kind"] == "label"
    assert label["path"] == volume["path"].replace(".nii.gz", "_label.nii.gz")
    back = nifti.read(out / label["path"])
    values = [one["value"] for one in back.metadata["values"]]
    names = [one["name"] for one in back.metadata["values"]]
    truth = np.zeros(mask().shape, int)
    for value, name in zip(values, names, strict=True):
        truth[mask() == {"lesion": 3, "cyst": 7}[name]] = value
    np.testing.assert_array_equal(back.array, truth)
    np.testing.assert_allclose(
        back.geometry.affine, nifti.read(out / volume["path"]).geometry.affine, atol=1e-9
    )
    assert back.metadata["values"][0]["code"]["value"] == "52988006"
    assert row_of(out, "any.seg")["output"] == label["path"]
    assert len(lines[export.uid(1, 2)]["outputs"]) == 1
    before = (out / "files.csv").read_bytes()
    _, _, again = run(source, project)
    assert again == outcome
    assert (out / "files.csv").read_bytes() == before


def test_the_data_set_of_a_conversion_is_one_case_a_study(source: Path, project: Path) -> None:
    seg.write(mask(), planned(source, export.uid(1, 1)), LABELS, source / "any.seg")
    export.stack(source / "B", 2, 1, (0, 1, 2))
    export.stack(source / "C", 3, 1, (0, 1, 2, 4))
    out, lines, _ = run(source, project)
    pacs = registry.dataset("pacs")
    cases = pacs.cases(pacs.Config(root=out))
    by_name = {case.case: case for case in cases}
    first = by_name[lines[export.uid(1, 1)]["case"]]
    assert [one.series_uid for one in first.series] == [export.uid(1, 1), export.uid(1, 2)]
    assert first.label is not None
    assert first.label.name.endswith("_label.nii.gz")
    assert all(one.path is not None and one.path.is_file() for one in first.series)
    assert first.series[0].shape == (8, 6, 5)
    second = by_name[lines[export.uid(2, 1)]["case"]]
    assert second.label is None
    assert second.patient != first.patient
    assert len(cases) == 2
    assert len(pacs.cases(pacs.Config(root=out, only_labelled=True))) == 1
    assert pacs.cases(pacs.Config(root=out, labels=False))[0].label is None


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    from medplat.errors import DataError

    pacs = registry.dataset("pacs")
    with pytest.raises(DataError, match="run medplat convert first"):
        pacs.cases(pacs.Config(root=tmp_path))


def test_labels_that_fit_nothing_are_rejected_by_name(
    source: Path, project: Path, tmp_path: Path
) -> None:
    plan = planned(source, export.uid(1, 1))
    seg.write(np.zeros_like(mask()), plan, LABELS, source / "empty.seg")
    other = tmp_path / "other"
    export.stack(other, 9, 1, (0, 2, 4, 6, 8))
    seg.write(mask(), planned(other, export.uid(9, 1)), LABELS, source / "foreign.seg")
    out, lines, outcome = run(source, project)
    line = lines[export.uid(1, 1)]
    assert (line["status"], line["codes"]) == ("warned", ["LABEL_EMPTY"])
    assert row_of(out, "empty.seg")["reason"] == "LABEL_EMPTY"
    assert row_of(out, "foreign.seg")["reason"] == "LABEL_WRONG_SERIES"
    assert outcome.exit_code == 3
    assert run(source, project)[2] == outcome


def test_a_damaged_label_does_not_stop_its_series(source: Path, project: Path) -> None:
    plan = planned(source, export.uid(1, 1))
    for name, keep in (("pixels.seg", 0.97), ("header.seg", 0.5)):
        path = source / name
        seg.write(mask(), plan, LABELS, path, kind="binary")
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    out, lines, outcome = run(source, project)
    assert lines[export.uid(1, 1)]["status"] in ("converted", "warned")
    assert outcome.exit_code == 3
    for name in ("pixels.seg", "header.seg"):
        assert row_of(out, name)["status"] == "rejected"


def test_a_label_of_a_refused_series_is_rejected_with_it(source: Path, project: Path) -> None:
    seg.write(mask(), planned(source, export.uid(1, 1)), LABELS, source / "any.seg")
    sorted((source / "s1").iterdir())[1].unlink()
    out, lines, _ = run(source, project)
    assert lines[export.uid(1, 1)]["status"] == "rejected"
    assert row_of(out, "any.seg")["status"] == "rejected"
    assert not list(out.rglob("*_label*"))


@pytest.mark.slow
def test_transforms_of_a_workflow_move_image_and_label(
    source: Path, project: Path, tmp_path: Path
) -> None:
    pytest.importorskip("monai")
    seg.write(mask(), planned(source, export.uid(1, 1)), LABELS, source / "any.seg")
    workflow = tmp_path / "iso.yaml"
    workflow.write_text(
        "kind: convert\n"
        "transforms:\n"
        "  - Spacingd: {keys: [image, label], pixdim: [1.5, 1.5, 2.0], mode: [bilinear, nearest]}\n"
    )
    out, lines, outcome = run(source, project, workflow=workflow)
    assert outcome.exit_code == 0
    volume, label = lines[export.uid(1, 1)]["outputs"]
    assert volume["spacing_mm"] == [1.5, 1.5, 2.0]
    assert volume["dtype"] == "float32"
    assert volume["shape"] == label["shape"]
    back = nifti.read(out / label["path"])
    assert back.array.dtype == np.uint8
    assert set(np.unique(back.array)) <= {0, *(v["value"] for v in back.metadata["values"])}
    assert back.array.any()


def test_real_segmentations_equal_their_nrrd_twins(realdata: Path, project: Path) -> None:
    root = realdata / "dicom" / "dcmqi" / "segmentations" / "24x38x3"
    out, _, _ = run(root, project)
    label = row_of(out, "label.seg")["output"]
    ours = SimpleITK.ReadImage(str(out / label))
    theirs = SimpleITK.ReadImage(str(root / "nrrd" / "label.nrrd"))
    there = SimpleITK.Resample(
        theirs, ours, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0, ours.GetPixelID()
    )
    a, b = (SimpleITK.GetArrayFromImage(one) > 0 for one in (ours, there))
    assert int(b.sum()) == 315
    np.testing.assert_array_equal(a, b)
