"""A person's decisions: what they change, where they are recorded, and bad files refused."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat.commands import convert, decisions
from medplat.errors import UsageError

HEAD = "series_uid,action,by,reason\n"
UNEVEN, SHEARED, DOUBTFUL, GOOD = 1, 2, 3, 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    export.stack(folder / "a", 1, UNEVEN, [0, 2, 4.7, 6, 8])
    for n in range(5):
        image = export.image(1, SHEARED, n + 1, (-10 + 0.6 * n, -20, 2.0 * n))
        export.save(image, folder / "b" / f"{n}")
    for n in range(8):
        image = export.image(1, DOUBTFUL, n + 1, (-10, -20, 2.0 * (n % 4)))
        image.TemporalPositionIdentifier = 2 - n // 4
        image.AcquisitionTime = f"1000{n // 4:02d}.5"
        export.save(image, folder / "c" / f"{n}")
    export.stack(folder / "d", 1, GOOD, [0, 2, 4, 6])
    return folder


def run(source: Path, project: Path, text: str | None = None, **options: Any) -> dict[int, Any]:
    """Convert, and the last manifest line of each series by number."""
    out, file = project.parent / "out", project.parent / "decisions.csv"
    if text is not None:
        file.write_text(HEAD + text, encoding="utf-8-sig")
        options["decisions"] = file
    convert.run(source, out, project=project, workers=1, **options)
    lines = (json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines())
    return {line["number"]: line for line in lines}


def sidecar(project: Path, line: dict[str, Any]) -> dict[str, Any]:
    path = project.parent / "out" / line["outputs"][0]["path"].replace(".nii.gz", ".json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_each_action_settles_its_series(source: Path, project: Path) -> None:
    before = run(source, project)
    codes = {UNEVEN: "UNEVEN_SPACING", SHEARED: "SHEARED", DOUBTFUL: "PHASE_CONFLICT"}
    assert {n: before[n]["codes"][0] for n in codes} == codes
    after = run(
        source,
        project,
        f"{export.uid(1, UNEVEN)},resample,A. Reader,looked at it\n"
        f'{export.uid(1, SHEARED)},allow-shear,A. Reader,"tilt, as planned"\n'
        f"{export.uid(1, DOUBTFUL)},accept-order,B. Reader,clock is right\n"
        f"{export.uid(1, GOOD)},exclude,B. Reader,wrong patient position\n",
    )
    assert [after[n]["status"] for n in (UNEVEN, SHEARED, DOUBTFUL, GOOD)] == [
        "warned", "warned", "converted", "skipped",
    ]  # fmt: skip
    assert after[GOOD]["codes"] == ["EXCLUDED"]
    assert after[GOOD]["outputs"] == []
    decided = {"action": "allow-shear", "by": "A. Reader", "reason": "tilt, as planned"}
    assert after[SHEARED]["decisions"] == [decided]
    assert sidecar(project, after[SHEARED])["made_by"]["options"]["decisions"] == [decided]
    with (project.parent / "out" / "files.csv").open(newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert {reasons[f"d/IM4_{99 - n:03d}"] for n in range(1, 5)} == {"EXCLUDED"}
    page = (project.parent / "out" / "report.html").read_text()
    assert "decided by B. Reader" in page
    # Each code stands before its own sentence, and needs no advice any more.
    assert "<b>SHEARED</b></span> the slices slide sideways" in page
    assert "<b>UNEVEN_SPACING</b></span> slice distances run" in page
    assert "Keep the shear in the affine" not in page
    # The later acquisition is the later phase.
    image = nib.load(project.parent / "out" / after[DOUBTFUL]["outputs"][0]["path"])
    values = np.asarray(image.dataobj)
    assert values[0, 0, 0, 0] < values[0, 0, 0, 1]
    assert sidecar(project, after[UNEVEN])["tags"]["resampled"]["method"] == "linear"


def test_only_the_series_of_a_new_decision_is_done_again(source: Path, project: Path) -> None:
    before = run(source, project)
    after = run(source, project, f"{export.uid(1, SHEARED)},resample,A. Reader,looked at it\n")
    assert after[SHEARED]["outputs"] != before[SHEARED]["outputs"]
    text = (project.parent / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(text) == len(before) + 1


def test_the_report_offers_the_line(source: Path, project: Path) -> None:
    run(source, project)
    page = (project.parent / "out" / "report.html").read_text()
    for series, action in (
        (UNEVEN, "resample"),
        (SHEARED, "allow-shear"),
        (DOUBTFUL, "accept-order"),
    ):
        assert f"{export.uid(1, series)},{action},BY,REASON" in page
    assert f"{export.uid(1, GOOD)}," not in page
    assert "Keep the shear in the affine" in page


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1.2,guess,me,because\n", ":2: action 'guess' is not one of"),
        ("1.2,resample,,because\n", ":2: by is blank"),
        ("1.2,resample,BY,REASON\n", ":2: by is blank"),
        ("\n1.2,resample,me\n", ":3: it has 3 columns, not 4"),
    ],
)
def test_a_bad_line_is_named(source: Path, project: Path, text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(source, project, text)
    assert what in str(caught.value)
    assert not (project.parent / "out" / "manifest.jsonl").exists()


def test_a_file_without_its_first_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("1.2,resample,me,because\n")
    with pytest.raises(UsageError, match="the first line must be series_uid,action,by,reason"):
        decisions.read(path)


def test_split_phases_keep_integers_where_only_the_phases_differ(
    tmp_path: Path, project: Path
) -> None:
    for n in range(12):
        image = export.image(2, 7, n + 1, (-10, -20, 2.0 * (n % 4)))
        image.TemporalPositionIdentifier = n // 4
        image.RescaleSlope, image.RescaleIntercept = str(1 + n // 4), "0"
        export.save(image, tmp_path / "source" / f"{n}")
    whole = run(tmp_path / "source", project)[7]
    assert (whole["codes"], whole["outputs"][0]["dtype"]) == (["RESCALE_VARIES"], "float32")
    parts = run(tmp_path / "source", project, split_phases=True)[7]["outputs"]
    assert [part["dtype"] for part in parts] == ["uint16"] * 3
    for t, part in enumerate(parts):
        image = nib.load(project.parent / "out" / part["path"])
        assert image.dataobj.slope == 1 + t
        assert image.shape == (8, 6, 4)
