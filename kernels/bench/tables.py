"""Measured rows as text, as JSON and as the tables of kernels/README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import Noise

STEADY = 0.15  # quartiles further from the median than this make a ratio that does not count
README = Path(__file__).resolve().parent.parent / "README.md"


@dataclass(frozen=True)
class Row:
    """One variant over the rounds.

    Attributes:
        wall_s: Median seconds of a call.
        min_s: Fastest.
        cpu_s: Median CPU seconds, of all threads.
        ratio: Median over rounds of its time over the first variant's.
        ratio_low: Lower quartile of the same.
        ratio_high: Upper quartile.
        peak_mib: Memory that a call adds, None where not measured.
    """

    name: str
    wall_s: float
    min_s: float
    cpu_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_mib: float | None = None

    @property
    def steady(self) -> bool:
        """The quartiles are near the median."""
        return max(self.ratio - self.ratio_low, self.ratio_high - self.ratio) <= STEADY * self.ratio


@dataclass(frozen=True)
class Measured:
    """Rows, and how quiet the machine was."""

    rows: list[Row]
    noise: Noise


def record(
    title: str,
    measured: Measured,
    *,
    goals: Mapping[str, float] | None = None,
    memory: Mapping[str, float] | None = None,
    threads: int = 1,
    backend: str = "",
) -> dict[str, Any]:
    """One table as it is kept in JSON, with its verdicts."""
    noise, rows = measured.noise, []
    for row in measured.rows:
        said = _verdicts(row, (goals or {}).get(row.name), (memory or {}).get(row.name), noise.busy)
        rows.append({**asdict(row), "verdict": "; ".join(said)})
    return {
        "title": title,
        "threads": threads,
        "backend": backend,
        "load": [round(one, 2) for one in noise.load],
        "others_cores": round(noise.others, 2),
        "copy_varies": round(noise.copy_varies, 2),
        "busy": noise.busy,
        "rows": rows,
    }


def _verdicts(row: Row, goal: float | None, most: float | None, busy: str) -> list[str]:
    said = []
    if goal is not None:
        verdict = "met" if row.ratio >= goal else "missed"
        doubt = "" if row.steady and not busy else ", does not count: " + (busy or "not steady")
        said.append(f"goal >= {goal:g}: {verdict}{doubt}")
    if most is not None and row.peak_mib is not None:
        said.append(f"goal <= {most:g} MiB: {'met' if row.peak_mib <= most else 'missed'}")
    return said


def text(table: Mapping[str, Any]) -> str:
    """One table for a terminal."""
    width = max(len(row["name"]) for row in table["rows"]) + 1
    lines = [table["title"], f"{'':{width}s} {'min ms':>10s} {'ms':>10s}  ratio [quartiles]"]
    for row in table["rows"]:
        peak = "" if row["peak_mib"] is None else f"  +{row['peak_mib']:.0f} MiB"
        lines.append(
            f"{row['name']:{width}s} {1e3 * row['min_s']:10.3f} {1e3 * row['wall_s']:10.3f}  "
            f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
            f"{peak}  {row['verdict']}".rstrip()
        )
    lines.append(_footnote(table))
    return "\n".join(lines)


def _footnote(table: Mapping[str, Any]) -> str:
    backend = f", backend {table['backend']}" if table["backend"] else ""
    load = " -> ".join(f"{one:.1f}" for one in table["load"])
    busy = f"  BUSY: {table['busy']}" if table["busy"] else ""
    return f"threads {table['threads']}{backend}, load {load}{busy}"


def write(file: Path, records: list[dict[str, Any]], machine: Mapping[str, Any]) -> str:
    """Keep the tables of one operator as JSON; returns them as text."""
    file.parent.mkdir(exist_ok=True)
    whole = {"machine": machine, "tables": records}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return "\n\n".join(map(text, records))


def insert(results: Path) -> list[str]:
    """Put the kept results between the markers of kernels/README.md; names those it put there.

    A marker pair is `<!-- bench NAME -->` and `<!-- end -->`; NAME is a file of `results`.
    """
    done = []

    def fill(found: re.Match[str]) -> str:
        file = results / f"{found[1]}.json"
        if not file.exists():
            return found[0]
        done.append(found[1])
        return f"<!-- bench {found[1]} -->\n{_markdown(json.loads(file.read_text()))}\n<!-- end -->"

    old = README.read_text(encoding="utf-8")
    new = re.sub(r"<!-- bench (\w+) -->.*?<!-- end -->", fill, old, flags=re.DOTALL)
    README.write_text(new, encoding="utf-8")
    return done


def _markdown(whole: Mapping[str, Any]) -> str:
    made = whole["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    gpu = f"{made['gpu']['name']}, " if "gpu" in made else ""
    lines = [
        f"{gpu}{made['cpu']}, {made['cores']} cores ({' '.join(made['flags'])}); {versions}; "
        f"commit {made['commit']}, {made['date']}."
    ]
    for table in whole["tables"]:
        busy = f" **busy: {table['busy']}**" if table["busy"] else ""
        lines += [
            "",
            f"{table['title']} (threads {table['threads']}){busy}",
            "",
            "| variant | ms (min) | times ours [quartiles] | adds MiB | verdict |",
            "|---|---|---|---|---|",
        ]
        for row in table["rows"]:
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            lines.append(
                f"| {row['name']} | {1e3 * row['wall_s']:.3g} ({1e3 * row['min_s']:.3g}) | "
                f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] | {peak} | "
                f"{row['verdict']} |"
            )
    return "\n".join(lines)
