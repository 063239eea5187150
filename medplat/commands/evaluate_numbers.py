"""From the numbers of single cases to those of a set, with intervals, baselines and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medplat import tasks
from medplat.metrics import bootstrap
from medplat.metrics.bootstrap import Interval
from medplat.tasks import classify, segment
from medplat.workflow.schema import TrainWorkflow

Row = Mapping[str, Any]
FEW = 10  # fewer positives or negatives than this are too few to rely on
WORST = 5


@dataclass(frozen=True)
class Numbers:
    """What is known of a model on a set of cases.

    Attributes:
        metrics: Name to value with interval.
        spread: Median, quartiles and extremes of the per-case metrics.
        counts: Whole numbers and baselines that have no interval.
        notes: One sentence for each number that must not be relied on.
        worst: For the main per-case metric of each label, the worst cases.
    """

    metrics: dict[str, Interval]
    spread: dict[str, dict[str, float]]
    counts: dict[str, float]
    notes: list[str]
    worst: dict[str, list[tuple[str, float]]]


def measure(workflow: TrainWorkflow, rows: Sequence[Row], *, replicates: int, seed: int) -> Numbers:
    """Numbers of a set of cases.

    Args:
        workflow: The model's own.
        rows: `case`, `patient` and the metrics of each case.
        replicates: Of the bootstrap over patients.
        seed: Of the bootstrap.
    """
    of = {"segment": _segment, "classify": _classify, "restore": _restore}[workflow.task.kind]
    return of(workflow, rows, replicates, seed)


def _restore(workflow: TrainWorkflow, rows: Sequence[Row], replicates: int, seed: int) -> Numbers:
    """Each metric of the restored image, the same of its input, and the gain in PSNR."""
    patients = [row["patient"] for row in rows]
    columns = {name: column(rows, name) for name in _numeric(rows)}
    metrics = {
        name: bootstrap.mean(values, patients, replicates=replicates, seed=seed)
        for name, values in columns.items()
    }
    gain = columns["psnr"] - columns["psnr_input"]
    metrics["psnr_gain"] = bootstrap.mean(gain, patients, replicates=replicates, seed=seed)
    spread = {name: _spread(values) for name, values in columns.items()}
    few = [f"{len(rows)} cases: too few to rely on"] if len(rows) < FEW else []
    return Numbers(metrics, spread, {}, few, {"psnr": _worst(rows, "psnr")})


def _segment(workflow: TrainWorkflow, rows: Sequence[Row], replicates: int, seed: int) -> Numbers:
    patients = [row["patient"] for row in rows]
    names = [name for name in _numeric(rows) if not name.startswith(("volume_", "truth_"))]
    metrics = {
        name: bootstrap.mean(column(rows, name), patients, replicates=replicates, seed=seed)
        for name in names
    }
    whole = bootstrap.intervals(
        _summary_of(workflow, _only(rows, "dice_"), ("dice",)),
        patients,
        replicates=replicates,
        seed=seed,
    )
    spread = {name: _spread(column(rows, name)) for name in names}
    counts, notes = _empty_references(workflow, rows)
    worst = {name: _worst(rows, name) for name in names if name.startswith("dice_")}
    return Numbers(whole | metrics, spread, counts, notes, worst)


def _classify(workflow: TrainWorkflow, rows: Sequence[Row], replicates: int, seed: int) -> Numbers:
    patients = [row["patient"] for row in rows]
    plain = ("accuracy", "balanced_accuracy", "log_loss")
    metrics = bootstrap.intervals(
        _summary_of(workflow, rows, plain), patients, replicates=replicates, seed=seed
    )
    metrics |= bootstrap.intervals(
        _summary_of(workflow, rows, ("auc",)),
        patients,
        strata=[row["target"] for row in rows],
        replicates=replicates,
        seed=seed,
    )
    whole = classify.summary(workflow, _numbers(rows))
    classes = classify.section(workflow).classes
    counts = {f"n_{name}": whole.get(f"n_{name}", 0.0) for name in classes}
    notes = [
        f"{name}: {counts[f'n_{name}']:.0f} cases of {len(rows)}: too few to rely on"
        for name in classes
        if min(counts[f"n_{name}"], len(rows) - counts[f"n_{name}"]) < FEW
    ]
    counts["accuracy_majority"] = whole.get("accuracy_majority", math.nan)
    worst = {"log_loss": _worst(rows, "log_loss", largest=True)}
    return Numbers(metrics, {}, counts, notes, worst)


def _summary_of(
    workflow: TrainWorkflow, rows: Sequence[Row], names: Sequence[str]
) -> Callable[[bootstrap.Indices], dict[str, float]]:
    """The task's own summary, limited to some names, as a function of the chosen cases."""
    task, numbers = tasks.get(workflow.task.kind), _numbers(rows)

    def of(chosen: bootstrap.Indices) -> dict[str, float]:
        found = task.summary(workflow, [numbers[int(case)] for case in chosen])
        return {name: found.get(name, math.nan) for name in names}

    return of


