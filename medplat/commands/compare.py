"""`medplat compare`: runs in pairs, case by case, as a table and a picture."""

from __future__ import annotations

import csv
import hashlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import paths
from medplat.commands import Outcome
from medplat.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from medplat.commands import compare_numbers
    from medplat.metrics.bootstrap import Interval
    from medplat.report.compare import Compared
    from medplat.track.store import Store
    from medplat.track.stored import Stored


def run(runs: Sequence[str], *, project: Path | None = None) -> Outcome:
    """Compare the cases of two or more runs; differences are from the first.

    Args:
        runs: Ids of runs of `train` or `evaluate`, or the beginnings of ids. Runs joined by `+`
            count as one: the folds of a cross-validation, each case from the run it validated.
        project: Project folder.

    Returns:
        {run_id, run_dir, runs, cases, metrics}; the comparison is a run of its own in the
        experiment of the first run, with `comparison.png` and `comparison.csv`.

    Raises:
        UsageError: A run is not known.
        DataError: A run has no table of cases, or the runs have no case or metric in common.
    """
    project = project or paths.project()
    try:
        from medplat.commands import compare_numbers
        from medplat.track import store, stored
    except ModuleNotFoundError as error:
        raise MissingExtra("medplat compare", error.name or "mlflow") from error
    opened = store.open_store(project)
    groups = [[stored.find(opened, part) for part in text.split("+")] for text in runs]
    found = [one for group in groups for one in group]
    if len({one.run_id for one in found}) < len(found):
        raise UsageError("medplat compare: the same run is named twice")
    read = iter(_tables(opened, found))
    tables = [compare_numbers.joined([next(read) for _ in group]) for group in groups]
    names = [_name(group) for group in groups]
    cases, patients = compare_numbers.common_cases(tables, [_ids(group) for group in groups])
    compared = compare_numbers.compare(tables, cases, patients)
    return _deliver(opened, groups, names, compared, cases, patients)


def _tables(opened: Store, found: Sequence[Stored]) -> list[compare_numbers.Table]:
    """The tables of this machine where all are here, else those of the store, which are hashed."""
    from medplat.commands import compare_numbers
    from medplat.track import stored

    local = [one.local for one in found if one.local is not None]
    if len(local) == len(found):
        return [compare_numbers.read_cases(path) for path in local]
    with tempfile.TemporaryDirectory() as folder:
        tables = []
        for number, one in enumerate(found):
            own = Path(folder) / str(number)
            own.mkdir()
            tables.append(compare_numbers.read_cases(stored.fetch_cases(opened, one, own)))
    return tables


def _ids(group: Sequence[Stored]) -> str:
    return "+".join(one.run_id for one in group)


def _name(group: Sequence[Stored]) -> str:
    one = group[0]
    size = f", {one.parameters:,} parameters" if one.parameters else ""
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{one.model or one.kind}{size}\n{one.run_id[:8]}{more}"


def _deliver(
    opened: Store,
    groups: Sequence[Sequence[Stored]],
    names: Sequence[str],
    compared: Sequence[Compared],
    cases: Sequence[str],
    patients: Sequence[str],
) -> Outcome:
    from medplat.report import compare as picture
    from medplat.track import runs

    ids = [_ids(group) for group in groups]
    text = "kind: compare\nruns:\n" + "".join(f"- {one}\n" for one in ids)
    tracked = runs.start(
        opened,
        experiment=groups[0][0].experiment,
        workflow_text=text,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        kind="compare",
        tags={"medplat.runs": ",".join(ids)},
    )
    note = (
        f"{len(cases)} cases of {len(set(patients))} patients; intervals: bootstrap over patients"
    )
    try:
        picture.draw(compared, names, tracked.folder / "comparison.png", note)
        _write_table(tracked.folder / "comparison.csv", compared, ids)
        for name in ("comparison.png", "comparison.csv"):
            tracked.log_file(tracked.folder / name)
        tracked.log_metrics(_flat(compared), 0)
    except BaseException:
        tracked.finish("FAILED")
        raise
    tracked.finish()
    summary = {
        "run_id": tracked.run_id,
        "run_dir": str(tracked.folder),
        "runs": ids,
        "cases": len(cases),
        "patients": len(set(patients)),
        "metrics": {one.metric: _json(one) for one in compared},
    }
    lines = [*_lines(compared, names), note, f"picture: {tracked.folder / 'comparison.png'}"]
    return Outcome(0, summary, "\n".join(lines))


def _lines(compared: Sequence[Compared], names: Sequence[str]) -> list[str]:
    lines = [f"{run + 1}: {name.replace(chr(10), '  ')}" for run, name in enumerate(names)]
    for one in compared:
        lines.append(one.metric)
        lines += [f"  {run + 1}      {_shown(mean)}" for run, mean in enumerate(one.means)]
        lines += [
            f"  {run} - 1  {_shown(difference, '+')}"
            for run, difference in enumerate(one.differences, start=2)
        ]
    return lines


def _shown(one: Interval, sign: str = "") -> str:
    ends = "no interval" if math.isnan(one.low) else f"{one.low:{sign}.4f} to {one.high:{sign}.4f}"
    return f"{one.value:{sign}.4f}  [{ends}]  {one.n} cases"


def _write_table(path: Path, compared: Sequence[Compared], ids: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("metric", "what", "run", "value", "low", "high", "cases", "patients"))
        for one in compared:
            rows = [("mean", run, mean) for run, mean in zip(ids, one.means, strict=True)]
            rows += [
                ("difference from the first", run, difference)
                for run, difference in zip(ids[1:], one.differences, strict=True)
            ]
            for what, run, number in rows:
                ends = [_cell(end) for end in (number.value, number.low, number.high)]
                writer.writerow((one.metric, what, run, *ends, number.n, number.patients))


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _flat(compared: Sequence[Compared]) -> dict[str, float]:
    """For the tracking store; the runs are counted from 1."""
    flat: dict[str, float] = {}
    for one in compared:
        for run, number in enumerate(one.differences, start=2):
            name = f"{one.metric}_{run}_minus_1"
            flat |= {name: number.value, f"{name}_low": number.low, f"{name}_high": number.high}
            flat[f"{name}_n"] = float(number.n)
    return flat


def _json(one: Compared) -> dict[str, Any]:
    return {
        "means": [_ends(mean) for mean in one.means],
        "differences": [_ends(difference) for difference in one.differences],
    }


def _ends(one: Interval) -> dict[str, Any]:
    numbers = {"value": one.value, "low": one.low, "high": one.high}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()} | {
        "n": one.n,
        "patients": one.patients,
    }
