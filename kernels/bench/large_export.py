"""Memory and time of an export of 100,000 files, the first time and again with its index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import exports
import harness
import machine

SERIES, SLICES = 500, 200
MOST_MIB = 1024


def _run(source: Path, out: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "medplat", "convert", str(source), str(out), "-q"]
    started = time.perf_counter()
    child = subprocess.Popen([*words, "--project", str(out.parent)])
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"medplat convert ended with {child.returncode}")
    return {
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
        "index_mib": round((out / ".index.sqlite").stat().st_size / 2**20, 1),
    }


def main() -> str:
    """What the two runs took."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in", Path(name) / "out"
        exports.many(source, SERIES, SLICES)
        runs = {"first run": _run(source, out), "the same again": _run(source, out)}
    record = {"files": SERIES * SLICES, "runs": runs, "machine": machine.describe()}
    harness.RESULTS.mkdir(exist_ok=True)
    path = harness.RESULTS / "large_export.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = [f"convert of {SERIES * SLICES} files in {SERIES} series"]
    for label, run in runs.items():
        verdict = "met" if run["peak_mib"] <= MOST_MIB else "missed"
        lines.append(
            f"{label}: {run['wall_s']} s, CPU {run['cpu_s']} s, peak {run['peak_mib']} MiB "
            f"(goal <= {MOST_MIB}: {verdict}), index {run['index_mib']} MiB"
        )
    return "\n".join(lines)
