"""Minimal sentences out of reports: negation, doubt, places, sections, and where they came from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medplat.errors import DataError
from medplat.text import lexicon, sentences


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ("No pneumothorax.", ["There is no pneumothorax."]),
        (
            "No pneumothorax, pleural effusion, or focal consolidation.",
            ["There is no pneumothorax.", "There is no pleural effusion.",
             "There is no consolidation."],
        ),
        ("Small left pleural effusion.", ["There is left pleural effusion."]),
        (
            "No pneumothorax, stable cardiomegaly.",
            ["There is no pneumothorax.", "There is cardiomegaly."],
        ),
        (
            "There is no effusion but there may be atelectasis in the right lower lobe.",
            ["There is no pleural effusion.", "There may be atelectasis of the right lower lobe."],
        ),
        ("Pneumonia cannot be excluded.", ["There may be pneumonia."]),
        ("The heart is not significantly enlarged.", ["There is no cardiomegaly."]),
        ("The cardiac silhouette is moderately enlarged.", ["There is cardiomegaly."]),
        ("Heart size and mediastinal contour are within normal limits.",
         ["There is no cardiomegaly."]),
        ("A pneumothorax is not seen.", ["There is no pneumothorax."]),
        ("The right effusion has resolved.", ["There is no right pleural effusion."]),
        ("No significant change in right pneumothorax.", ["There is right pneumothorax."]),
        ("no cardiomegaly with bilateral small pleural effusions",
         ["There is no cardiomegaly.", "There is bilateral pleural effusion."]),
        ("Considerations include pericardial effusion.", []),
        ("Nodule of 1.5 cm in the lingula. No mass.",
         ["There is nodule of the lingula.", "There is no mass."]),
        ("", []),
        ("The patient was seated.", []),
    ],
)  # fmt: skip
def test_what_is_said(report: str, wanted: list[str]) -> None:
    assert [one.text for one in sentences.extract(report)] == wanted


def test_sections_that_do_not_describe_the_image_are_left_out() -> None:
    report = (
        "INDICATION: rule out pneumonia\nCOMPARISON: old fracture seen\n"
        "FINDINGS: Small effusion.\nImpression: No consolidation.\nRECOMMENDATION: CT for nodule.\n"
    )
    assert [one.text for one in sentences.extract(report)] == [
        "There is pleural effusion.",
        "There is no consolidation.",
    ]


names = st.sampled_from(["pneumothorax", "atelectasis", "cardiomegaly", "pleural effusion"])


@given(st.lists(names, min_size=1, max_size=4, unique=True), st.sampled_from(["No ", "Without "]))
def test_what_is_denied_is_never_said_to_be_there(found: list[str], cue: str) -> None:
    text = cue + ", ".join(found[:-1]) + (" or " if found[1:] else "") + found[-1] + "."
    said = sentences.extract(text)
    assert {one.finding for one in said} == set(found)
    assert all(one.claim == "absent" for one in said)
    assert all(one.text.startswith("There is no ") for one in said)


@given(st.text(max_size=200))
def test_any_text_gives_spans_inside_it(text: str) -> None:
    for one in sentences.extract(text):
        assert 0 <= one.start < one.end <= len(text)


def test_on_real_reports_every_sentence_points_at_its_source(realdata: Path) -> None:
    path = realdata / "chest_xray" / "reports" / "reports.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {}
    for row in rows[::8]:
        text = "\n\n".join(part for part in (row["findings"], row["impression"]) if part)
        found[row["id"]] = said = sentences.extract(text)
        for one in said:
            here = text[one.start : one.end].lower()
            known = lexicon.FINDINGS[one.finding] + lexicon.NORMAL.get(one.finding, ())
            assert any(re.search(pattern, here) for pattern in known), (one, here)
    counts = sentences.counts(found)
    assert counts["reports"] == len(rows[::8])
    assert counts["empty"] < 0.03 * counts["reports"]


def test_effusion_and_cardiomegaly_agree_with_the_codes_of_the_reports(realdata: Path) -> None:
    """Codes given by readers of the same reports; the whole table: experiments/README.md."""
    path = realdata / "chest_xray" / "reports" / "reports.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for finding in ("pleural effusion", "cardiomegaly"):
        both = read = coded = 0
        for row in rows[::3]:
            text = "\n\n".join(part for part in (row["findings"], row["impression"]) if part)
            said = any(
                one.finding == finding and one.claim == "present" for one in sentences.extract(text)
            )
            true = any(code.lower().startswith(finding) for code in row["mesh_major"])
            both, read, coded = both + (said and true), read + said, coded + true
        assert both / read > 0.85, f"precision of {finding}"
        assert both / coded > 0.8, f"recall of {finding}"


def test_sentences_made_elsewhere_are_read_not_run(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    path.write_text(
        '{"id": "a", "sentences": ["There is no X.", " There may be Y. ", "", "There is Z."]}\n\n'
    )
    [one] = sentences.read_file(path).values()
    assert [(each.text, each.claim) for each in one] == [
        ("There is no X.", "absent"),
        ("There may be Y.", "possible"),
        ("There is Z.", "present"),
    ]
    for text, line in (
        ('{"id": "a"}\n', 1),
        ('{"id": "a", "sentences": []}\n__import__("os")\n', 2),
        ('{"id": "a", "sentences": []}\n{"id": "a", "sentences": []}\n', 2),
        ("[1]\n", 1),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"made\.jsonl:{line}: "):
            sentences.read_file(path)
