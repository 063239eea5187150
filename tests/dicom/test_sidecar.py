from __future__ import annotations

import pytest

from medplat.dicom.sidecar import age_years, scrub

WHO = (
    "Müller^Anna-Maria",
    "MR20240131X",
    "PID-77812",
    "ACC/4711",
    "St. Example Hospital",
    "Dr. Who",
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ax T1 fs dyn", "ax T1 fs dyn"),
        ("MÜLLER ax T1", "ax T1"),
        ("t1_anna_fs", "t1_ _fs"),
        ("t2 X1234567 b", "t2 X b"),
        ("t2 for Müller^Anna-Maria", "t2 for"),
        ("knee PID-77812", "knee"),
        ("knee 77812 left", "knee left"),
        ("hospital protocol v2", "protocol v2"),
        ("T2 20240131", "T2"),
        ("T2 MR20240131X", "T2"),
        ("T2 2024-01-31 axial", "T2 axial"),
        ("T2 31.01.2024", "T2"),
        ("T2 1/31/24", "T2"),
        ("p_2024-01-31_x", "p_ _x"),
        ("2024_01_31 ax", "ax"),
        ("ax 31JAN2024", "ax"),
        ("ax 3-sept-24 fs", "ax fs"),
        ("b 0 50 800", "b 0 50 800"),
        ("ep2d_2.5x2.5_3mm", "ep2d_2.5x2.5_3mm"),
        ("dwi b1000 12345", "dwi b1000 12345"),
        ("Dr dixon 1.5 mm", "Dr dixon 1.5 mm"),
        ("  many   spaces ", "many spaces"),
        ("", ""),
    ],
)
def test_scrub(text: str, wanted: str) -> None:
    assert scrub(text, WHO) == wanted


def test_scrub_leaves_nothing_of_three_letters_or_more() -> None:
    text = "x".join(WHO) + " " + " ".join(WHO).upper() + " " + "_".join(WHO)
    left = scrub(text, [*WHO, text]).casefold()
    for name in ("müller", "anna", "maria", "77812", "4711", "example", "hospital"):
        assert name not in left


@pytest.mark.parametrize(
    ("text", "years"),
    [("043Y", 43), ("018M", 1.5), ("097Y", 90), ("012W", 0.23), ("", None), ("old", None)],
)
def test_age(text: str, years: float | None) -> None:
    assert age_years(text) == years
