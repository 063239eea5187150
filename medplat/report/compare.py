"""The picture of a comparison: cases, means and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplat.metrics.bootstrap import Interval

Values = npt.NDArray[np.float64]
# Told apart by colour-blind readers, and by their brightness in grey (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
ROWS = 6


@dataclass(frozen=True, eq=False)
class Compared:
    """One metric of several runs on the same cases.

    Attributes:
        metric: Its name.
        values: For each run, one number a case; NaN where undefined.
        means: For each run, with interval.
        differences: For each run but the first, its mean difference from the first.
    """

    metric: str
    values: tuple[Values, ...]
    means: tuple[Interval, ...]
    differences: tuple[Interval, ...]


def draw(compared: Sequence[Compared], names: Sequence[str], path: Path, note: str = "") -> None:
    """Write the picture as PNG: a row a metric, the runs on the left, differences on the right.

    Args:
        compared: The metrics; the first six are drawn.
        names: What the runs are called.
        path: Where to.
        note: One line below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(compared)[:ROWS]
    runs = len(names)
    height = 0.9 + len(shown) * (0.75 + 0.32 * runs)
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), one in zip(axes, shown, strict=True):
        _draw_runs(left, one, names)
        _draw_differences(right, one)
    first = names[0].splitlines()[0].partition(",")[0]
    axes[0][0].set_title("each case, mean and 95 % interval", fontsize=10)
    axes[0][1].set_title(f"difference from the first: {first}", fontsize=10)
    if note:
        figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_runs(axis: Any, one: Compared, names: Sequence[str]) -> None:
    places = [len(names) - 1 - run for run in range(len(names))]
    for run, place in enumerate(places):
        colour = COLOURS[run % len(COLOURS)]
        _dots(axis, one.values[run], place, colour)
        _bar(axis, one.means[run], place, colour, f"{one.means[run].value:.3f}")
    axis.set_yticks(places, list(names), fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlabel(one.metric, fontsize=9)
    _tidy(axis)


def _draw_differences(axis: Any, one: Compared) -> None:
    count = len(one.values)
    axis.axvline(0, color="0.4", linewidth=1, linestyle="--")
    for run, difference in enumerate(one.differences, start=1):
        place, colour = count - 1 - run, COLOURS[run % len(COLOURS)]
        _dots(axis, one.values[run] - one.values[0], place, colour)
        _bar(axis, difference, place, colour, f"{difference.value:+.3f}")
    axis.set_yticks([])
    axis.set_ylim(-0.6, count - 0.4)
    axis.set_xlabel(f"{one.metric}, paired by case", fontsize=9)
    _tidy(axis)


def _dots(axis: Any, values: Values, place: float, colour: str) -> None:
    """One dot a case, spread below the line by a fixed pattern."""
    defined = values[np.isfinite(values)]
    spread = place - 0.14 - 0.26 * ((np.arange(len(defined)) * 0.618034) % 1.0)
    axis.plot(defined, spread, ".", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)


def _bar(axis: Any, interval: Interval, place: float, colour: str, text: str) -> None:
    if math.isnan(interval.value):
        return
    if not math.isnan(interval.low):
        axis.plot((interval.low, interval.high), (place, place), color=colour, linewidth=2.2)
    axis.plot(interval.value, place, "o", color=colour, markersize=6)
    axis.annotate(
        text, (interval.value, place), xytext=(0, 6), textcoords="offset points",
        ha="center", va="bottom", fontsize=8, zorder=3,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip


def _tidy(axis: Any) -> None:
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="0.9", linewidth=0.7)
    axis.set_axisbelow(True)
