"""What must not reach the tracking store: paths of the user's files, ids that name a patient."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medplat.pseudonym import Pseudonyms

REMOVED = "not-stored"
_PATH_KEYS = frozenset({"root", "file", "index", "table", "folder", "path"})
_OURS = re.compile(r"^(patient|case)-[0-9a-z]{10}$")


def is_path(key: str, text: str) -> bool:
    """Whether a setting is a file of the user's: by its key, or by how it looks."""
    last = key.rpartition(".")[2]
    if last in _PATH_KEYS or (last == "model" and not text.startswith(("models:", "runs:"))):
        return True
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return absolute or text.startswith(("./", "../", "~", "..\\", "file:"))


def without_paths(workflow_text: str) -> str:
    """A resolved workflow with the paths of the user's files replaced by `not-stored`.

    They stand in the sections `dataset` and `evaluate`. A model does not need its data to be run.
    """
    from ruamel.yaml import YAML

    editor = YAML(typ="rt")
    editor.preserve_quotes = True
    editor.width = 100
    document = editor.load(workflow_text)
    for section in ("dataset", "evaluate"):
        if isinstance(document.get(section), dict):
            _replace(document[section])
    text = io.StringIO()
    editor.dump(document, text)
    return text.getvalue()


def _replace(node: Any) -> None:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        if isinstance(value, str) and is_path(str(key), value):
            node[key] = REMOVED
        elif isinstance(value, (dict, list)):
            _replace(value)


def hash_cases(path: Path, pseudonyms: Pseudonyms) -> str:
    """A case table with ids that could name a patient replaced by salted hashes.

    `patient` is always hashed, unless it is one of medplat's own pseudonyms. `case` is hashed where
    it contains the patient's id. The same id gives the same hash, so tables can still be paired.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        fields = list(reader.fieldnames or [])
        rows = [_hash_row(row, pseudonyms) for row in reader]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _hash_row(row: dict[str, str], pseudonyms: Pseudonyms) -> dict[str, str]:
    patient, case = row.get("patient") or "", row.get("case") or ""
    hashed = dict(row)
    if patient and not _OURS.match(patient):
        hashed["patient"] = pseudonyms.patient(patient, "")
        if patient in case:
            hashed["case"] = "case-" + pseudonyms.digest(case)[:10]
    return hashed
