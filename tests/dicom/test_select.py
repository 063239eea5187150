"""Which series feeds which input: by rule, with a reason for every other one, never by luck."""

from __future__ import annotations

from typing import Any

import pytest

from medplat.dicom import select
from medplat.errors import Refused
from medplat.types import Series
from medplat.workflow.schema import Input


def series(number: int, description: str = "T1 ax", **more: Any) -> Series:
    values: dict[str, Any] = {
        "series_uid": f"1.2.{number}",
        "study_uid": "1",
        "case": "case-a",
        "patient": "p",
        "modality": "MR",
        "number": number,
        "description": description,
        "image_type": ("ORIGINAL", "PRIMARY"),
        "orientation": "axial",
        "shape": (10, 10, 10),
        "spacing_mm": (1.0, 1.0, 1.0),
        "slice_thickness_mm": 1.0,
    }
    return Series(**(values | more))


STUDY = [
    series(1, "LOC", status="skipped", codes=("LOCALIZER",)),
    series(2, "T1 ax"),
    series(3, "T1 ax", slice_thickness_mm=5.0),
    series(4, "T1 ax post GD", contrast=True),
    series(5, "T1 reformat", orientation="coronal", image_type=("DERIVED", "SECONDARY")),
    series(6, "T2 tse"),
]
T1 = Input(name="t1", description=("t1*",), orientation="axial", contrast=False,
           slice_thickness_mm=(0.5, 2), original=True)  # fmt: skip
T1CE = Input(name="t1ce", modality="mr", description=("t1*",), contrast=True)


def refused(found: list[Series], *inputs: Input) -> select.NotChosen:
    with pytest.raises(Refused) as caught:
        select.choose(found, inputs)
    assert isinstance(caught.value, select.NotChosen)
    return caught.value


def test_each_input_takes_its_series_and_each_other_series_gets_its_reason() -> None:
    found = select.choose(STUDY, [T1, T1CE])
    assert {name: one.series.number for name, one in found.chosen.items()} == {"t1": 2, "t1ce": 4}
    assert found.chosen["t1"].reason == (
        "description fits 't1*', axial, thickness 1 mm, without contrast, original"
    )
    assert set(found.reasons) == {"1.2.1", "1.2.3", "1.2.5", "1.2.6"}
    assert found.reasons["1.2.1"].startswith("not t1: it was skipped (LOCALIZER)")
    assert "slice thickness 5 mm is not within 0.5 to 2 mm" in found.reasons["1.2.3"]
    assert "slices are coronal, not axial, it is a derived image" in found.reasons["1.2.5"]
    assert "description fits none of 't1*'" in found.reasons["1.2.6"]


def test_order_of_the_series_does_not_matter() -> None:
    one, other = select.choose(STUDY, [T1, T1CE]), select.choose(STUDY[::-1], [T1, T1CE])
    assert one.chosen == other.chosen
    assert one.reasons == other.reasons


def test_two_that_fit_are_ambiguous() -> None:
    error = refused([*STUDY, series(7, "T1 repeat")], T1)
    assert error.code == "AMBIGUOUS_INPUT"
    assert "series 2 'T1 ax' and series 7 'T1 repeat'" in error.message
    assert error.reasons["1.2.7"] == "fits t1, as another does"
    assert "5 mm" in error.reasons["1.2.3"]


def test_none_that_fits_says_why() -> None:
    error = refused(STUDY, Input(name="adc", description=("*adc*",)))
    assert error.code == "MISSING_INPUT"
    assert "no series fits input adc (series 1 'LOC': it was skipped (LOCALIZER)" in error.message
    assert "and 1 more" in error.message
    assert refused([], T1).message == "no series fits input t1 (the study has none)"


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({"modality": "CT"}, False),
        ({"modality": "mr"}, True),
        ({"not_description": ("*AX*",)}, False),
        ({"not_description": ("*sag*",)}, True),
        ({"slice_thickness_mm": (1.0, 1.0)}, True),
        ({"slice_thickness_mm": (1.01, 3.0)}, False),
        ({"contrast": True}, False),
        ({"contrast": False}, True),
        ({"original": False}, False),
        ({"phase": 0}, True),
        ({"phase": 1}, False),
        ({"phase_time_s": 0.0}, False),
    ],
)
def test_one_rule_at_a_time(rule: dict[str, Any], fits: bool) -> None:
    found = select.misfits(series(2), Input(name="x", **rule))
    assert (found == []) is fits


def test_thickness_falls_back_on_the_distance_of_slices() -> None:
    rule = Input(name="x", slice_thickness_mm=(2, 4))
    assert select.misfits(series(2, slice_thickness_mm=None, spacing_mm=(1, 1, 3)), rule) == []
    blank = series(2, slice_thickness_mm=None, spacing_mm=())
    assert select.misfits(blank, rule) == ["slice thickness is not stated"]


def test_phases_by_index_and_by_nearest_time() -> None:
    dce = series(8, "DCE", shape=(9, 9, 9, 4), phase_times_s=(0.0, 60.0, 130.0, 400.0))
    rules = [Input(name="pre", phase=0), Input(name="early", phase_time_s=90.0),
             Input(name="late", phase_time_s=500)]  # fmt: skip
    found = select.choose([dce], rules).chosen
    assert [found[name].phase for name in ("pre", "early", "late")] == [0, 1, 3]
    assert found["early"].reason == "phase 1 at 60 s"
    assert found["late"].series is dce


def test_the_phase_before_contrast_never_stands_in_for_an_early_one() -> None:
    dce = series(8, "DCE", shape=(9, 9, 9, 2), phase_times_s=(0.0, 600.0))
    error = refused([dce], Input(name="early", phase_time_s=120))
    assert error.code == "MISSING_INPUT"
    assert "no phase is near 120 s (they begin at 0, 600 s)" in error.message
    wide = Input(name="early", phase_time_s=120, phase_tolerance_s=480)
    assert select.choose([dce], [wide]).chosen["early"].phase == 0


def test_a_dynamic_series_needs_a_phase_rule() -> None:
    error = refused([series(8, shape=(9, 9, 9, 4))], Input(name="x"))
    assert "it has 4 phases and the input names none" in error.message


def test_two_inputs_on_one_image_are_ambiguous() -> None:
    dce = series(8, "DCE", shape=(9, 9, 9, 2), phase_times_s=(0.0, 60.0))
    rules = [Input(name="early", phase_time_s=70), Input(name="late", phase_time_s=90)]
    error = refused([dce], *rules)
    assert error.code == "AMBIGUOUS_INPUT"
    assert error.message == "inputs early and late both fall on phase 1 of series 8 'DCE'"


def test_stacks_of_one_series_share_its_reason() -> None:
    echoes = [
        series(2),
        series(9, "T2 e1", series_uid="1.2.9"),
        series(9, "T2 e2", series_uid="1.2.9"),
    ]
    found = select.choose(echoes, [Input(name="x", description=("t1*",))])
    assert found.reasons == {"1.2.9": "not x: description fits none of 't1*'"}
