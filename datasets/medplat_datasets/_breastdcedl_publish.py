"""The published files and table, written from what `medplat convert` made of an export.

Each phase is a file of its own with the true affine, the stored integers and, in its sidecar, its
time. A cell that neither the headers nor the clinical table settle is left blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from medplat import manifest, nifti
from medplat.errors import DataError, Refused
from medplat.types import Array, Series, Volume
from medplat_datasets import _breastdcedl_layout as layout
from medplat_datasets._breastdcedl_plan import Choice
from medplat_datasets._breastdcedl_table import Patient, Table, box_problem, derived_status

FOLDER = "breastdcedl"
METADATA = "BreastDCEDL_metadata.csv"
_SERIES = ("pid", "dataset", "series_uid", "role", "phase", "output", "code", "reason")
_NOTES = ("pid", "note")
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Wanted:
    """How phases and segments are chosen; see `breastdcedl.Config`."""

    early_s: float
    late_s: float
    tumour: tuple[str, ...]
    gzip_level: int = 1


@dataclass
class Written:
    """What has become of the patients of an export."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    series: list[tuple[object, ...]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    files: set[PurePosixPath] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


def publish(
    out: Path,
    choices: Sequence[Choice],
    lines: Mapping[str, manifest.Line],
    table: Table,
    wanted: Wanted,
) -> Written:
    """Write `OUT/breastdcedl/`; what an earlier run wrote there and no longer holds is deleted.

    Args:
        out: Output folder of the conversion.
        choices: What each series is.
        lines: The manifest's line of each volume, by its path as in `Series.path`.
        table: The clinical table.
        wanted: How phases and segments are chosen.
    """
    root, done = out / FOLDER, Written()
    persons: dict[str, list[Choice]] = {}
    for one in choices:
        persons.setdefault(one.pid, []).append(one)
    for pid, chosen in persons.items():
        _person(out, root, pid, chosen, lines, table, wanted, done)
    absent = len(table.patients.keys() - persons.keys())
    if absent:
        done.notes.append(("", f"{absent} patients of the clinical table are not in the export"))
    done.notes += [*table.refused.items(), *table.outside.items()]
    _write_tables(root, done, table)
    for path in root.rglob("*.nii.gz"):
        place = PurePosixPath(path.relative_to(root).as_posix())
        if layout.parse(path.name) and place not in done.files:
            path.unlink()
            nifti.sidecar_path(path).unlink(missing_ok=True)
    return done


def _person(
    out: Path,
    root: Path,
    pid: str,
    chosen: Sequence[Choice],
    lines: Mapping[str, manifest.Line],
    table: Table,
    wanted: Wanted,
    done: Written,
) -> None:
    cohort = layout.cohort_of(pid)
    problem = next(((one.code, one.reason) for one in chosen if one.code), None)
    outputs: dict[int, str] = {}
    taken = [one for one in chosen if one.role]
    files: set[PurePosixPath] = set()
    if taken and cohort is not None:
        try:
            if pid in table.refused:
                raise Refused("NO_INPUT", "its row of the clinical table is refused, see notes.csv")
            outputs = _case(out, root, taken, lines, table.patients.get(pid), wanted, done, files)
        except Refused as error:
            problem = error.code, error.message
        except DataError as error:
            problem = "NO_INPUT", str(error)
    if problem is None:
        done.files |= files
    elif pid:
        done.refused[pid] = f"{problem[0]}: {problem[1]}"
        done.rows.pop(pid, None)
    for one in chosen:
        uid, phase = one.series.series_uid, "" if one.phase is None else one.phase
        name = cohort.name if cohort else ""
        if one.role and problem is None:
            row = (one.role, phase, outputs[id(one)], "", one.reason)
        else:
            row = ("", "", "", *((problem or ("",) * 2) if one.role else (one.code, one.reason)))
        done.series.append((pid, name, uid, *row))


def _case(
    out: Path,
    root: Path,
    taken: Sequence[Choice],
    lines: Mapping[str, manifest.Line],
    patient: Patient | None,
    wanted: Wanted,
    done: Written,
    files: set[PurePosixPath],
) -> dict[int, str]:
    """Write one patient's files and row; the output of each choice."""
    pid = taken[0].pid
    cohort = layout.cohort_of(pid)
    assert cohort is not None
    phases = _phase_volumes(taken)
    times = _times(taken)
    first = phases[0][1]
    outputs: dict[int, str] = {}
    for number, (choice, volume, phase) in enumerate(phases):
        place = cohort.image_path(pid, number)
        content = _sidecar(choice.series, phase, number, times)
        _store(root / place, volume, content, wanted.gzip_level)
        files.add(place)
        shown = f"{FOLDER}/{place}"
        outputs[id(choice)] = shown if choice.phase is not None else shown.rpartition("/")[0]
    mask = None
    if cohort.mask:
        mask = _mask(out, taken, lines, first, wanted, done.notes)
    if mask is not None:
        place = cohort.mask_path(pid)
        content = {"kind": "label", "values": [{"value": 1, "name": "tumour"}]}
        _store(root / place, Volume(mask, first.geometry), content, wanted.gzip_level)
        files.add(place)
    done.rows[pid] = _row(pid, cohort, phases[0], len(phases), times, mask, patient, wanted, done)
    return outputs


