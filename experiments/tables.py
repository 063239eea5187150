"""Measured tables as Markdown, and their places in a README."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(path: Path) -> str:
    """One measured table: a row a run, differences from the first with 95 % intervals."""
    result = json.loads(path.read_text(encoding="utf-8"))
    comparison = result["comparison"]
    shown = [one for one in result["table"].get("show", comparison) if one in comparison]
    head = ["", "parameters", "seconds", *shown]
    head += [f"{one}, minus the first" for one in shown]
    rows = [
        _row(name, parts, at, [comparison[one] for one in shown])
        for at, (name, parts) in enumerate(result["runs"].items())
    ]
    lines = ["| " + " | ".join(one) + " |" for one in (head, ["---"] * len(head), *rows)]
    cases = next(iter(comparison.values()))["means"][0] if comparison else {"n": 0, "patients": 0}
    note = (
        f"{result['title']}. {cases['n']} validation cases of {cases['patients']} patients; "
        f"95 % intervals by bootstrap over patients. {result['machine']}, commit "
        f"{result['commit']}: `python experiments {path.stem} --data FOLDER`."
    )
    return "\n".join([note, "", *lines])


def _row(
    name: str, parts: Sequence[Mapping[str, Any]], at: int, metrics: Sequence[Mapping[str, Any]]
) -> list[str]:
    seconds = "+".join(str(part["seconds"]) for part in parts)
    means = [_with_ends(one["means"][at]) for one in metrics]
    differences = [_with_ends(one["differences"][at - 1], "+") if at else "" for one in metrics]
    return [name, f"{parts[0]['parameters']:,}", seconds, *means, *differences]


def _with_ends(one: Mapping[str, Any], sign: str = "") -> str:
    if one["value"] is None:
        return "undefined"
    if one["low"] is None:
        return f"{one['value']:{sign}.3f}"
    return f"{one['value']:{sign}.3f} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"


def insert(readme: Path, results: Path) -> list[str]:
    """Fill the marked places of a README; the names of the tables that were found."""
    text = readme.read_text(encoding="utf-8")
    done: list[str] = []

    def fill(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        if not path.is_file():
            return match[0]
        done.append(match[2])
        return f"{match[1]}{markdown(path)}\n{match[3]}"

    readme.write_text(MARK.sub(fill, text), encoding="utf-8")
    return done
