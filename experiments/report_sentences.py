"""Findings that the rules of `medplat.text` read, against the reports' own MeSH codes.

`python experiments/report_sentences.py REPORTS.jsonl` writes results/report_sentences.json and
prints the table. A report counts as positive when a sentence says that the finding is there; in the
second pair of columns also when it says that it may be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medplat.text import sentences

MESH = {
    "pleural effusion": ("pleural effusion",),
    "pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "cardiomegaly": ("cardiomegaly",),
    "atelectasis": ("pulmonary atelectasis",),
    "nodule": ("nodule",),
    "granuloma": ("calcified granuloma", "granuloma"),
    "opacity": ("opacity", "density"),
    "airspace disease": ("airspace disease",),
    "consolidation": ("consolidation",),
    "infiltrate": ("infiltrate",),
    "pneumonia": ("pneumonia",),
    "pulmonary edema": ("pulmonary edema",),
    "vascular congestion": ("pulmonary congestion",),
    "emphysema": ("emphysema", "pulmonary emphysema", "pulmonary disease, chronic obstructive"),
    "scarring": ("cicatrix", "pulmonary fibrosis"),
    "hiatal hernia": ("hernia, hiatal",),
    "scoliosis": ("scoliosis",),
    "fracture": ("fractures, bone",),
    "catheter": ("catheters, indwelling",),
}
RESULT = Path(__file__).resolve().parent / "results" / "report_sentences.json"


def main() -> None:
    """Measure, write, print."""
    if len(sys.argv) != 2:
        sys.exit("give the file of reports, as JSON lines with findings, impression, mesh_major")
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    found = {row["id"]: sentences.extract(text_of(row)) for row in rows}
    table = [measure(name, rows, found) for name in MESH]
    result = {"counts": sentences.counts(found), "findings": table}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{result['counts']}\n\n{markdown(table)}\n")


def text_of(row: dict[str, Any]) -> str:
    """What a report says of the image."""
    return "\n\n".join(text for text in (row["findings"], row["impression"]) if text)


def measure(name: str, rows: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    """Precision and recall of one finding."""
    result: dict[str, Any] = {"finding": name}
    coded = {
        row["id"]
        for row in rows
        if any(code.split("/")[0].strip().lower() in MESH[name] for code in row["mesh_major"])
    }
    result["coded"] = len(coded)
    for title, claims in (("present", {"present"}), ("or possible", {"present", "possible"})):
        read = {
            key
            for key, said in found.items()
            if any(one.finding == name and one.claim in claims for one in said)
        }
        both = len(read & coded)
        result[title] = {
            "precision": round(both / len(read), 3) if read else None,
            "recall": round(both / len(coded), 3) if coded else None,
        }
    return result


def markdown(table: list[dict[str, Any]]) -> str:
    """The table, a row a finding."""
    lines = [
        "| finding | coded | precision | recall | precision, or possible | recall, or possible |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        ends = [
            row[title][key]
            for title in ("present", "or possible")
            for key in ("precision", "recall")
        ]
        lines.append(f"| {row['finding']} | {row['coded']} | " + " | ".join(map(str, ends)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
