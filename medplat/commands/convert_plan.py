"""What a conversion has to do: SOURCE scanned, grouped and decided, from headers alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from medplat import console
from medplat.commands import convert_accounts as accounts
from medplat.commands import convert_series as work
from medplat.commands import label_pairs
from medplat.commands.convert_series import Job, Options
from medplat.commands.decisions import Decision, Decisions, keywords
from medplat.dicom import read as dicom_read
from medplat.dicom import scan as dicom_scan
from medplat.dicom import series as dicom_series
from medplat.errors import MedplatError

if TYPE_CHECKING:
    from medplat.dicom.index import Index
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
        orphans: Labels among the files whose series is not in SOURCE.
        names: Paths of the files that name the values of labels.
    """

    files: tuple[SourceFile, ...]
    jobs: tuple[Job, ...]
    orphans: tuple[SourceFile, ...]
    names: frozenset[str] = frozenset()


def plan(
    source: Path,
    shard: Shard | None,
    workers: int,
    options: Options,
    pseudonyms: Pseudonyms,
    link_table: Path | None = None,
    labels_in: Path | None = None,
    index: Index | None = None,
    decisions: Decisions = MappingProxyType({}),
) -> Work:
    """Scan, group and decide; nothing is written but the link table and the index."""
    files = dicom_scan.scan(source, workers, index)
    files = label_pairs.gather(files, source, labels_in, workers)
    groups = dicom_series.group(files, pseudonyms)
    if link_table is not None:
        accounts.write_link_table(link_table, groups, pseudonyms)
    chosen = [one for one in groups if shard is None or _share(one.study_uid, shard)]
    unknown = decisions.keys() - {one.series_uid for one in groups}
    if unknown:
        console.say(f"decisions on {len(unknown)} series that are not in SOURCE are not used")
    made = [decisions.get(one.series_uid, ()) for one in chosen]
    planned = [
        _decided(one, options, pseudonyms, how) for one, how in zip(chosen, made, strict=True)
    ]
    timed = iter(dicom_read.study_times([plan for plans in planned for plan in plans]))
    planned = [[next(timed) for _ in plans] for plans in planned]
    pairing = label_pairs.pair(files, groups, pseudonyms)
    of_series, orphans = dict(pairing.of_series), pairing.orphans
    labelled = {label.path for labels in of_series.values() for label in labels}
    by_path = {file.path: file for file in files}
    jobs = []
    for group, plans, decided in zip(chosen, planned, made, strict=True):
        labels = tuple(of_series.pop(group.series_uid, ()))
        own = [by_path[path] for path in sorted({one.path for one in group.headers})]
        entries = [label_pairs.entry_of(one) for one in own]
        entries += [entry for label in labels for entry in label.entries]
        digest = work.input_digest(plans, [one for one in entries if one], decided, pseudonyms)
        jobs.append(Job(tuple(plans), labels, digest, _positions(group), decided))
    if shard is None:
        return Work(tuple(files), tuple(jobs), orphans, pairing.names)
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
        orphans if first else (),
        pairing.names,
    )


def _share(study_uid: str, shard: Shard) -> bool:
    number = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:8], "big")
    return number % shard[1] == shard[0] - 1


def _decided(
    group: SeriesFiles, options: Options, pseudonyms: Pseudonyms, made: tuple[Decision, ...]
) -> list[SeriesPlan]:
    """The plans of a series; one that the planner breaks on fails alone."""
    how = {"allow_shear": options.allow_shear, "resample": options.resample}
    how |= keywords(made)
    try:
        return dicom_read.plan(group, pseudonyms=pseudonyms, **how)
    except MedplatError:
        raise
    except Exception as error:
        return [dicom_read.broken(group, pseudonyms, f"a bug in medplat: {work.where(error)}")]


def _positions(group: SeriesFiles) -> tuple[float, ...]:
    """Slice positions along the normal of the first image, where the headers state them."""
    placed = [one for one in group.headers if one.position and one.orientation]
    if not placed or len(placed[0].orientation or ()) != 6:
        return ()
    cosines = np.asarray(placed[0].orientation, dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    found = np.asarray([one.position for one in placed], dtype=np.float64) @ normal
    return tuple(float(one) for one in found) if np.isfinite(found).all() else ()
