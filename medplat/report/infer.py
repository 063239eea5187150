"""The page of a batch inference: a row a case, failures first, with contours and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medplat import manifest
from medplat.dicom.codes import CODES
from medplat.report import page, pictures

_RANK = {"failed": 0, "rejected": 1, "skipped": 2, "done": 3, "unchanged": 4}


def write(out: Path, lines: Sequence[manifest.Line], columns: Sequence[str]) -> Path:
    """Write `report.html` (and further pages above 200 cases).

    Args:
        out: Output folder, with the overlays in it.
        lines: The manifest's lines that hold.
        columns: Names of the model's numbers.

    Returns:
        The first page.
    """
    ordered = sorted(lines, key=lambda one: (_RANK.get(one["status"], 9), str(one["case"])))
    context = {
        "counts": manifest.counts(ordered, manifest.CASE_STATUSES),
        "manifests": sorted(path.name for path in out.glob("manifest*.jsonl")),
        "models": sorted({_model(line) for line in ordered}),
    }
    rows = [_row(out, line, columns) for line in ordered]
    return page.write_pages(out / "report.html", "infer.html", rows, context)[0]


def _model(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        str(line.get("model", "")),
        str(line.get("model_version") or "not registered"),
        str(line.get("weights_sha256", ""))[:12],
    )


def _row(out: Path, line: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    error = line.get("error") or {}
    known = CODES.get(error.get("code", ""))
    numbers = line.get("numbers") or {}
    return {
        "status": line["status"],
        "rank": _RANK.get(line["status"], 9),
        "case": line["case"],
        "patient": line.get("patient", ""),
        "picture": _picture(out / str(line["case"]) / "overlay.png"),
        "numbers": [_number(name, numbers[name]) for name in columns if name in numbers],
        "series": [_series(name, one) for name, one in (line.get("series") or {}).items()],
        "not_taken": list((line.get("not_taken") or {}).values()),
        "code": error.get("code", ""),
        "message": error.get("message", ""),
        "advice": known.advice if known and known.advice != "Nothing to do." else "",
        "notes": line.get("notes") or [],
        "seconds": list((line.get("seconds") or {}).items()),
        "total": round(sum((line.get("seconds") or {}).values()), 1),
        "peak_rss_mb": line.get("peak_rss_mb") or 0,
        "outputs": [one["path"] for one in line.get("outputs", [])],
        "model": _model(line),
    }


def _number(name: str, value: float | None) -> tuple[str, str]:
    label, _, unit = name.rpartition("_")
    if value is None:
        return label, "no volume (2-D)"
    return label, f"{value:.3f} ml" if unit == "ml" else f"{value:.3f}"


def _series(name: str, one: Mapping[str, Any]) -> dict[str, str]:
    phase = "" if one.get("phase") is None else f", phase {one['phase']}"
    if "file" in one:
        return {"input": name, "what": f"{one['file']}{phase}", "why": ""}
    number = "series without number" if one.get("number") is None else f"series {one['number']}"
    described = f" “{one['description']}”" if one.get("description") else ""
    return {"input": name, "what": f"{number}{described}{phase}", "why": one.get("why", "")}


def _picture(path: Path) -> str | None:
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as opened:
        return pictures.data_uri(opened.convert("RGB"))