def _phase_volumes(taken: Sequence[Choice]) -> list[tuple[Choice, Volume, int | None]]:
    """Every phase as a volume of its own, with its index in a series of several.

    Raises:
        Refused: The phases lie on different grids.
    """
    found: list[tuple[Choice, Volume, int | None]] = []
    for one in taken:
        assert one.series.path is not None
        if one.phase is not None:
            found.append((one, nifti.read(one.series.path), None))
            continue
        count = one.series.shape[3]
        if nifti.image_of(one.series.path, 0).phase is None:
            places = [nifti.image_of(one.series.path, t).path for t in range(count)]
            found += [(one, nifti.read(path), t) for t, path in enumerate(places)]
            continue
        whole = nifti.read(one.series.path)
        found += [
            (one, replace(whole, array=whole.array[..., t], phase_times_s=None), t)
            for t in range(count)
        ]
    first = found[0][1].geometry
    for _, volume, _ in found[1:]:
        own = volume.geometry
        if own.shape != first.shape or np.abs(own.affine - first.affine).max() > _SAME_MM:
            raise Refused("MIXED_SHAPE", "the phases lie on different grids")
    return found


def _times(taken: Sequence[Choice]) -> tuple[float, ...] | None:
    """Seconds of each phase from the first one; None where they are not known."""
    if taken[0].phase is None:
        return taken[0].series.phase_times_s
    clock = [float(one.series.study_time_s or 0.0) for one in taken]
    return tuple(round(time - clock[0], 6) for time in clock)


def _sidecar(
    series: Series, phase: int | None, number: int, times: Sequence[float] | None
) -> dict[str, Any]:
    """The sidecar of the converted series, made that of one phase."""
    assert series.path is not None
    content = nifti.read_sidecar(nifti.image_of(series.path, phase).path)
    content["phase"] = number
    content["shape"] = list(content["shape"][:3])
    content["phase_times_s"] = None if times is None else [times[number]]
    return content


def _store(path: Path, volume: Volume, content: dict[str, Any], gzip_level: int) -> None:
    """Write a file, unless the same voxels and the same sidecar are there already."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.array.T).tobytes())
    digest.update(repr((volume.array.dtype.str, volume.slope, volume.intercept)).encode())
    digest.update(volume.geometry.affine.tobytes())
    content = {**content, "voxels_sha256": digest.hexdigest()}
    if path.is_file() and nifti.read_sidecar(path) == content:
        return
    nifti.sidecar_path(path).unlink(missing_ok=True)
    nifti.write(volume, path, gzip_level=gzip_level)
    nifti.write_json(nifti.sidecar_path(path), content)


def _mask(
    out: Path,
    taken: Sequence[Choice],
    lines: Mapping[str, manifest.Line],
    first: Volume,
    wanted: Wanted,
    notes: list[tuple[str, str]],
) -> Array | None:
    """The tumour of a patient's label files, uint8 (x, y, z); None where there is no one mask."""
    pid = taken[0].pid
    found: list[tuple[Path, list[int]]] = []
    for one in taken:
        for output in lines[str(one.series.path)]["outputs"]:
            if output["kind"] == "label":
                path = out / output["path"]
                found.append((path, _tumour_values(nifti.read_sidecar(path), wanted.tumour)))
    found = [(path, values) for path, values in found if values]
    if not found:
        return None
    if len(found) > 1 or (len(found[0][1]) > 1 and not wanted.tumour):
        text = "several segments came with it: name the tumour's with dataset.tumour_segments"
        notes.append((pid, f"no mask is written; {text}"))
        return None
    volume = nifti.read(found[0][0])
    if volume.array.shape != first.array.shape:
        notes.append((pid, "no mask is written; its label lies on another grid"))
        return None
    mask = np.isin(volume.array, found[0][1]).astype(np.uint8)
    if not mask.any():
        notes.append((pid, "no mask is written; its label is empty"))
        return None
    return mask


def _tumour_values(content: Mapping[str, Any], tumour: Sequence[str]) -> list[int]:
    names = {name.casefold() for name in tumour}
    return [
        int(one["value"])
        for one in content.get("values", [])
        if not names or str(one.get("name", "")).casefold() in names
    ]


