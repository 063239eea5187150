"""What the values of a label image mean: ITK-SNAP label descriptions, JSON files beside it."""

from __future__ import annotations

import json
import re
from typing import Any

from medplat.dicom.labels import Segment
from medplat.workflow.schema import Code

SUFFIXES = (".json", ".txt", ".label")
MAX_BYTES = 1 << 20
# Index, red, green, blue, opacity, two visibilities, then the name in quotes.
_ITK_SNAP = re.compile(r'\s*(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"\s*')


def parse(text: str) -> dict[int, Segment] | None:
    """The names in a file beside a label image.

    Args:
        text: An ITK-SNAP label description, or JSON: `{"values": [{"value", "name", "code"}]}` as
            medplat convert writes it, or `{"1": "name"}`.

    Returns:
        By value, background left out; None where the file is something else.
    """
    return _from_json(text) if text.lstrip()[:1] == "{" else _from_itk_snap(text)


def series_uid(text: str) -> str | None:
    """The series that a JSON file beside a label image names."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    found = content.get("series_uid") if isinstance(content, dict) else None
    return found if isinstance(found, str) and found else None


def _from_itk_snap(text: str) -> dict[int, Segment] | None:
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    matches = [_ITK_SNAP.fullmatch(line) for line in lines]
    if not lines or None in matches:
        return None
    pairs = [(int(match[1]), match[2]) for match in matches if match]
    return {value: Segment(value, name, None) for value, name in pairs if value}


def _from_json(text: str) -> dict[int, Segment] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    values = content.get("values")
    if isinstance(values, list):
        rows = [one for one in values if isinstance(one, dict)]
        found = [_segment(one.get("value"), one.get("name"), one.get("code")) for one in rows]
    elif content and all(key.isdecimal() for key in content):
        found = [_segment(int(key), name, None) for key, name in content.items()]
    else:
        return None
    return {one.value: one for one in found if one is not None and one.value}


def _segment(value: Any, name: Any, code: Any) -> Segment | None:
    if not isinstance(value, int) or not isinstance(name, str) or not name:
        return None
    if not isinstance(code, dict):
        return Segment(value, name, None)
    texts = {key: str(code.get(key, "")) for key in ("value", "scheme", "meaning")}
    return Segment(value, name, Code(**texts))
