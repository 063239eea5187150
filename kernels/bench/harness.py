"""Side-by-side timing in one process: variants take turns, and ratios are what is printed.

A figure is shown only when the outputs of all variants agree. The order of each round is reversed
from the round before (ABBA), so that a machine that slows down slows all variants alike.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One variant: medians over the rounds, and its ratio to the first variant of the table."""

    name: str
    wall_s: float
    cpu_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(
    variants: Mapping[str, Callable[[], Any]], same: Callable[[Any, Any], bool], rounds: int = 7
) -> list[Row]:
    """Time `variants` in turns; the first one is the yardstick of the ratios.

    Args:
        variants: Name to a call without arguments that does the work and returns its output.
        same: Whether two outputs agree.
        rounds: Rounds measured, after one round that warms up and checks the outputs.

    Raises:
        AssertionError: Outputs differ, so no figure would mean anything.
    """
    names = list(variants)
    outputs = {name: variants[name]() for name in names}
    for name in names[1:]:
        assert same(outputs[names[0]], outputs[name]), f"{name} differs from {names[0]}"
    del outputs
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            started, used = time.perf_counter(), time.process_time()
            variants[name]()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - used)
    rows = []
    for name in names:
        ratios = np.array(wall[name]) / np.array(wall[names[0]])
        low, high = _interval(ratios)
        rows.append(
            Row(
                name,
                statistics.median(wall[name]),
                statistics.median(cpu[name]),
                float(np.median(ratios)),
                low,
                high,
            )
        )
    return rows


def _interval(ratios: np.ndarray[Any, Any], replicates: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ratios, (replicates, len(ratios))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def report(title: str, rows: list[Row], out: Path | None = None) -> str:
    """The table as text; also written as JSON with the machine beside it."""
    lines = [title, f"{'variant':28s} {'wall s':>9s} {'cpu s':>9s}  ratio [95 %]"]
    lines += [
        f"{row.name:28s} {row.wall_s:9.4f} {row.cpu_s:9.4f}  "
        f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
        for row in rows
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    cores = os.cpu_count() or 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    busy = "  BUSY: another program was running" if load > cores else ""
    lines.append(f"{cores} cores, load {load:.1f}, peak {peak:.0f} MiB{busy}")
    if out:
        record = {
            "title": title,
            "rows": [asdict(row) for row in rows],
            "machine": {"cores": cores, "load": load, "processor": platform.processor()},
        }
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return "\n".join(lines)