def _row(
    pid: str,
    cohort: layout.Cohort,
    first: tuple[Choice, Volume, int | None],
    count: int,
    times: Sequence[float] | None,
    mask: Array | None,
    patient: Patient | None,
    wanted: Wanted,
    done: Written,
) -> dict[str, str]:
    """One row of the metadata table: the clinical table's cells and what the export says."""
    notes = [] if patient else ["the clinical table has no row of it"]
    stated = dict(patient.cells) if patient else {}
    own = _measured(first[1], first[0].series, count, notes) | {"dataset": cohort.name}
    differing = [
        f"{name} is {stated[name]} in the clinical table, {own[name]} in the export"
        for name in ("n_xy", "n_z", "n_times", "slice_thick", "slice_space", "xy_spacing")
        if stated.get(name) and own.get(name) and abs(float(stated[name]) - float(own[name])) > 5e-3
    ]
    notes += differing
    row = stated | derived_status(stated) | {k: v for k, v in own.items() if v} | {"pid": pid}
    x, y, z = first[1].array.shape[:3]
    row |= _phase_indices(patient, count, times, wanted, notes)
    if mask is not None:
        row |= _box(mask)
    elif patient is not None:
        pairs = [(patient.number(a), patient.number(b)) for a, b in layout.BOX]
        problem = box_problem(pairs, (z, y, x))
        grid = [text for text in differing if text.startswith(("n_xy", "n_z"))]
        if any(start is not None for start, _ in pairs) and (problem or grid):
            notes.append(f"the box of the clinical table is left out: {problem or grid[0]}")
            row |= {name: "" for pair in layout.BOX for name in pair}
    done.notes += [(pid, text) for text in notes]
    return row


def _measured(volume: Volume, series: Series, count: int, notes: list[str]) -> dict[str, str]:
    """What the volume itself says; "" where the published column cannot hold it."""
    spacing = np.linalg.norm(volume.geometry.affine[:3, :3], axis=0)
    x, y, z = volume.array.shape[:3]
    if x != y:
        notes.append(f"n_xy is left blank: the matrix is {x} x {y}")
    square = abs(spacing[0] - spacing[1]) <= 1e-4 * spacing[0]
    if not square:
        notes.append(f"xy_spacing is left blank: pixels are {spacing[0]:g} x {spacing[1]:g} mm")
    thick = series.slice_thickness_mm
    return {
        "n_xy": str(x) if x == y else "",
        "n_z": str(z),
        "n_times": str(count),
        "slice_thick": "" if thick is None else f"{thick:g}",
        "slice_space": f"{spacing[2]:.6g}",
        "xy_spacing": f"{spacing[0]:.6g}" if square else "",
        "pix_type": volume.array.dtype.name,
    }


def _phase_indices(
    patient: Patient | None,
    count: int,
    times: Sequence[float] | None,
    wanted: Wanted,
    notes: list[str],
) -> dict[str, str]:
    """pre, post_early and post_late: the table's, else by time, else blank.

    Raises:
        Refused: The table names a phase that the export does not have.
    """
    columns = list(layout.PHASES.values())
    stated = [patient.index(name) if patient else None for name in columns]
    if any(index is not None for index in stated):
        for name, index in zip(columns, stated, strict=True):
            if index is not None and index >= count:
                text = f"the clinical table says {name} {index}, the export has {count} phases"
                raise Refused("MISSING_INPUT", text)
        return {}
    if times is None:
        notes.append("phases are left blank: neither the table nor the headers give their times")
        return {}
    after = np.asarray(times)
    early = int(np.abs(after - wanted.early_s).argmin())
    late = int(np.abs(after - wanted.late_s).argmin())
    if not 0 < early < late:
        notes.append("phases are left blank: no phase is near the times asked for")
        return {}
    notes.append(f"phases by time: early {after[early]:g} s, late {after[late]:g} s")
    return dict(zip(columns, ("0", str(early), str(late)), strict=True))


def _box(mask: Array) -> dict[str, str]:
    """The columns that a mask (x, y, z) settles; slices, rows and columns, both ends inside."""
    found: dict[str, str] = {}
    for axis, (start, end) in zip((2, 1, 0), layout.BOX, strict=True):
        others = tuple(one for one in range(3) if one != axis)
        places = np.flatnonzero(mask.any(axis=others))
        found |= {start: str(places[0]), end: str(places[-1])}
    per_slice = mask.sum(axis=(0, 1), dtype=np.int64)
    found |= {"mask_count": str(per_slice.sum()), "mask_max": str(per_slice.argmax())}
    return found


def _write_tables(root: Path, done: Written, table: Table) -> None:
    columns = [*layout.COLUMNS, *layout.MORE_COLUMNS]
    columns += [name for name in table.columns if name not in columns]
    rows: Iterable[list[str]] = (
        [done.rows[pid].get(name, "") for name in columns] for pid in sorted(done.rows)
    )
    root.mkdir(parents=True, exist_ok=True)
    manifest.write_csv(root / METADATA, columns, rows)
    manifest.write_csv(root / "series.csv", _SERIES, done.series)
    notes = [*done.notes, *((pid, f"refused, {text}") for pid, text in done.refused.items())]
    manifest.write_csv(root / "notes.csv", _NOTES, sorted(set(notes)))
