"""Tables of models trained alike: `python experiments NAME --data FOLDER`, or `--readme`.

A table is `NAME.yaml` beside this file: the runs and what they have in common, fixed before the
first run. Each run is a `medplat train` in a process of its own; `medplat compare` over all of them
comes last. What is done is written to `results/NAME.json` at once, and the same command goes on
where it was stopped. Without a name the tables are listed. `--readme` puts what was measured into
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tables
from ruamel.yaml import YAML

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
RESULTS = HERE / "results"
WORK = HERE / ".work"  # MLflow's store and the weights; not in the repository


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--readme", action="store_true", help="only fill in README.md")
    asked = parser.parse_args()
    known = {path.stem: path for path in sorted(HERE.glob("*.yaml"))}
    if asked.readme:
        done = tables.insert(HERE / "README.md", RESULTS)
        sys.stdout.write(f"filled in: {', '.join(done) or 'nothing'}\n")
        return
    if not asked.names:
        sys.stdout.write(
            "".join(f"{name}: {_read(path)['title']}\n" for name, path in known.items())
        )
        return
    for unknown in set(asked.names) - set(known):
        sys.exit(f"no table {unknown}; there are: {', '.join(known)}")
    if asked.data is None or not asked.data.is_dir():
        sys.exit("give --data FOLDER, the folder that holds the data sets of the table")
    for name in asked.names:
        measure(known[name], asked.data.resolve())
        sys.stdout.write(tables.markdown(RESULTS / f"{name}.json") + "\n")


def measure(path: Path, data: Path) -> None:
    """Do the runs of a table that are not done yet, then compare all of them."""
    table = _read(path)
    name = path.stem
    project = WORK / name
    (project / ".medplat").mkdir(parents=True, exist_ok=True)
    result = _begun(RESULTS / f"{name}.json", table)
    for run in table["runs"]:
        parts = result["runs"].setdefault(run["name"], [])
        for settings in list(_variants(table, run))[len(parts) :]:
            sys.stderr.write(f"{name}: {run['name']} {' '.join(settings)}\n")
            parts.append(_train(run["workflow"], [*settings, *_places(table, data)], project))
            _write(result, name)
    if not result["comparison"]:
        ids = ["+".join(part["run_id"] for part in parts) for parts in result["runs"].values()]
        result["comparison"] = _medplat("compare", *ids, "--project", str(project))["metrics"]
        _write(result, name)


def _read(path: Path) -> dict[str, Any]:
    return dict(YAML(typ="safe").load(path.read_text(encoding="utf-8")))


def _variants(table: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[list[str]]:
    """Settings of each training of a run: one for each seed and fold."""
    common = {**(table.get("set") or {}), **(run.get("set") or {})}
    for seed in table.get("seeds", [0]):
        for fold in range(1, table.get("folds", 1) + 1):
            settings = common | {"train.seed": seed}
            if "folds" in table:
                settings |= {"dataset.split.folds": table["folds"], "dataset.split.fold": fold}
            yield [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _places(table: Mapping[str, Any], data: Path) -> list[str]:
    return [f"{key}={data / where}" for key, where in table["data"].items()]


def _train(workflow: str, settings: Sequence[str], project: Path) -> dict[str, Any]:
    """One training; one that was stopped is taken up again."""
    file = PROJECT / "workflows" / "train" / f"{workflow}.yaml"
    given = [word for one in settings for word in ("--set", one)]
    command = ["train", str(file), *given, "--project", str(project)]
    start = time.monotonic()
    found = _medplat(*command, "--resume", may_fail=True) or _medplat(*command)
    folder = Path(found["run_dir"])
    card = json.loads((folder / "models" / "best" / "card.json").read_text(encoding="utf-8"))
    return {
        "run_id": found["run_id"],
        "parameters": card["parameters"],
        "seconds": round(time.monotonic() - start),
        "metrics": {key: _short(value) for key, value in found["metrics"].items()},
    }


def _medplat(*arguments: str, may_fail: bool = False) -> dict[str, Any]:
    """The JSON that a verb prints; nothing when it had nothing to resume."""
    done = subprocess.run(
        [sys.executable, "-m", "medplat", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if may_fail else None,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    if may_fail and done.returncode == 2:
        return {}
    sys.exit(f"medplat {' '.join(arguments[:2])} ended with {done.returncode}; run this again")


def _begun(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before, if it was this very table."""
    fixed = {key: table[key] for key in table if key != "title"}
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["table"] == fixed:
            return result
        sys.exit(f"{path}: was measured with another table; remove it to measure this one")
    return {
        "title": table["title"],
        "table": fixed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "commit": _commit(),
        "runs": {},
        "comparison": {},
    }


def _commit() -> str:
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _write(result: Mapping[str, Any], name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    part = RESULTS / f"{name}.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()
