"""The dataset plugin `folder`: files matched by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from medplat.errors import DataError
from medplat_datasets import folder


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def ids(config: folder.Config) -> list[str]:
    return [case.case for case in folder.cases(config)]


def test_images_and_labels_are_matched_by_the_star(tmp_path):
    touch(tmp_path, "images/b_0000.nii.gz", "images/a_0000.nii.gz", "images/._a_0000.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz", "labels/c.nii.gz")
    found = folder.cases(
        folder.Config(root=tmp_path, images="images/*_0000.nii.gz", labels="labels/*.nii.gz")
    )
    assert [case.case for case in found] == ["a", "b"]
    assert found[0].images["image"].path == tmp_path / "images/a_0000.nii.gz"
    assert found[1].label == tmp_path / "labels/b.nii.gz"
    assert found[1].patient == "b"


def test_a_folder_a_case_and_several_inputs(tmp_path):
    touch(tmp_path, "p1/t1.nii.gz", "p1/t2.nii.gz", "p2/t1.nii.gz", "p2/t2.nii.gz")
    config = folder.Config(root=tmp_path, images={"t1": "*/t1.nii.gz", "t2": "*/t2.nii.gz"})
    found = folder.cases(config)
    assert [case.case for case in found] == ["p1", "p2"]
    assert found[0].images["t2"].path == tmp_path / "p1/t2.nii.gz"
    (tmp_path / "p2/t2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case 'p2' has no file that fits \*/t2.nii.gz \(input t2"):
        folder.cases(config)


def test_classes_are_folders_and_equal_names_stay_apart(tmp_path):
    touch(tmp_path, "benign/001.png", "malignant/001.png", "malignant/002.png")
    found = folder.cases(folder.Config(root=tmp_path, images="*/*.png", classes=True))
    assert [(case.case, case.target) for case in found] == [
        ("benign-001", "benign"),
        ("malignant-001", "malignant"),
        ("malignant-002", "malignant"),
    ]
    touch(tmp_path, "a/b-c.png", "a-b/c.png")
    with pytest.raises(DataError, match="both make case 'a-b-c'"):
        folder.cases(folder.Config(root=tmp_path, images="*/*.png", classes=True))


def test_index_gives_order_columns_and_patient(tmp_path, capsys):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz")
    index = tmp_path / "index.csv"
    index.write_text("id,patient,group,split,age\nc,p1,ill,train,61\n\na,p2,well,,7\n", "utf-8")
    config = folder.Config(
        root=tmp_path, index="index.csv", case_column="id", target_column="group"
    )
    found = folder.cases(config)
    assert [(case.case, case.patient, case.target) for case in found] == [
        ("c", "p1", "ill"),
        ("a", "p2", "well"),
    ]
    assert found[0].split == "train"
    assert found[1].split is None
    assert found[0].columns == {"age": "61"}
    assert "1 of 3 images are not in" in capsys.readouterr().err


def test_every_mistake_of_an_index_has_its_line(tmp_path):
    touch(tmp_path, "images/a.nii.gz")
    index = tmp_path / "index.csv"
    index.write_text("case,split\na,train\nx,train\na,validation\n../a,valid\n", "utf-8")
    with pytest.raises(DataError) as caught:
        folder.cases(folder.Config(root=tmp_path, index="index.csv"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{index}:3: case 'x' has no file")
    assert lines[1].startswith(f"{index}:4: case 'a' is already in {index}:2")
    assert "not fit for a file name" in lines[2]
    assert "split is 'valid'" in lines[3]
    with pytest.raises(DataError, match=r"index.csv:1: no column 'id' \(dataset.case_column\)"):
        folder.cases(folder.Config(root=tmp_path, index="index.csv", case_column="id"))


def test_patient_pattern(tmp_path):
    touch(tmp_path, "images/s01_v1.nii.gz", "images/s01_v2.nii.gz")
    config = folder.Config(root=tmp_path, patient_pattern=r"^(s\d+)_")
    assert {case.patient for case in folder.cases(config)} == {"s01"}
    touch(tmp_path, "images/other.nii.gz")
    with pytest.raises(DataError, match="does not fit case 'other'"):
        folder.cases(config)


def test_nothing_found_says_where(tmp_path):
    with pytest.raises(DataError, match="no file fits images/"):
        folder.cases(folder.Config(root=tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        folder.cases(folder.Config(root=tmp_path / "absent"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": "images/a.nii.gz"},
        {"images": "*/*.nii.gz"},
        {"images": "x/*/*.png", "classes": True},
        {"images": "**/*.png", "classes": True},
        {"patient_pattern": "["},
        {"patient_pattern": "s01"},
    ],
)
def test_config_refuses_patterns_that_cannot_work(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"pattern|expression"):
        folder.Config(root=tmp_path, **wrong)


def test_hippocampus(realdata):
    root = realdata / "segmentation" / "hippocampus"
    config = folder.Config(root=root, labels="labels/*.nii.gz", index="index.csv", case_column="id")
    found = folder.cases(config)
    assert len(found) == 200
    assert found[4].case == "hippocampus_008"
    assert all(case.label and case.label.is_file() for case in found)


def test_where_keeps_the_lines_of_the_index_that_hold_the_text(tmp_path, capsys):
    touch(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    (tmp_path / "index.csv").write_text("case,dubious\na,0\nb,1\nc,0\n", encoding="utf-8")
    options = {"root": tmp_path, "images": "images/*.png"}
    assert ids(folder.Config(**options, index="index.csv", where={"dubious": "0"})) == ["a", "c"]
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="give index"):
        folder.Config(**options, where={"dubious": "0"})
