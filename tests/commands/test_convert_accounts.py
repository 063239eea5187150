"""Every input file stands in `files.csv` exactly once, whatever an export holds."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import convert_export as export

from medplat.commands import convert
from medplat.dicom.codes import CODES

STATUSES = {"used", "skipped", "rejected"}
# Names that break tables written without care; some systems do not take them all.
NAMES = ("plain", "a,b", '"quoted"', "=SUM(A1)", "ü 漢", "two  spaces ", "line\nbreak", "re\rturn",
         "sep\u2028arator", "-1", "'tick")  # fmt: skip


def gap(folder: Path, n: int) -> None:
    export.stack(folder, n, 1, (0, 2, 4, 8, 10))


def good(folder: Path, n: int) -> None:
    export.stack(folder, n, 2, (0, 2, 4))


def twice(folder: Path, n: int) -> None:
    first = export.stack(folder, n, 3, (0, 2, 4))[0]
    (folder / "again").write_bytes(first.read_bytes())


def cut(folder: Path, n: int) -> None:
    last = export.stack(folder, n, 4, (0, 2, 4))[-1]
    last.write_bytes(last.read_bytes()[:-30])


def headless(folder: Path, n: int) -> None:
    last = export.stack(folder, n, 5, (0, 2, 4))[-1]
    last.write_bytes(last.read_bytes()[:200])


def lone(folder: Path, n: int) -> None:
    export.stack(folder, n, 6, (0,))


def dynamic(folder: Path, n: int) -> None:
    export.dynamic(folder, n, 7, 2, 3)


def litter(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    (folder / f"readme{n}.txt").write_text("read me")
    (folder / "empty").touch()
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 9)
    (folder / "label.nii.gz").write_bytes(b"no label")


def packed(folder: Path, n: int) -> None:
    """An archive of a series, litter, an archive and a member that leaves it."""
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as file:
        file.writestr("x", "deep")
    with TemporaryDirectory() as name:
        paths = export.stack(Path(name), n, 8, (0, 2, 4))
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "export.zip", "w") as file:
            for path in paths:
                file.write(path, f"in/{path.name}")
            file.writestr("notes.txt", "text")
            file.writestr("nested.zip", inside.getvalue())
            file.writestr("../out.txt", "elsewhere")


def no_archive(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    (folder / f"{n}.zip").write_bytes(b"PK\3\4 and no more")


PARTS: tuple[Callable[[Path, int], None], ...] = (
    gap, good, twice, cut, headless, lone, dynamic, litter, packed, no_archive
)  # fmt: skip


def there(source: Path) -> Counter[str]:
    """Files of SOURCE and members of its archives, as files.csv names them."""
    found: Counter[str] = Counter()
    for path in source.rglob("*"):
        if not path.is_file():
            continue
        name = path.relative_to(source).as_posix()
        found[name] += 1
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                found.update(f"{name}!{one}" for one in file.namelist())
    return found


@settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    chosen=st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(NAMES)), min_size=1,
                    max_size=6, unique_by=lambda one: one[1]),
    split_phases=st.booleans(),
)  # fmt: skip
def test_files_csv_adds_up(
    chosen: list[tuple[Callable[[Path, int], None], str]], split_phases: bool
) -> None:
    with TemporaryDirectory() as name:
        source, out, project = (Path(name) / one for one in ("source", "out", "project"))
        (project / ".medplat").mkdir(parents=True)
        for number, (part, folder) in enumerate(chosen, start=1):
            if sys.platform == "win32" and folder != "plain":
                folder = f"plain{number}"
            part(source / folder, number)
        convert.run(source, out, project=project, workers=1, split_phases=split_phases)
        check(source, out)


def check(source: Path, out: Path) -> None:
    with (out / "files.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    wanted = there(source)
    # A leading sign is quoted, so that no spreadsheet runs it.
    assert Counter(row["path"].removeprefix("'") for row in rows) == Counter(
        {name.removeprefix("'"): count for name, count in wanted.items()}
    )
    assert {row["status"] for row in rows} <= STATUSES
    for row in rows:
        assert (row["status"] == "used") == bool(row["output"])
        assert row["output"] == "" or (out / row["output"]).is_file()
        assert (row["status"] == "used") == (row["reason"] == "")
        assert row["reason"] in CODES or row["status"] == "used"
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    # Labels bear the UID of the series that they were drawn on, and are no files of it.
    images = [row for row in rows if not row["path"].endswith("label.nii.gz")]
    of_series = Counter(row["series_uid"] for row in images)
    counted: Counter[str] = Counter()
    for line in lines:
        counted[line["series_uid"]] += line["n_files"]
    assert all(of_series[uid] == count for uid, count in counted.items())


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(part: Callable[[Path, int], None], tmp_path: Path, project: Path) -> None:
    part(tmp_path / "source" / "x", 1)
    convert.run(tmp_path / "source", tmp_path / "out", project=project, workers=1)
    check(tmp_path / "source", tmp_path / "out")