def _empty_references(
    workflow: TrainWorkflow, rows: Sequence[Row]
) -> tuple[dict[str, float], list[str]]:
    """Cases without a structure: how many, and in how many the model saw one all the same."""
    counts, notes = {}, []
    for label in segment.section(workflow).labels:
        truth, ours = (
            column(rows, f"truth_ml_{label.name}"),
            column(rows, f"volume_ml_{label.name}"),
        )
        empty = truth == 0
        counts[f"empty_{label.name}"] = float(empty.sum())
        counts[f"empty_found_{label.name}"] = float((empty & (ours > 0)).sum())
        defined = int(np.isfinite(column(rows, f"dice_{label.name}")).sum())
        if defined < FEW:
            notes.append(f"dice_{label.name}: {defined} cases: too few to rely on")
    return counts, notes


def with_errors(row: Row) -> dict[str, Any]:
    """The row with the signed volume error of each label, in ml and in % of the truth."""
    extended = dict(row)
    for name, ours in row.items():
        if not name.startswith("volume_ml_"):
            continue
        label = name.removeprefix("volume_ml_")
        truth = row[f"truth_ml_{label}"]
        extended[f"error_ml_{label}"] = ours - truth
        extended[f"error_percent_{label}"] = (ours / truth - 1) * 100 if truth > 0 else math.nan
    return extended


def column(rows: Sequence[Row], name: str) -> bootstrap.Values:
    """One number of all cases; NaN where a case lacks it."""
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _numeric(rows: Sequence[Row]) -> list[str]:
    return list(
        dict.fromkeys(
            name for row in rows for name, value in row.items() if isinstance(value, float)
        )
    )


def _numbers(rows: Sequence[Row]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if isinstance(value, float)} for row in rows
    ]


def _only(rows: Sequence[Row], prefix: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name.startswith(prefix)} for row in rows]


def _spread(values: bootstrap.Values) -> dict[str, float]:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return {}
    names = ("min", "quartile_1", "median", "quartile_3", "max")
    cuts = np.quantile(defined, (0, 0.25, 0.5, 0.75, 1))
    return {name: float(cut) for name, cut in zip(names, cuts, strict=True)}


def _worst(rows: Sequence[Row], name: str, *, largest: bool = False) -> list[tuple[str, float]]:
    pairs = [(row["case"], row[name]) for row in rows if name in row and not math.isnan(row[name])]
    return sorted(pairs, key=lambda pair: -pair[1] if largest else pair[1])[:WORST]


def as_json(numbers: Numbers) -> dict[str, Any]:
    """For `metrics.json`: full precision, null where undefined, no case ids."""
    metrics = {
        name: asdict(one) | {"spread": numbers.spread.get(name)}
        for name, one in numbers.metrics.items()
    }
    found = {"metrics": metrics, "counts": numbers.counts, "notes": numbers.notes}
    return dict(finite(found))


def finite(value: Any) -> Any:
    """The same with null instead of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(numbers: Numbers) -> str:
    """A table for the terminal."""
    lines = []
    for name, one in numbers.metrics.items():
        ends = "no interval" if math.isnan(one.low) else f"{one.low:.4g} to {one.high:.4g}"
        again = f", {one.redrawn} redrawn" if one.redrawn else ""
        lines.append(
            f"{name:<28} {one.value:>9.4g}  [{ends}]  {one.n} cases, {one.patients} patients{again}"
        )
    told = {name: count for name, count in numbers.counts.items() if count}
    lines += [f"{name:<28} {count:>9.4g}" for name, count in told.items()]
    lines += [f"note: {note}" for note in numbers.notes]
    for name, cases in numbers.worst.items():
        shown = ", ".join(f"{case} {value:.3g}" for case, value in cases)
        lines.append(f"worst {name}: {shown}")
    return "\n".join(lines)
