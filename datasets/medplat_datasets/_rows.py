"""Tables of cases: CSV rows with their line numbers, and what a column may hold."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medplat.errors import DataError

SPLITS = ("train", "validation", "test")
FIT = re.compile(r"[^\s./\\:*?\"<>|\x00-\x1f]([^/\\:*?\"<>|\x00-\x1f]*[^\s./\\:*?\"<>|\x00-\x1f])?")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        where: `file:line`.
        cells: Column name to text, stripped.
    """

    where: str
    cells: dict[str, str]


def read_rows(path: Path, *, delimiter: str = ",") -> tuple[list[str], list[Row]]:
    """Header and rows of a CSV file in UTF-8; empty lines are left out.

    Raises:
        DataError: The file cannot be read, or a line does not fit the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _parse(csv.reader(stream, delimiter=delimiter), path)
    except OSError as error:
        raise DataError(f"{path}: the table cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8: {error}; export it as such") from error


def _parse(lines: Iterator[list[str]], path: Path) -> tuple[list[str], list[Row]]:
    header = [name.strip() for name in next(lines, [])]
    problems = []
    if not header:
        problems.append(f"{path}:1: the table is empty; its first line names the columns")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    problems += [f"{path}:1: two columns are named {name!r}; rename one" for name in twice]
    rows = []
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}:{lines.line_num}"  # type: ignore[attr-defined]
        if len(cells) != len(header):
            problems.append(f"{where}: {len(cells)} cells, the header names {len(header)}")
            continue
        texts = (cell.strip() for cell in cells)
        rows.append(Row(where, dict(zip(header, texts, strict=True))))
    fail(problems)
    return header, rows


def chosen(
    path: Path, header: Sequence[str], rows: list[Row], where: Mapping[str, str]
) -> list[Row]:
    """The rows whose cells hold these texts, column by column.

    Raises:
        DataError: The table lacks a column of `where`, or no row is left.
    """
    fail(
        [
            f"{path}:1: no column {column!r} (dataset.where); there are: {', '.join(header)}"
            for column in where
            if column not in header
        ]
    )
    kept = [row for row in rows if all(row.cells[column] == text for column, text in where.items())]
    if rows and not kept:
        wanted = ", ".join(f"{column} = {text!r}" for column, text in where.items())
        raise DataError(f"{path}: no line has {wanted} (dataset.where)")
    return kept


def fail(problems: Sequence[str]) -> None:
    """Raise all problems as one DataError, at most twenty of them shown.

    Raises:
        DataError: There are any.
    """
    if problems:
        more = len(problems) - 20
        shown = [*problems[:20], *([f"... and {more} more"] if more > 0 else [])]
        raise DataError("\n".join(shown))


def case_problem(case: str) -> str | None:
    """What is wrong with a case id, which has to be fit for a file name."""
    if not case:
        return "the case has no name; fill the cell"
    if not FIT.fullmatch(case):
        return f"case {case!r} is not fit for a file name; leave out separators and end dots"
    return None


def split_problem(split: str) -> str | None:
    """What is wrong with the text of a split column; empty is allowed."""
    if split and split not in SPLITS:
        return f"split is {split!r}; write train, validation or test, or leave it empty"
    return None
