"""What became of every input file: the rows of `files.csv`, and the site's link table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import manifest
from medplat.commands.convert_series import Job

if TYPE_CHECKING:
    from medplat.dicom.read import Fate
    from medplat.dicom.scan import SourceFile
    from medplat.dicom.series import SeriesFiles
    from medplat.pseudonym import Pseudonyms

Row = tuple[str, str, str, str, str, str, str]
_LINK_HEADER = ("patient_id", "issuer", "accession_number", "study_uid", "patient", "case")


def rows_of_series(job: Job, lines: Mapping[tuple[str, ...], manifest.Line]) -> list[Row]:
    """The rows of a series' files and labels, as its manifest lines have it."""
    rows: list[Row] = []
    verdicts: dict[int, dict[str, Any]] = {}
    for plan in job.plans:
        line = lines[plan.series.study_uid, plan.series.series_uid, plan.key]
        verdicts |= {one["index"]: one for one in line["labels"]}
        rows += [_row(fate, plan.series.series_uid, line) for fate in plan.fates]
    for index, file in enumerate(job.labels):
        header = file.header
        uid = header.series_uid if header else job.plans[0].series.series_uid
        verdict = verdicts.get(index)
        if verdict is not None and verdict["status"] == "used":
            rows.append((file.path, "used", uid, verdict["output"], "", "", ""))
        else:
            code = verdict["code"] if verdict else "LABEL_WRONG_SERIES"
            rows.append((file.path, "rejected", uid, "", "", "", code))
    return rows


def _row(fate: Fate, series_uid: str, line: manifest.Line) -> Row:
    """One file: used only if the stack was written after all."""
    if fate.status != "used":
        return fate.path, fate.status, series_uid, "", "", "", fate.reason
    outputs = [one["path"] for one in line["outputs"] if one["kind"] == "volume"]
    if not outputs:
        return fate.path, "rejected", series_uid, "", "", "", line["codes"][-1]
    phase, place = fate.phase or "", fate.slice or ""
    output = outputs[int(phase)] if len(outputs) > 1 and phase.isdecimal() else outputs[0]
    return fate.path, "used", series_uid, output, phase, place, ""


def rows_of_others(
    files: Iterable[SourceFile], orphans: Iterable[SourceFile], names: Set[str] = frozenset()
) -> list[Row]:
    """The rows of files that belong to no series of images, and of labels without a series.

    Args:
        files: Those that this run answers for.
        orphans: Labels without a series.
        names: Paths of the files that name the values of labels.
    """
    rows: list[Row] = []
    for file in files:
        if file.path in names:
            rows.append((file.path, "used", "", "", "", "", ""))
        elif file.status in ("skipped", "rejected"):
            uid = file.header.series_uid if file.header else ""
            rows.append((file.path, file.status, uid, "", "", "", file.code or ""))
    for file in orphans:
        header = file.header
        uid = header.series_uid if header else ""
        rows.append((file.path, "rejected", uid, "", "", "", "LABEL_WRONG_SERIES"))
    return rows


def check(rows: Sequence[Row], files: Sequence[SourceFile]) -> dict[str, int]:
    """Make sure that each input file has exactly one row.

    Args:
        rows: All rows of this run.
        files: The files of SOURCE that this run answers for.

    Returns:
        Counts: found, used, skipped, rejected, and missing (named by a DICOMDIR, not there).

    Raises:
        RuntimeError: A file has no row or two: a bug in medplat.
    """
    times = Counter(row[0] for row in rows)
    expected = {file.path for file in files}
    wrong = sum(count != 1 for count in times.values()) + len(expected ^ times.keys())
    if wrong:
        raise RuntimeError(f"{wrong} input files are not accounted for exactly once")
    missing = {file.path for file in files if not file.counted}
    counted = Counter(row[1] for row in rows if row[0] not in missing)
    counts = {status: counted[status] for status in ("used", "skipped", "rejected")}
    found = len(expected) - len(missing)
    if sum(counts.values()) != found:
        raise RuntimeError(f"{found} files were found, {counts} add up to another number")
    return {"found": found, **counts, "missing": len(missing)}


def stray(rows: Iterable[Row], jobs: Iterable[Job]) -> int:
    """How many rejected files no series answers for: labels, and files outside any series."""
    answered = {fate.path for job in jobs for plan in job.plans for fate in plan.fates}
    return sum(row[1] == "rejected" and row[0] not in answered for row in rows)


def merge_shards(out: Path, shards: int) -> None:
    """Write `files.csv` from the tables of the shards that have ended so far."""
    rows: list[list[str]] = []
    for part in range(1, shards + 1):
        rows += [list(row.values()) for row in read(out, (part, shards))]
    manifest.write_raw_csv(out / "files.csv", manifest.FILES_HEADER, sorted(rows))


def read(out: Path, shard: tuple[int, int] | None = None) -> list[dict[str, str]]:
    """The rows of `files.csv`, or of one shard's; empty where there is none."""
    path = out / manifest.name_of(shard, "files", ".csv")
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def write_link_table(path: Path, groups: Iterable[SeriesFiles], pseudonyms: Pseudonyms) -> None:
    """Write the site's own key from persons to pseudonyms; rows that it already holds stay."""
    found: set[tuple[str, ...]] = set()
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            found |= {tuple(row) for row in csv.reader(file) if row and row[0] != "patient_id"}
    for group in groups:
        who = group.headers[0].identity
        row = (who.patient_id, who.issuer, who.accession_number, group.study_uid)
        names = (pseudonyms.patient(who.patient_id, who.issuer), pseudonyms.case(group.study_uid))
        found.add(tuple(manifest.cell(text) for text in row + names))
    manifest.write_raw_csv(path, _LINK_HEADER, sorted(found))
    path.chmod(0o600)
