"""Tables of cases of several runs, paired: means, differences and their intervals."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplat import console
from medplat.errors import DataError
from medplat.metrics import bootstrap
from medplat.report.compare import Compared, Values

LEFT_OUT = ("volume_", "truth_", "error_", "probability_", "target")
Table = dict[str, dict[str, str]]


def read_cases(path: Path) -> Table:
    """`cases.csv` by case.

    Raises:
        DataError: It is not a table of cases.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"case", "patient"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path}:1: needs the columns case and patient")
        return {row["case"]: row for row in reader}


def joined(tables: Sequence[Table]) -> Table:
    """The cases of several runs as those of one: the folds of a cross-validation.

    Raises:
        DataError: A case is in two of them.
    """
    whole: Table = {}
    for table in tables:
        if twice := whole.keys() & table.keys():
            raise DataError(
                f"case {min(twice)} is in two of the joined runs: join the folds of one "
                "cross-validation, each with its own dataset.split.fold"
            )
        whole |= table
    return whole


def common_cases(tables: Sequence[Table], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cases that all runs have, in the order of the first, and their patients.

    Raises:
        DataError: There are none, or a case is of another patient in another run.
    """
    cases = [case for case in tables[0] if all(case in table for table in tables)]
    if not cases:
        raise DataError(
            f"the runs have no case in common ({', '.join(name[:8] for name in names)}): "
            "compare runs on the same data and split"
        )
    for case in cases:
        if len({table[case]["patient"] for table in tables}) > 1:
            raise DataError(f"case {case} is of different patients in the runs: not the same data")
    for name, table in zip(names, tables, strict=True):
        if len(table) > len(cases):
            console.warn(
                f"run {name[:8]}: {len(table) - len(cases)} of its cases are not in all runs"
            )
    return cases, [tables[0][case]["patient"] for case in cases]


def compare(
    tables: Sequence[Table], cases: Sequence[str], patients: Sequence[str]
) -> list[Compared]:
    """Every per-case metric that all runs have, and the AUC of two-class classifications.

    Raises:
        DataError: No metric is common to the runs.
    """
    found = []
    for metric in _metrics(tables):
        values = tuple(_column(table, cases, metric) for table in tables)
        means = tuple(bootstrap.mean(one, patients) for one in values)
        differences = tuple(bootstrap.paired(values[0], one, patients) for one in values[1:])
        found.append(Compared(metric, values, means, differences))
    auc = _auc(tables, cases, patients)
    found += [auc] if auc else []
    if not found:
        raise DataError("the runs have no metric in common: compare runs of the same task")
    return found


def _metrics(tables: Sequence[Table]) -> list[str]:
    columns = list(next(iter(tables[0].values())))
    others = [set(next(iter(table.values()))) for table in tables[1:]]
    return [
        name
        for name in columns
        if name not in ("case", "patient")
        and not name.startswith(LEFT_OUT)
        and all(name in other for other in others)
    ]


def _column(table: Table, cases: Sequence[str], name: str) -> Values:
    return np.array([_number(table[case][name]) for case in cases], dtype=np.float64)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _auc(tables: Sequence[Table], cases: Sequence[str], patients: Sequence[str]) -> Compared | None:
    """AUC of the second class, with differences from the same resamples of both runs."""
    columns = [name for name in tables[0][cases[0]] if name.startswith("probability_")]
    if len(columns) != 2 or not all(columns[1] in table[cases[0]] for table in tables):
        return None
    target = _column(tables[0], cases, "target")
    scores = [_column(table, cases, columns[1]) for table in tables]

    def of(chosen: bootstrap.Indices) -> Mapping[str, float]:
        aucs = [auc(target[chosen] == 1, score[chosen]) for score in scores]
        ours = {f"auc_{run}": value for run, value in enumerate(aucs)}
        return ours | {f"minus_{run}": value - aucs[0] for run, value in enumerate(aucs)}

    found = bootstrap.intervals(of, patients, strata=target.tolist())
    nothing = tuple(np.full(len(cases), np.nan) for _ in tables)
    means = tuple(found[f"auc_{run}"] for run in range(len(tables)))
    differences = tuple(found[f"minus_{run}"] for run in range(1, len(tables)))
    return Compared("auc", nothing, means, differences)


def auc(positive: npt.NDArray[np.bool_], score: Values) -> float:
    """Area under the ROC curve: the share of pairs ranked right, ties counted half."""
    from scipy.stats import rankdata

    ill = int(positive.sum())
    well = len(score) - ill
    if not ill or not well:
        return math.nan
    return float((rankdata(score)[positive].sum() - ill * (ill + 1) / 2) / (ill * well))
