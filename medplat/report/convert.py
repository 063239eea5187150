"""The page of a conversion: a row a series, rejected ones first, with pictures and reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from medplat import manifest, nifti
from medplat.dicom.codes import CODES, SETTLED_BY
from medplat.report import charts, page
from medplat.types import Array, Volume

FOLDER = ".pictures"
_TEMPLATE = "convert.html"
_RANK = {"failed": 0, "rejected": 1, "warned": 2, "converted": 3, "skipped": 4}
_GAPS = {"MISSING_SLICE", "UNEVEN_SPACING", "DUPLICATE_SLICE"}
_VIEWS = "axial, coronal and sagittal, the patient's right on the left"


def picture_path(out: Path, case: str, stack: str) -> Path:
    """Where the pictures of one stack are kept, so that a resumed run need not draw them again."""
    return out / FOLDER / case / f"{stack}.json"


def keep_pictures(
    out: Path, case: str, stack: str, volume: Volume, *, invert: bool, mask: Array | None = None
) -> None:
    """Draw a converted stack and keep the pictures for the report.

    Args:
        out: Output folder.
        case: Its case.
        stack: Its file stem.
        volume: What was written.
        invert: True for MONOCHROME1.
        mask: (x, y, z) label values that are outlined.
    """
    from medplat.report import pictures

    limits = pictures.window(volume.array)
    slices = pictures.triptych(volume, limits=limits, invert=invert, mask=mask)
    found: dict[str, Any] = {
        "triptych": pictures.data_uri(slices),
        "labelled": mask is not None,
        "oriented": volume.geometry.orientation == "known",
    }
    if volume.array.ndim == 4 and volume.array.shape[3] > 1:
        found["strip"] = pictures.data_uri(pictures.phase_strip(volume, limits=limits))
        found["means"] = pictures.phase_means(volume)
    nifti.write_json(picture_path(out, case, stack), found)


def keep_positions(out: Path, case: str, stack: str, positions_mm: Iterable[float]) -> None:
    """Keep the slice positions of a refused stack, so that the page can show its gaps."""
    places = sorted(round(one, 3) for one in positions_mm)
    nifti.write_json(picture_path(out, case, stack), {"positions_mm": places})


def write(
    out: Path,
    lines: Sequence[manifest.Line],
    rows: Iterable[Mapping[str, str]],
    *,
    missing: int = 0,
) -> Path:
    """Write `report.html` (and further pages above 200 series).

    Args:
        out: Output folder, with the kept pictures in it.
        lines: The manifest's lines that hold.
        rows: The rows of `files.csv`.
        missing: Files that a DICOMDIR names and that are not there.

    Returns:
        The first page.
    """
    listed = list(rows)
    statuses = Counter(row["status"] for row in listed)
    files = {
        "found": len(listed) - missing,
        "used": statuses["used"],
        "skipped": statuses["skipped"],
        "rejected": statuses["rejected"] - missing,
        "missing": missing,
    }
    ordered = sorted(
        lines, key=lambda one: (_RANK.get(one["status"], 9), one["case"], one.get("stack", ""))
    )
    context = {
        "files": files,
        "counts": manifest.counts(ordered, manifest.SERIES_STATUSES),
        "manifests": sorted(path.name for path in out.glob("manifest*.jsonl")),
        "unused": _unused(listed),
    }
    shown = [_row(out, line) for line in ordered]
    return page.write_pages(out / "report.html", _TEMPLATE, shown, context)[0]


def prepare() -> None:
    """Do what `write` can do before there is anything to report."""
    page.prepare(_TEMPLATE)


def _row(out: Path, line: manifest.Line) -> dict[str, Any]:
    stack = line.get("stack", "")
    kept = _kept(picture_path(out, line["case"], stack))
    outputs = [one for one in line.get("outputs", []) if one.get("kind", "volume") == "volume"]
    first = outputs[0] if outputs else {}
    times = line.get("phase_times_s")
    means = kept.get("means")
    gaps = not _GAPS.isdisjoint(line.get("codes", []))
    return {
        "status": line["status"],
        "rank": _RANK.get(line["status"], 9),
        "case": line["case"],
        "patient": line["patient"],
        "stack": stack,
        "description": line.get("description", ""),
        "modality": line.get("modality", ""),
        "n_files": line.get("n_files", 0),
        "pictures": [name for name in ("triptych", "strip", "positions_mm") if name in kept],
        "triptych": kept.get("triptych"),
        "views": (_VIEWS if kept.get("oriented", True) else "as stored")
        + (", with the outline of its label" if kept.get("labelled") else ""),
        "strip": kept.get("strip"),
        "curve": charts.curve(means, times) if means else None,
        "ladder": charts.ladder(kept.get("positions_mm", [])) if gaps else None,
        "outputs": [one["path"] for one in line.get("outputs", [])],
        "shape": first.get("shape", []),
        "spacing": " × ".join(f"{one:.4g}" for one in first.get("spacing_mm", [])),
        "dtype": first.get("dtype", ""),
        "plane": line.get("orientation"),
        "voxels": _product(first.get("shape", [])),
        "phases": _phases(len(outputs), first, times),
        "study_time": _clock(line.get("study_time_s")),
        "copies": _copies(line),
        "reasons": _reasons(line),
        "decisions": line.get("decisions", []),
        "settle": _settle(line),
    }


def _settle(line: manifest.Line) -> list[str]:
    """Lines of a decisions file that would settle a series; the last two cells are the person's."""
    if line.get("decisions"):
        return []
    actions = [one for code in line.get("codes", []) for one in SETTLED_BY.get(code, ())]
    return [f"{line['series_uid']},{action},BY,REASON" for action in dict.fromkeys(actions)]


def _kept(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _product(shape: Sequence[int]) -> int:
    voxels = 1 if shape else 0
    for size in shape:
        voxels *= size
    return voxels


def _phases(outputs: int, first: Mapping[str, Any], times: Sequence[float] | None) -> str:
    shape = first.get("shape", [])
    count = shape[3] if len(shape) == 4 else outputs
    if count < 2:
        return ""
    if not times:
        return f"{count}, times unknown"
    shown = ", ".join(f"{one:.1f}" for one in times[:6])
    return f"{count} at {shown}{' …' if len(times) > 6 else ''} s"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"+{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _reasons(line: manifest.Line) -> list[dict[str, str]]:
    """Codes with their sentences and advice, which a decided series needs no more; remarks."""
    codes, messages = line.get("codes", []), line.get("messages", [])
    found = []
    for code, message in zip_longest(codes, messages, fillvalue=""):
        settled = bool(line.get("decisions")) and code in SETTLED_BY
        advice = CODES[code].advice if code in CODES and not settled else ""
        advice = advice if advice != "Nothing to do." else ""
        found.append({"code": code, "message": message, "advice": advice})
    return found


def _copies(line: manifest.Line) -> str:
    """What became of the de-identified copies."""
    made = line.get("deidentified")
    if not made:
        return ""
    return f"none: {made['refused']}" if "refused" in made else f"{made['files']}, de-identified"


def _unused(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    counted = Counter((row["status"], row["reason"]) for row in rows if row["status"] != "used")
    return [
        {
            "status": status,
            "reason": reason,
            "count": count,
            "meaning": CODES[reason].meaning if reason in CODES else "",
        }
        for (status, reason), count in sorted(counted.items())
    ]
