"""`--decisions FILE.csv`: how a person settles a doubtful series after looking at the report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medplat.errors import UsageError

HEADER = ("series_uid", "action", "by", "reason")
# Action to the keyword of `dicom.read.plan` that it sets.
ACTIONS = {
    "allow-shear": "allow_shear",
    "resample": "resample",
    "accept-order": "accept_order",
    "exclude": "exclude",
}
SPLIT_LABEL = "split-label"
"""Structures that overlap become label files of their own: no choice of `dicom.read.plan`."""
_PLACES = ("BY", "REASON")  # As the report leaves them for the person to fill in.


class Decision(NamedTuple):
    """What was decided on one series, by whom and why."""

    action: str
    by: str
    reason: str


Decisions = Mapping[str, tuple[Decision, ...]]
"""By SeriesInstanceUID as the manifest has it."""


def read(path: Path) -> dict[str, tuple[Decision, ...]]:
    """Read a decisions file.

    Args:
        path: CSV with the columns of `HEADER`.

    Raises:
        UsageError: The file cannot be read, or a line is not complete; it names the line.
    """
    found: dict[str, tuple[Decision, ...]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            first = [cell.strip() for cell in next(table, [])]
            if first != list(HEADER):
                raise UsageError(f"{path}:1: the first line must be {','.join(HEADER)}")
            for row in table:
                if any(cell.strip() for cell in row):
                    uid, decision = _decision(row, f"{path}:{table.line_num}")
                    found[uid] = (*found.get(uid, ()), decision)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: it cannot be read as CSV ({type(error).__name__})") from error
    return found


def _decision(row: list[str], where: str) -> tuple[str, Decision]:
    cells = [cell.strip() for cell in row]
    if len(cells) != len(HEADER):
        raise UsageError(f"{where}: it has {len(cells)} columns, not {len(HEADER)}")
    for name, cell in zip(HEADER, cells, strict=True):
        if cell in ("", *_PLACES):
            raise UsageError(f"{where}: {name} is blank: say what is decided, by whom and why")
    uid, action, by, reason = cells
    if action not in (*ACTIONS, SPLIT_LABEL):
        known = ", ".join((*ACTIONS, SPLIT_LABEL))
        raise UsageError(f"{where}: action '{action}' is not one of {known}")
    return uid, Decision(action, by, reason)


def keywords(decided: tuple[Decision, ...]) -> dict[str, bool]:
    """The decisions on one series as keywords of `dicom.read.plan`; they go before the flags."""
    found = {ACTIONS[one.action]: True for one in decided if one.action in ACTIONS}
    return {"resample": False, **found} if "allow_shear" in found else found
