"""`python kernels/bench NAME...` runs benchmarks; without a name it runs all of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"__main__", "harness"}


def main(names: list[str]) -> None:
    """Run the named benchmarks, each of which prints its table and writes `<name>.json`."""
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    for unknown in set(names) - set(known):
        sys.exit(f"no benchmark {unknown}; there are: {', '.join(known)}")
    for name in names or known:
        sys.stdout.write(importlib.import_module(name).main() + "\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
