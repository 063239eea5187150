from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medplat import manifest
from medplat.errors import DataError
from medplat.manifest import CASE_KEY, SERIES_KEY, Manifest


def test_the_last_line_of_a_key_holds(tmp_path: Path) -> None:
    record = Manifest(tmp_path / "manifest.jsonl", CASE_KEY)
    assert record.lines() == {}
    for case, status in (("a", "failed"), ("b", "done"), ("a", "done")):
        record.append({"case": case, "status": status})
    assert {key[0]: line["status"] for key, line in record.lines().items()} == {
        "a": "done",
        "b": "done",
    }
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 3


def test_a_torn_end_is_dropped_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    Manifest(path, CASE_KEY).append({"case": "a", "status": "done"})
    with path.open("ab") as file:
        file.write(b'{"case": "b", "sta')
    again = Manifest(path, CASE_KEY)
    assert list(again.lines()) == [("a",)]
    again.append({"case": "c", "status": "failed"})
    again.append({"case": "d", "status": "failed"})
    assert [key[0] for key in again.lines()] == ["a", "c", "d"]
    assert [json.loads(line)["case"] for line in path.read_text().splitlines()] == ["a", "c", "d"]


def test_damage_before_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"case": "a"}\nrubbish\n{"case": "b"}\n')
    with pytest.raises(DataError, match=r"manifest\.jsonl:2"):
        Manifest(path, CASE_KEY).lines()


def test_many_threads_append_whole_lines(tmp_path: Path) -> None:
    record = Manifest(tmp_path / "manifest.jsonl", CASE_KEY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record.append({"case": str(n), "text": "x" * 999}), range(60)))
    assert len(record.lines()) == 60


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        (["skipped"], 0),
        (["converted", "warned", "skipped"], 0),
        (["unchanged", "done"], 0),
        (["converted", "rejected"], 3),
        (["unchanged", "failed"], 3),
        (["rejected", "skipped"], 4),
        (["failed"], 4),
    ],
)
def test_exit_codes(statuses: list[str], code: int) -> None:
    assert manifest.exit_code([{"status": one} for one in statuses]) == code


def test_counts_name_every_status() -> None:
    lines = [{"status": "converted"}, {"status": "converted"}, {"status": "failed"}]
    counted = manifest.counts(lines, manifest.SERIES_STATUSES)
    assert counted == {"converted": 2, "warned": 0, "skipped": 0, "rejected": 0, "failed": 1}


def test_stacks_that_a_series_no_longer_has_are_left_out(tmp_path: Path) -> None:
    record = Manifest(tmp_path / "manifest.jsonl", SERIES_KEY)
    base = {"study_uid": "1", "series_uid": "1.1", "status": "converted"}
    record.append({**base, "stack": "0001-ab", "stacks": ["0001-ab"]})
    for stack in ("0001-ab_e1", "0001-ab_e2"):
        record.append({**base, "stack": stack, "stacks": ["0001-ab_e1", "0001-ab_e2"]})
    kept = manifest.read_all(tmp_path)
    assert [line["stack"] for line in kept] == ["0001-ab_e1", "0001-ab_e2"]


def test_shards_are_read_together(tmp_path: Path) -> None:
    for part in (1, 2):
        path = tmp_path / manifest.name_of((part, 2))
        Manifest(path, CASE_KEY).append({"case": f"c{part}", "status": "done"})
    assert {line["case"] for line in manifest.read_all(tmp_path, CASE_KEY)} == {"c1", "c2"}


def test_files_csv_is_sorted_and_its_cells_are_no_formulas(tmp_path: Path) -> None:
    rows = [
        ("b,\n.dcm", "used", "1.2", "case/x.nii.gz", "0", "3", ""),
        ("c.dcm", "used", "1\r2\x0b\x85\u20283", "", "", "", ""),
        ("=HYPERLINK(1)", "skipped", "", "", None, None, "NOT_DICOM"),
        ("@a", "skipped", "", "", "", -3, "NOT_DICOM"),
    ]
    manifest.write_files_csv(tmp_path / "files.csv", rows)
    with (tmp_path / "files.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found[0] == list(manifest.FILES_HEADER)
    assert [row[0] for row in found[1:]] == ["'=HYPERLINK(1)", "'@a", "b,\n.dcm", "c.dcm"]
    assert found[4][2] == "1\r2\x0b\x85\u20283"
    assert found[2][5] == "-3"
    assert [one.name for one in tmp_path.iterdir()] == ["files.csv"]


def test_a_path_that_is_no_unicode_still_has_its_row(tmp_path: Path) -> None:
    name = b"\xff\xfe.dcm".decode("utf-8", "surrogateescape")
    manifest.write_files_csv(tmp_path / "files.csv", [(name, "skipped", "", "", "", "", "X")])
    assert b"\xff\xfe.dcm,skipped" in (tmp_path / "files.csv").read_bytes()
