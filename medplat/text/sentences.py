"""Radiology reports as minimal sentences: "There is no X", "There may be X of Y", "There is X".

By rules, on any machine; in the manner of NegEx (Chapman et al., J Biomed Inform 2001,
doi 10.1006/jbin.2001.1029): words that deny or doubt hold for the findings behind them, until a
word that ends their scope. Every sentence points at the place in the report that it came from. The
same sentences made elsewhere, by a language model for instance, are read from a file of JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medplat.errors import DataError
from medplat.text import lexicon

Claim = Literal["present", "possible", "absent"]
TEMPLATES: dict[Claim, str] = {
    "present": "There is {}.",
    "possible": "There may be {}.",
    "absent": "There is no {}.",
}
KEPT_SECTIONS = ("findings", "impression", "conclusion", "report")
_SECTION = re.compile(
    r"(?im)^[ \t]*(findings|impression|conclusion|report|indication|history|clinical history|"
    r"comparison|technique|exam(?:ination)?|procedure|recommendations?)[ \t]*:"
)
_STOP = re.compile(r"(?<!\d)[.?!]+(?=\s|$)|(?<=\d)\.(?=\s|$)|\n\s*\n")
_FINDINGS = {name: lexicon.any_of(patterns) for name, patterns in lexicon.FINDINGS.items()}
_NORMAL = {name: lexicon.any_of(patterns) for name, patterns in lexicon.NORMAL.items()}
_DENIES, _DOUBTS = lexicon.any_of(lexicon.DENIES), lexicon.any_of(lexicon.DOUBTS)
_DENIED, _DOUBTED = lexicon.any_of(lexicon.DENIED), lexicon.any_of(lexicon.DOUBTED)
_ENDS = re.compile(
    rf"{lexicon.any_of(lexicon.ENDS).pattern}|[;:]|,(?= (?:{lexicon.ENDS_AFTER_COMMA})\b)"
)
_AT = re.compile(
    r" (?:(?!and |or )[\w.]+ ){0,3}?(?:in|of(?! \d)|at|within|along|over) ([\w /-]{0,50})"
)
_SIDE, _PLACE = lexicon.any_of((lexicon.SIDES,)), lexicon.any_of(lexicon.PLACES)


@dataclass(frozen=True)
class Sentence:
    """One statement of a report.

    Attributes:
        text: The minimal sentence.
        finding: Canonical name of what it is about; "" for sentences from a file.
        claim: Whether it is said to be there.
        location: Side and place, as far as they are named; "" otherwise.
        start: First character in the report.
        end: One behind the last.
    """

    text: str
    finding: str
    claim: Claim
    location: str
    start: int
    end: int


def extract(report: str) -> list[Sentence]:
    """The minimal sentences of a report, each once, in the order of the text.

    Args:
        report: Free text; where it has headings, only findings and impression are read.

    Returns:
        Nothing for a report that names no finding.
    """
    found: dict[str, Sentence] = {}
    for start, end in _kept(report):
        for first, last in _split(report, start, end):
            for sentence in _statements(report[first:last], first):
                found.setdefault(sentence.text, sentence)
    return list(found.values())


def read_file(path: Path) -> dict[str, list[Sentence]]:
    """Sentences that were made elsewhere, by report.

    Args:
        path: JSON lines, each with `id` and `sentences`, a list of texts.

    Raises:
        DataError: A line is not of that kind; the sentence names it.
    """
    found: dict[str, list[Sentence]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the sentences cannot be read: {type(error).__name__}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, texts = str(row["id"]), [str(text).strip() for text in row["sentences"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number}: needs {{"id": ..., "sentences": [...]}} ({type(error).__name__})'
            ) from error
        if key in found:
            raise DataError(f"{path}:{number}: report {key} occurs twice")
        found[key] = [Sentence(text, "", _claim_of(text), "", 0, 0) for text in texts if text]
    return found


def _claim_of(text: str) -> Claim:
    low = text.lower()
    if low.startswith(("there is no ", "there are no ", "no ")):
        return "absent"
    return "possible" if low.startswith("there may be ") else "present"


def _kept(report: str) -> Iterator[tuple[int, int]]:
    """Spans of the sections that describe the image; the whole text where there is no heading."""
    headings = list(_SECTION.finditer(report))
    if not headings:
        yield 0, len(report)
        return
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    for heading, end in zip(headings, ends, strict=True):
        if heading[1].lower() in KEPT_SECTIONS:
            yield heading.end(), end


def _split(report: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for stop in _STOP.finditer(report, start, end):
        yield start, stop.start()
        start = stop.end()
    yield start, end


def _statements(sentence: str, offset: int) -> Iterator[Sentence]:
    low = sentence.lower()
    spans = [
        (match.start(), match.end(), name, "normal" in kind)
        for kind, patterns in (("normal", _NORMAL), ("finding", _FINDINGS))
        for name, pattern in patterns.items()
        for match in pattern.finditer(low)
    ]
    for start, end, name, normal in sorted(spans):
        if _inside_longer(start, end, spans):
            continue
        claim: Claim = "absent" if normal else _claim(low, start, end)
        side, place = ("", "") if normal else _location(low, start, end)
        where = " ".join(word for word in (side, place) if word)
        said = f"{name} of the {where}" if place else f"{side} {name}".strip()
        text = TEMPLATES[claim].format(said)
        yield Sentence(text, name, claim, where, offset + start, offset + end)


def _inside_longer(start: int, end: int, spans: list[tuple[int, int, str, bool]]) -> bool:
    return any(
        first <= start and end <= last and last - first > end - start for first, last, *_ in spans
    )


def _claim(low: str, start: int, end: int) -> Claim:
    """What is said of the finding at start:end of a sentence."""
    scope = 0
    for stop in _ENDS.finditer(low, 0, start):
        scope = stop.start()
    before = low[scope:start]
    behind = _ENDS.split(low[end:], maxsplit=1)[0]
    doubted = _DOUBTED.search(behind) or any(one[0] != "or" for one in _DOUBTS.finditer(before))
    denied = _DENIES.search(before) and not re.search(r"(can|could) ?not", before)
    if denied or (_DENIED.search(behind) and not _DOUBTED.search(behind)):
        return "absent"
    return "possible" if doubted else "present"


def _location(low: str, start: int, end: int) -> tuple[str, str]:
    """Side and place, named before the finding or behind it after a preposition; "" for none."""
    before = low[max(0, start - 40) : start].rpartition(",")[2]
    behind = _AT.match(_ENDS.split(low[end:], maxsplit=1)[0])
    words = f"{before} {behind[1] if behind else ''}"
    side, place = _SIDE.search(words), _PLACE.search(words)
    return (side[0] if side else ""), (place[0] if place else "")


def counts(reports: Mapping[str, list[Sentence]]) -> dict[str, int]:
    """How many reports gave no sentence, and how many sentences there are of each claim."""
    claims = [one.claim for found in reports.values() for one in found]
    return {
        "reports": len(reports),
        "empty": sum(not found for found in reports.values()),
        **{claim: claims.count(claim) for claim in TEMPLATES},
    }
