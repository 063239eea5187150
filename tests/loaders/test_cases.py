"""Images for inputs, splits by patient, digests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from medplat import loaders
from medplat.errors import DataError
from medplat.types import Case, Image, Series
from medplat.workflow.schema import Input, Split


def make(count: int, patients: int | None = None) -> list[Case]:
    patients = patients or count
    return [Case(f"c{number}", f"p{number % patients}") for number in range(count)]


def sides(cases: list[Case], rule: Split) -> dict[str, list[str]]:
    return {name: [case.case for case in side] for name, side in loaders.split(cases, rule).items()}


def test_every_fifth_case_validates() -> None:
    found = sides(make(12), Split(every=5))
    assert found["validation"] == ["c4", "c9"]
    assert found["test"] == []
    assert len(found["train"]) == 10


def test_every_takes_all_cases_of_the_patient() -> None:
    found = sides(make(10, patients=4), Split(every=5))
    assert found["validation"] == ["c0", "c1", "c4", "c5", "c8", "c9"], "patients p0 and p1"


@settings(deadline=None, max_examples=60)
@given(
    count=some.integers(1, 40),
    patients=some.integers(1, 40),
    validation=some.floats(0, 0.5),
    test=some.floats(0, 0.4),
    seed=some.integers(0, 5),
)
def test_no_patient_is_ever_on_two_sides(
    count: int, patients: int, validation: float, test: float, seed: int
) -> None:
    cases = make(count, patients)
    found = loaders.split(cases, Split(validation=validation, test=test, seed=seed))
    homes = [{case.patient for case in side} for side in found.values()]
    assert sum(len(home) for home in homes) == len(set.union(*homes)) == min(count, patients)
    assert sum(len(side) for side in found.values()) == count
    assert found == loaders.split(cases, Split(validation=validation, test=test, seed=seed))


def test_shares_are_of_patients() -> None:
    found = loaders.split(make(60, patients=20), Split(validation=0.2, test=0.1))
    assert [len({case.patient for case in found[name]}) for name in found] == [14, 4, 2]


@pytest.mark.parametrize("classes", [(), ("benign", "malignant", "malignant")])
def test_folds_cover_each_case_once_and_keep_patients_whole(classes: tuple[str, ...]) -> None:
    cases = make(60, patients=20)
    if classes:
        cases = [replace(one, target=classes[int(one.patient[1:]) % 3]) for one in cases]
    parts = [loaders.split(cases, Split(folds=5, fold=fold, seed=3)) for fold in range(1, 6)]
    held = [one.case for part in parts for one in part["validation"]]
    assert sorted(held) == sorted(one.case for one in cases)
    for part in parts:
        here = {one.patient for one in part["validation"]}
        assert len(here) == 4
        assert not here & {one.patient for one in part["train"]}
        if classes:
            share = [one.target for one in part["validation"]].count("malignant")
            assert 6 <= share <= 10, "of 12 cases two thirds are malignant"
    again = loaders.split(cases[::-1], Split(folds=5, fold=2, seed=3))
    assert {one.case for one in again["validation"]} == {one.case for one in parts[1]["validation"]}
    other = loaders.split(cases, Split(folds=5, fold=2, seed=4))
    assert other["validation"] != parts[1]["validation"]


def test_folds_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="fold 4 is not one of 3 folds"):
        Split(folds=3, fold=4)
    with pytest.raises(ValueError, match="fold 2 is not one of no folds"):
        Split(fold=2)
    with pytest.raises(DataError, match="5 folds of 4 patients"):
        loaders.split(make(8, patients=4), Split(folds=5))


def test_the_data_sets_own_split_is_followed_and_cannot_be_overruled() -> None:
    cases = [Case("a", "p", split="train"), Case("b", "q", split="validation")]
    assert sides(cases, Split()) == {"train": ["a"], "validation": ["b"], "test": []}
    with pytest.raises(DataError, match=r"dataset.split.every: the data set fixes the split"):
        loaders.split(cases, Split(every=2))


@pytest.mark.parametrize("second", [None, "validate"])
def test_the_data_sets_own_split_must_be_whole(second: str | None) -> None:
    cases = [Case("a", "p", split="train"), Case("b", "q", split=second)]
    with pytest.raises(DataError, match="case b: the split"):
        loaders.split(cases, Split())


def test_one_patient_on_two_sides_is_an_error(tmp_path: Path) -> None:
    cases = [Case("a", "p", split="train"), Case("b", "p", split="validation")]
    with pytest.raises(DataError, match="patient p is in both train and validation"):
        loaders.split(cases, Split())
    path = tmp_path / "split.csv"
    path.write_text("case,split\na,train\nb,test\n")
    with pytest.raises(DataError, match="patient p is in both train and test"):
        loaders.split([Case("a", "p"), Case("b", "p")], Split(file=path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,side\na,train\n", ":1: needs the columns case"),
        ("case,split\na,train\nb,valid\n", ":3: the split is 'valid'"),
        ("case,split\na,train\na,test\n", ":3: a occurs twice"),
        ("case,split\na,train\n", "says nothing of case b"),
    ],
)
def test_split_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        loaders.split([Case("a", "p"), Case("b", "q")], Split(file=path))


def test_a_split_file_by_patient(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("patient,split\np,train\nq,validation\nr,test\n", encoding="utf-8-sig")
    cases = [Case("a", "p"), Case("b", "q"), Case("c", "p")]
    assert sides(cases, Split(file=path)) == {
        "train": ["a", "c"],
        "validation": ["b"],
        "test": [],
    }


def test_images_must_have_the_inputs_names() -> None:
    case = Case("a", "p", images={"t1": Image(Path("t1.nii")), "t2": Image(Path("t2.nii"))})
    found = loaders.resolve([case], [Input(name="t2")])
    assert list(found[0].images) == ["t2"]
    with pytest.raises(DataError, match="case a: has no image for input flair; it has t1, t2"):
        loaders.resolve([case], [Input(name="flair")])
    with pytest.raises(DataError, match="case a: occurs twice"):
        loaders.resolve([case, case], [Input(name="t2")])


def series(number: int, description: str, **more: object) -> Series:
    return Series(
        f"1.{number}", "1", "a", "p", "MR", number, description, path=Path(f"{number}.nii"), **more
    )


def test_series_are_chosen_by_the_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [Input(name="t1", description=("t1*",)), Input(name="dce", phase=1)]
    good = Case(
        "a",
        "p",
        series=(series(1, "T1 ax"), series(2, "DCE", shape=(4, 4, 4, 3), phase_times_s=(0, 9, 18))),
    )
    two = Case("b", "q", series=(series(3, "T1 ax"), series(4, "T1 cor")))
    found = loaders.resolve([good, two], inputs)
    assert [case.case for case in found] == ["a"]
    assert found[0].images == {"t1": Image(Path("1.nii")), "dce": Image(Path("2.nii"), 1)}
    assert "1 of 2 cases left out, AMBIGUOUS_INPUT; the first is case b" in capsys.readouterr().err
    with pytest.raises(DataError, match="no case with all inputs of the model; 1 of 1 cases left"):
        loaders.resolve([two], inputs)


def test_unrelated_studies_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    good = Case("a", "p", series=(series(1, "T1 ax"),))
    others = [Case(f"b{one}", f"q{one}", series=(series(2, "CT head"),)) for one in range(30)]
    two = Case("c", "r", series=(series(3, "T1 ax"), series(4, "T1 cor")))
    loaders.resolve([good, *others, two], [Input(name="t1", description=("t1*",))])
    first, second = capsys.readouterr().err.splitlines()
    assert "30 of 32 cases left out, MISSING_INPUT; the first is case b0: no series fits" in first
    assert "1 of 32 cases left out, AMBIGUOUS_INPUT; the first is case c: 2 series fit" in second


def test_contents_change_with_a_voxel_and_not_with_the_order(tmp_path: Path) -> None:
    cases = []
    for name in "ab":
        path = tmp_path / f"{name}.nii"
        path.write_bytes(name.encode() * 100)
        cases.append(Case(name, name, images={"image": Image(path)}, label=path))
    first = sorted(loaders.contents(cases, str.upper))
    assert first == sorted(loaders.contents(cases[::-1], str.upper))
    assert first[0][0] == "A"
    (tmp_path / "b.nii").write_bytes(b"b" * 99 + b"c")
    assert first != sorted(loaders.contents(cases, str.upper))
    with pytest.raises(DataError, match="cannot be read"):
        list(loaders.contents([Case("x", "x", label=tmp_path / "none")], str.upper))
