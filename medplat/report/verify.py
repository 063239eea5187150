"""The page of a verification: a row a NIfTI file, untrue ones first, with what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medplat.dicom.codes import CODES
from medplat.report import page

_RANK = {"untrue": 0, "unreadable": 1, "unpaired": 2, "true": 3, "label": 4}


def write(
    path: Path,
    files: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    refused: Sequence[str],
) -> Path:
    """Write the page.

    Args:
        path: Where.
        files: What `medplat verify --json` says of each file.
        counts: Files by status.
        refused: Codes of the series of SOURCE that are refused, one each.

    Returns:
        The first page.
    """
    ordered = sorted(files, key=lambda one: (_RANK[one["status"]], one["path"]))
    rows = [
        {
            **one,
            "rank": _RANK[one["status"]],
            "findings": [
                {**finding, "advice": CODES[finding["code"]].advice} for finding in one["findings"]
            ],
        }
        for one in ordered
    ]
    context = {"counts": dict(counts), "refused": list(refused)}
    return page.write_pages(path, "verify.html", rows, context)[0]
