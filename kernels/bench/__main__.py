"""Benchmarks: `python kernels/bench [NAME...] [--device cuda] [--no-wait]`, or `--readme`.

Without a name all of them run. Each prints its tables and writes `results/<name>.json`; `--readme`
puts what was written into kernels/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
from pathlib import Path

# Benchmarks may be called as packages are: ours are looked for last, and not by numba.
_here = sys.path.pop(0)
with contextlib.suppress(ImportError):
    import numba  # noqa: F401
sys.path.append(_here)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle pools must not spin beside ours

import harness  # noqa: E402
import machine  # noqa: E402
import tables  # noqa: E402

HERE = Path(__file__).resolve().parent
IS_BENCHMARK = re.compile(r"^(CASES\b|def main\()", re.MULTILINE)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--readme", action="store_true", help="only fill in kernels/README.md")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.readme:
        sys.stdout.write(f"filled in: {', '.join(tables.insert(harness.RESULTS)) or 'nothing'}\n")
    elif asked.peak:
        script, key, variant = asked.peak
        case = importlib.import_module(script).CASES[key]("cpu")
        sys.stdout.write(harness.peak_here(case, variant))
    else:
        _run(asked.names, asked.device, asked.no_wait)


def _run(names: list[str], device: str, no_wait: bool) -> None:
    files = (path for path in HERE.glob("[!_]*.py") if IS_BENCHMARK.search(path.read_text()))
    known = sorted(path.stem for path in files)
    for unknown in set(names) - set(known):
        sys.exit(f"no benchmark {unknown}; there are: {', '.join(known)}")
    if not no_wait:
        machine.wait_until_quiet()
    for name in names or known:
        module = importlib.import_module(name)
        cases = getattr(module, "CASES", None)
        if device == "cuda":
            cases = {**(cases or {}), **getattr(module, "CUDA_CASES", {})}
        told = harness.run(name, cases, device) if cases else module.main()
        sys.stdout.write(told + "\n\n")


if __name__ == "__main__":
    main()
