"""The dataset plugin `table`: one line a case, every mistake as file:line."""

from __future__ import annotations

from pathlib import Path

import pytest

from medplat.errors import DataError
from medplat_datasets import table


def write(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_become_the_parts_of_a_case(tmp_path):
    text = (
        "\ufeffcase,patient,image,label,target,split,site\n"
        'c1,p1,x/1.nii.gz,x/l.nii.gz,ill,train,"A, B"\n'
        "c2,,x/2.nii.gz,,,,\n"
    )
    path = write(tmp_path, text, "x/1.nii.gz", "x/2.nii.gz", "x/l.nii.gz")
    first, second = table.cases(table.Config(file=path))
    assert (first.case, first.patient, first.target, first.split) == ("c1", "p1", "ill", "train")
    assert first.images["image"].path == tmp_path / "x/1.nii.gz"
    assert first.label == tmp_path / "x/l.nii.gz"
    assert first.columns == {"site": "A, B"}
    assert (second.patient, second.label, second.target, second.split) == ("c2", None, None, None)


def test_a_leading_zero_stays(tmp_path):
    path = write(tmp_path, "case,image\n00123,a.png\n", "a.png")
    assert table.cases(table.Config(file=path))[0].case == "00123"


def test_other_names_several_inputs_and_case_from_the_path(tmp_path):
    text = "file;late;group;class\nN/1.v2.nii.gz;N/2.nii.gz;g1;normal\n"
    path = write(tmp_path, text, "N/1.v2.nii.gz", "N/2.nii.gz")
    config = table.Config(
        file=path,
        images={"pre": "file", "late": "late"},
        case_column=None,
        patient_column="group",
        target_column="class",
        delimiter=";",
    )
    case = table.cases(config)[0]
    assert (case.case, case.patient, case.target) == ("N-1.v2", "g1", "normal")
    assert list(case.images) == ["pre", "late"]


def test_every_mistake_has_its_line(tmp_path):
    text = "case,image,split\na,a.png,train\nb,absent.png,train\na,a.png,val\n,a.png,\nd,,\n"
    path = write(tmp_path, text, "a.png")
    with pytest.raises(DataError) as caught:
        table.cases(table.Config(file=path))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:3: no file {tmp_path / 'absent.png'}"
    assert lines[1].startswith(f"{path}:4: split is 'val'")
    assert lines[2].startswith(f"{path}:4: case 'a' is already in {path}:2")
    assert lines[3].startswith(f"{path}:5: the case has no name")
    assert lines[4].startswith(f"{path}:6: column 'image' is empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cases.csv:1: the table is empty"),
        ("case,image\n", "no lines below its header"),
        ("case,case,image\na,b,a.png\n", "two columns are named 'case'"),
        ("case,image\na,a.png,x\n", "cases.csv:2: 3 cells, the header names 2"),
        ("id,image\na,a.png\n", "cases.csv:1: no column 'case'; there are: id, image"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        table.cases(table.Config(file=write(tmp_path, text, "a.png")))


def test_a_column_asked_for_by_name_must_be_there(tmp_path):
    path = write(tmp_path, "case,image\na,a.png\n", "a.png")
    with pytest.raises(DataError, match="no column 'diagnosis'"):
        table.cases(table.Config(file=path, target_column="diagnosis"))


def test_absent_or_not_text(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        table.cases(table.Config(file=tmp_path / "none.csv"))
    path = tmp_path / "latin.csv"
    path.write_bytes("case,image\nM\xfcller,a.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        table.cases(table.Config(file=path))


def test_oral_histology(realdata):
    config = table.Config(
        file=realdata / "histology/oral_cancer/labels.csv",
        images={"image": "file"},
        case_column=None,
        patient_column="sha256_16",
        target_column="class",
    )
    found = table.cases(config)
    assert len(found) == 980
    assert {case.target for case in found} == {"Normal", "OSCC"}
    assert found[0].columns["magnification"] == "100"


def test_where_keeps_the_lines_that_hold_the_text(tmp_path):
    text = "case,image,site,dose\na,a.png,north,1\nb,gone.png,south,1\nc,a.png,north,2\n"
    path = write(tmp_path, text, "a.png")
    found = table.cases(table.Config(file=path, where={"site": "north"}))
    assert [case.case for case in found] == ["a", "c"]
    assert found[0].columns["site"] == "north"
    both = table.Config(file=path, where={"site": "north", "dose": "2"})
    assert [case.case for case in table.cases(both)] == ["c"]
    with pytest.raises(DataError, match=r"no line has site = 'east' \(dataset.where\)"):
        table.cases(table.Config(file=path, where={"site": "east"}))
    with pytest.raises(DataError, match=r"no column 'town' \(dataset.where\)"):
        table.cases(table.Config(file=path, where={"town": "east"}))
