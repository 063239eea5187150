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
        ("MR20240131X: T2: fs", "T2: fs"),
        ("T2 31.1.24 b", "T2 b"),
        ("T2_2024.1.31", "T2_"),
        ("ct 3.31.01.2024", "ct 3."),
        ("5.3.0.3", "5.3.0.3"),
        ("51.80.108.010", "51.80.108.010"),
        ("v0.1.0 R5.7.1", "v0.1.0 R5.7.1"),
        ("Apps14.13_2.8.2L_H2.1M4", "Apps14.13_2.8.2L_H2.1M4"),
        ("PRINTERS_[2010/06/30]-07:41:13", "PRINTERS_[ ]-07:41:13"),
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
