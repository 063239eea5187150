"""Bootstrap intervals that resample patients, never images, slices or lesions.

Cases of one patient resemble one another: resampling cases would give intervals that are too
narrow (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Efron,
Better Bootstrap Confidence Intervals, JASA 82, 1987 for BCa).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]
Values = npt.NDArray[np.float64]
Method = Literal["percentile", "bca"]
PATIENCE = 20  # draws in all, as a multiple of the replicates, before a rare number is given up


@dataclass(frozen=True)
class Interval:
    """A number and how sure it is.

    Attributes:
        value: On all cases; NaN where undefined.
        low: Lower end; NaN where fewer than two patients count or too few replicates are defined.
        high: Upper end.
        n: Cases that it was computed from.
        patients: Patients of these cases, which were resampled.
        replicates: Replicates that the ends come from.
        redrawn: Replicates in which the number was undefined (one class only) and which were
            drawn again.
        level: Probability that the interval aims at.
        method: "percentile" or "bca".
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    replicates: int
    redrawn: int = 0
    level: float = 0.95
    method: Method = "percentile"


def mean(
    values: Sequence[float] | Values,
    patients: Sequence[Hashable],
    *,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Mean over the cases in which the value is defined (not NaN).

    Args:
        values: One a case.
        patients: Whose case it is.
        replicates: Resamples of the patients.
        seed: Of the resampling.
        level: Probability that the interval aims at.
        method: Percentiles of the replicates, or BCa.
    """
    array = np.asarray(values, dtype=np.float64)
    _same_length(array, patients)
    defined = np.flatnonzero(~np.isnan(array))
    array = array[defined]
    found = intervals(
        lambda chosen: {"mean": float(array[chosen].mean()) if len(chosen) else float("nan")},
        [patients[int(case)] for case in defined],
        replicates=replicates,
        seed=seed,
        level=level,
        method=method,
    )
    return found["mean"]


def paired(
    first: Sequence[float] | Values,
    second: Sequence[float] | Values,
    patients: Sequence[Hashable],
    *,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Mean of second - first on the same cases, of those where both are defined."""
    _same_length(np.asarray(first), np.asarray(second))
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return mean(difference, patients, replicates=replicates, seed=seed, level=level, method=method)


def intervals(
    statistic: Callable[[Indices], Mapping[str, float]],
    patients: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> dict[str, Interval]:
    """Intervals of several numbers of the same cases.

    Args:
        statistic: Numbers of a set of cases by name, from the cases' indices (a case may occur
            several times); NaN where undefined.
        patients: Whose case it is, for each case.
        strata: Outcome of each case: patients are resampled within the outcomes that they have.
        replicates: Resamples wanted in which the number is defined.
        seed: Of the resampling; each number comes out the same whatever others are asked for.
        level: Probability that the interval aims at.
        method: Percentiles of the replicates, or BCa.
    """
    cases = np.arange(len(patients), dtype=np.intp)
    whole = {name: float(value) for name, value in statistic(cases).items()}
    groups = _groups(patients, strata)
    count = sum(len(group) for group in groups)
    wanted = {name for name, value in whole.items() if value == value} if count > 1 else set()
    drawn, redrawn = _replicate(statistic, groups, wanted, replicates, seed)
    left_out = _jackknife(statistic, groups) if method == "bca" and wanted else {}
    found = {}
    for name, value in whole.items():
        low, high = _ends(value, drawn.get(name), left_out.get(name), level)
        kept = len(drawn[name]) if name in drawn else 0
        again = redrawn.get(name, 0)
        found[name] = Interval(value, low, high, len(cases), count, kept, again, level, method)
    return found


def _replicate(
    statistic: Callable[[Indices], Mapping[str, float]],
    groups: list[list[Indices]],
    wanted: set[str],
    replicates: int,
    seed: int,
) -> tuple[dict[str, Values], dict[str, int]]:
    """Replicates of each wanted number; one that stays undefined too often comes out empty."""
    drawn: dict[str, list[float]] = {name: [] for name in wanted}
    redrawn = dict.fromkeys(wanted, 0)
    open_names = set(wanted)
    if not wanted:
        return {}, {}
    for number, chosen in enumerate(_resamples(groups, seed)):
        if not open_names or number >= PATIENCE * replicates:
            break
        values = statistic(chosen)
        for name in sorted(open_names):
            value = float(values.get(name, float("nan")))
            if value == value:
                drawn[name].append(value)
            else:
                redrawn[name] += 1
            if len(drawn[name]) == replicates:
                open_names.discard(name)
    full = {name: np.array(values) for name, values in drawn.items() if name not in open_names}
    return full, redrawn


def _resamples(groups: list[list[Indices]], seed: int) -> Iterator[Indices]:
    """Cases of patients drawn with replacement, as many from each stratum as it has."""
    generator = np.random.default_rng(seed)
    tables = [_Table(group) for group in groups]
    while True:
        yield np.concatenate([table.draw(generator) for table in tables])


class _Table:
    """The patients of one stratum end to end, so that a draw costs no loop over patients."""

    def __init__(self, group: list[Indices]) -> None:
        self.cases = np.concatenate(group)
        self.sizes = np.array([len(own) for own in group])
        self.starts = np.cumsum(self.sizes) - self.sizes

    def draw(self, generator: np.random.Generator) -> Indices:
        patients = generator.integers(len(self.sizes), size=len(self.sizes))
        sizes = self.sizes[patients]
        shift = self.starts[patients] - (np.cumsum(sizes) - sizes)
        chosen: Indices = self.cases[np.repeat(shift, sizes) + np.arange(sizes.sum())]
        return chosen


def _groups(patients: Sequence[Hashable], strata: Sequence[Hashable] | None) -> list[list[Indices]]:
    """For each stratum its patients, each as the indices of the cases."""
    cases: dict[Hashable, list[int]] = {}
    for case, patient in enumerate(patients):
        cases.setdefault(patient, []).append(case)
    if strata is not None:
        _same_length(patients, strata)
    groups: dict[frozenset[Hashable], list[Indices]] = {}
    for own in cases.values():
        stratum = frozenset(strata[case] for case in own) if strata is not None else frozenset()
        groups.setdefault(stratum, []).append(np.array(own, dtype=np.intp))
    return list(groups.values())


def _jackknife(
    statistic: Callable[[Indices], Mapping[str, float]], groups: list[list[Indices]]
) -> dict[str, Values]:
    """Each number without one patient, for every patient."""
    members = [cases for group in groups for cases in group]
    rows = [
        statistic(np.sort(np.concatenate(members[:out] + members[out + 1 :])))
        for out in range(len(members))
    ]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def _ends(
    value: float, drawn: Values | None, left_out: Values | None, level: float
) -> tuple[float, float]:
    if drawn is None:
        return float("nan"), float("nan")
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if left_out is not None:
        tails = _corrected(value, drawn, left_out, tails)
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


def _corrected(value: float, drawn: Values, left_out: Values, tails: Values) -> Values:
    """BCa: percentiles moved for bias (z0) and for a spread that changes with the value (a)."""
    from scipy.stats import norm

    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    if not 0 < below < 1 or not np.isfinite(left_out).all():
        return tails
    bias = norm.ppf(below)
    away = left_out.mean() - left_out
    spread = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    moved = bias + norm.ppf(tails)
    return np.asarray(norm.cdf(bias + moved / (1 - acceleration * moved)), dtype=np.float64)


def _same_length(first: object, second: object) -> None:
    if len(first) != len(second):  # type: ignore[arg-type]
        raise ValueError(f"{len(first)} and {len(second)} numbers do not belong together")  # type: ignore[arg-type]
