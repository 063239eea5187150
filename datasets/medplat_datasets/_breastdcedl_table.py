"""The clinical table of BreastDCEDL: every row checked, its texts kept as they are.

Integers are written as floats ("0.0"), blank is unknown, codes are 0 and 1; `test` is 0 for train,
1 for test and 2 for validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medplat_datasets import _breastdcedl_layout as layout
from medplat_datasets._rows import Row, fail, read_rows


@dataclass(frozen=True)
class Patient:
    """One row.

    Attributes:
        pid: As published.
        cohort: That the pid is of.
        where: `file:line`.
        cells: By the name of the common table's column.
    """

    pid: str
    cohort: layout.Cohort
    where: str
    cells: Mapping[str, str]

    def number(self, column: str) -> float | None:
        """The number in a cell; None where it is blank or the column is not there."""
        text = self.cells.get(column, "")
        return float(text) if text else None

    def index(self, column: str) -> int | None:
        """The whole number in a cell; None where it is blank or the column is not there."""
        value = self.number(column)
        return None if value is None else int(value)

    @property
    def split(self) -> str | None:
        """The official split: train, validation or test; None where the row has none."""
        code = self.index("test")
        return None if code is None else layout.SPLITS[str(code)]

    @property
    def slice_mm(self) -> float | None:
        """Distance of slices: `slice_space` where it is given, else `slice_thick`."""
        return self.number("slice_space") or self.number("slice_thick")


@dataclass(frozen=True)
class Table:
    """A clinical table.

    Attributes:
        columns: Its columns, by the names of the common table.
        patients: Usable rows by pid, in their order.
        refused: One sentence for each row that cannot be used, by pid.
        outside: One sentence for each row that names a slice, row, column or phase that its own
            image does not have, by pid.
        sha256: Of the file.
    """

    columns: tuple[str, ...]
    patients: Mapping[str, Patient]
    refused: Mapping[str, str]
    outside: Mapping[str, str]
    sha256: str


def read_table(path: Path) -> Table:
    """Read the table of all cohorts, or that of I-SPY2 alone.

    Rows that contradict themselves are refused, each with its pid and line; the others are usable.

    Raises:
        DataError: The file is not a CSV table with a column `pid`.
    """
    header, rows = read_rows(path)
    columns = tuple(layout.SYNONYMS.get(name, name) for name in header)
    if "pid" not in columns:
        fail([f"{path}:1: there is no column pid: give a table of BreastDCEDL"])
    if len(set(columns)) < len(columns):
        fail([f"{path}:1: two columns mean the same; leave one of them out"])
    spelt: dict[str, list[Row]] = {}
    for row in rows:
        spelt.setdefault(_key(row.cells["pid"]), []).append(row)
    patients: dict[str, Patient] = {}
    refused: dict[str, str] = {}
    outside: dict[str, str] = {}
    for same in spelt.values():
        pid = same[0].cells["pid"]
        problem = _twice(same) or _problem(same[0], header)
        if problem:
            refused[pid] = problem
            continue
        cells = {layout.SYNONYMS.get(name, name): text for name, text in same[0].cells.items()}
        cohort = layout.cohort_of(pid)
        assert cohort is not None
        patients[pid] = Patient(pid, cohort, same[0].where, cells)
        if problem := _outside({name: float(cells.get(name) or "nan") for name in layout.COUNTS}):
            outside[pid] = f"{same[0].where}: {pid}: {problem}"
    return Table(columns, patients, refused, outside, hashlib.sha256(path.read_bytes()).hexdigest())


def _key(pid: str) -> str:
    """The same for two spellings of one patient."""
    return pid.casefold().replace("_", "-")


def _twice(same: Sequence[Row]) -> str:
    if len(same) == 1:
        return ""
    places = " and ".join(row.where for row in same)
    return f"{places}: {same[0].cells['pid']} stands in {len(same)} rows; leave one"


def _problem(row: Row, header: Sequence[str]) -> str:
    """What is wrong with a row, with its place; "" where nothing is."""
    pid = row.cells["pid"]
    if layout.cohort_of(pid) is None:
        return f"{row.where}: {pid!r} is not a patient id of I-SPY1, I-SPY2 or Duke"
    for column, text in row.cells.items():
        wrong = _cell_problem(layout.SYNONYMS.get(column, column), text)
        if wrong:
            return f"{row.where}:{header.index(column) + 1}: {pid}: {column} is {text!r}, {wrong}"
    return ""


def _cell_problem(column: str, text: str) -> str:
    """Why a cell cannot hold this text; "" where it can."""
    if not text or column in ("pid", "dataset", "pix_type", "HR_HER2_STATUS"):
        return ""
    checked = {*layout.BINARY, *layout.COUNTS, "test", "age", "tum_vol"}
    checked |= {"slice_thick", "slice_space", "xy_spacing"}
    if column not in checked:
        return ""
    try:
        value = float(text)
    except ValueError:
        return "not a number"
    if column in layout.BINARY and value not in (0, 1):
        return "the codes are 0 and 1"
    if column == "test" and value not in (0, 1, 2):
        return "the codes are 0 train, 1 test and 2 validation"
    if column in layout.COUNTS and not (value >= 0 and value.is_integer()):
        return "not a whole number from 0"
    return "" if 0 <= value < float("inf") else "not a finite number from 0"


def _outside(numbers: Mapping[str, float]) -> str:
    """What a row places outside its own image; "" where nothing is. Blank cells are NaN."""
    for column in layout.PHASES.values():
        if numbers[column] >= numbers["n_times"]:
            return f"{column} is {numbers[column]:g}, there are {numbers['n_times']:g} phases"
    # A table of cropped volumes counts its two margin slices a side in the range only.
    crop = numbers["mask_start"] == 2 and numbers["mask_end"] == numbers["n_z"] + 1
    sizes = (numbers["n_z"] + (4 if crop else 0), numbers["n_xy"], numbers["n_xy"])
    return box_problem([(numbers[a], numbers[b]) for a, b in layout.BOX], sizes)


def box_problem(box: Sequence[tuple[float | None, float | None]], sizes: Sequence[float]) -> str:
    """What of a box (slices, rows, columns; both ends inside) lies outside the image, or ""."""
    for (start, end), size, what in zip(box, sizes, ("slices", "rows", "columns"), strict=True):
        if start is None or end is None or start != start or end != end:
            continue
        if start > end:
            return f"its box begins after it ends, in {what} {start:g} to {end:g}"
        if end >= size:
            return f"its box reaches {what} {start:g} to {end:g}, the image has {size:g}"
    return ""


def derived_status(cells: Mapping[str, str]) -> dict[str, str]:
    """HR_HER2_STATUS and HER2, where the row's subtype columns settle them and they are blank."""
    found: dict[str, str] = {}
    given = [name for name in layout.SUBTYPES if cells.get(name) and float(cells[name]) == 1]
    if len(given) == 1:
        if not cells.get("HR_HER2_STATUS"):
            found["HR_HER2_STATUS"] = given[0]
        if not cells.get("HER2"):
            found["HER2"] = "1" if given[0] == "HER2pos" else "0"
    return found
