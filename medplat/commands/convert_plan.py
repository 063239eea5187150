"""What a conversion has to do: SOURCE scanned, grouped and decided, from headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medplat.commands import convert_accounts as accounts
from medplat.commands import convert_series as work
from medplat.commands.convert_series import Job, Options
from medplat.dicom import read as dicom_read
from medplat.dicom import scan as dicom_scan
from medplat.dicom import series as dicom_series
from medplat.errors import MedplatError

if TYPE_CHECKING:
    from medplat.dicom.read import SeriesPlan
    from medplat.dicom.scan import SourceFile
    from medplat.dicom.series import SeriesFiles
    from medplat.pseudonym import Pseudonyms

Shard = tuple[int, int]


@dataclass(frozen=True)
class Work:
    """What a scan of SOURCE gave this run to do.

    Attributes:
        files: The input files that this run answers for.
        jobs: Its series.
        orphans: Label objects among the files whose series is not in SOURCE.
    """

    files: tuple[SourceFile, ...]
    jobs: tuple[Job, ...]
    orphans: tuple[SourceFile, ...]


def plan(
    source: Path,
    shard: Shard | None,
    workers: int,
    options: Options,
    pseudonyms: Pseudonyms,
    link_table: Path | None = None,
) -> Work:
    """Scan, group and decide; nothing is written but the link table."""
    files = dicom_scan.scan(source, workers)
    groups = dicom_series.group(files)
    if link_table is not None:
        accounts.write_link_table(link_table, groups, pseudonyms)
    chosen = [one for one in groups if shard is None or _share(one.study_uid, shard)]
    planned = [_decided(one, options, pseudonyms) for one in chosen]
    timed = iter(dicom_read.study_times([plan for plans in planned for plan in plans]))
    planned = [[next(timed) for _ in plans] for plans in planned]
    of_series, orphans = _labels(files, groups)
    labelled = {label.path for labels in of_series.values() for label in labels}
    by_path = {file.path: file for file in files}
    jobs = []
    for group, plans in zip(chosen, planned, strict=True):
        labels = tuple(of_series.pop(group.series_uid, ()))
        own = [by_path[path] for path in sorted({one.path for one in group.headers})]
        digest = work.input_digest(plans, [*own, *labels], pseudonyms)
        jobs.append(Job(tuple(plans), labels, digest, _positions(group)))
    if shard is None:
        return Work(tuple(files), tuple(jobs), tuple(orphans))
    first = shard[0] == 1
    mine = {fate.path for job in jobs for plan in job.plans for fate in plan.fates}
    mine |= {label.path for job in jobs for label in job.labels}
    if first:
        taken = {header.path for group in groups for header in group.headers}
        taken |= labelled
        mine |= {file.path for file in files} - taken
    return Work(
        tuple(file for file in files if file.path in mine),
        tuple(jobs),
        tuple(orphans) if first else (),
    )


def _share(study_uid: str, shard: Shard) -> bool:
    number = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:8], "big")
    return number % shard[1] == shard[0] - 1


def _decided(group: SeriesFiles, options: Options, pseudonyms: Pseudonyms) -> list[SeriesPlan]:
    """The plans of a series; one that the planner breaks on fails alone."""
    try:
        return dicom_read.plan(group, pseudonyms=pseudonyms, allow_shear=options.allow_shear)
    except MedplatError:
        raise
    except Exception as error:
        return [dicom_read.broken(group, pseudonyms, f"a bug in medplat: {work.where(error)}")]


def _labels(
    files: Sequence[SourceFile], groups: Sequence[SeriesFiles]
) -> tuple[dict[str, list[SourceFile]], list[SourceFile]]:
    """Label objects by the series that they name, and those that name none of this SOURCE."""
    of_series: dict[str, list[SourceFile]] = {}
    orphans = []
    known = {group.series_uid for group in groups}
    for file in files:
        if file.status != "label":
            continue
        from medplat.commands import convert_labels

        uid = convert_labels.referenced(file)
        if uid in known and uid is not None:
            of_series.setdefault(uid, []).append(file)
        else:
            orphans.append(file)
    for labels in of_series.values():
        labels.sort(key=_label_order)
    return of_series, orphans


def _label_order(file: SourceFile) -> tuple[str, int, str]:
    header = file.header
    return (
        header.sop_instance_uid if header else "",
        header.entry.size if header else 0,
        file.path,
    )


def _positions(group: SeriesFiles) -> tuple[float, ...]:
    """Slice positions along the normal of the first image, where the headers state them."""
    placed = [one for one in group.headers if one.position and one.orientation]
    if not placed or len(placed[0].orientation or ()) != 6:
        return ()
    cosines = np.asarray(placed[0].orientation, dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    found = np.asarray([one.position for one in placed], dtype=np.float64) @ normal
    return tuple(float(one) for one in found) if np.isfinite(found).all() else ()
