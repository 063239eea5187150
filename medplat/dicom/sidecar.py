"""What is written beside a volume: an allow-list of tags, and free text without names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

import medplat

if TYPE_CHECKING:
    from medplat.dicom.header import Identity
    from medplat.dicom.read import SeriesPlan
    from medplat.types import Volume

_TOKEN = re.compile(r"[^\W_]+", re.UNICODE)
_DIGITS = re.compile(r"\d{6,}")
# With dots alone a year has two or four digits, and two only at the end: 5.3.1 and 51.80.108.01 are
# versions.
_DATE = re.compile(
    r"(?<!\d)(?:\d{1,4}[-/]\d{1,2}[-./]\d{1,4}|\d{1,4}\.\d{1,2}[-/]\d{1,4}"
    r"|\d{4}\.\d{1,2}\.\d{1,2}|\d{1,2}\.\d{1,2}\.\d{4}|(?<!\d\.)\d{1,2}\.\d{1,2}\.\d\d(?!\.\d)"
    r"|\d{4}_\d\d_\d\d|\d\d_\d\d_\d{4}"
    r"|\d{1,2}[-./_ ]?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-./_ ]?\d{2,4})"
    r"(?!\d)",
    re.IGNORECASE,
)
_UID = re.compile(r"[012](\.\d+){3,}")
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_SPACES = re.compile(r"[\s^]+")


def scrub(text: str, identity: Iterable[str]) -> str:
    """Take out of free text what could name a person, a place or a day.

    Removed are tokens of three or more characters that also occur in `identity` (upper and lower
    case alike), runs of six or more digits, and what looks like a date.

    Args:
        text: SeriesDescription, ProtocolName and the like.
        identity: The texts of the same header that identify: PatientName, PatientID,
            OtherPatientIDs, AccessionNumber, names of physicians and operators, InstitutionName.

    Returns:
        The rest, with single spaces.
    """
    return _scrubbed(text, tuple(identity))


@lru_cache(maxsize=4096)
def _scrubbed(text: str, identity: tuple[str, ...]) -> str:
    names = _names(identity)
    text = " ".join(word for word in text.split() if word.casefold() not in names)
    text = _TOKEN.sub(lambda m: " " if m.group().casefold() in names else m.group(), text)
    text = _DATE.sub(" ", text)
    text = _DIGITS.sub(" ", text)
    return _SPACES.sub(" ", text).strip().lstrip(" :;,")


@lru_cache(maxsize=256)
def _names(identity: tuple[str, ...]) -> frozenset[str]:
    """The tokens that identify."""
    return frozenset(
        token.casefold()
        for value in identity
        for token in (*_TOKEN.findall(value), *value.split())
        if len(token) >= 3
    )


def scrub_value(value: Any, identity: Collection[str]) -> Any:
    """`scrub` for a text, or for every text inside lists and tuples; UIDs stand as they are."""
    if isinstance(value, str):
        return value if _UID.fullmatch(value) else scrub(value, identity)
    if isinstance(value, list | tuple):
        return type(value)(scrub_value(one, identity) for one in value)
    return value


def describe(
    plan: SeriesPlan,
    volume: Volume,
    *,
    keep: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    compressor: str = "none",
    phase: int | None = None,
) -> dict[str, Any]:
    """The sidecar of one output file.

    Args:
        plan: The stack that was written.
        volume: What was written, after any transforms.
        keep: "patient-id" and "demographics" let these through.
        options: How it was converted.
        compressor: What packed the file.
        phase: The phase, where each has a file of its own.

    Returns:
        Plain values: all of `types.Series` but the path, geometry, rescale, technical tags.
    """
    series = plan.series
    times = volume.phase_times_s
    start = series.study_time_s
    if phase is not None and plan.phase_times_s is not None:
        times = (plan.phase_times_s[phase],)
        start = None if start is None else start + plan.phase_times_s[phase] - plan.phase_times_s[0]
    content: dict[str, Any] = {
        one.name: getattr(series, one.name) for one in fields(series) if one.name != "path"
    }
    content |= {
        "shape": volume.array.shape,
        "spacing_mm": spacing(volume),
        "phase_times_s": times,
        "study_time_s": start,
        "phase": phase,
        "phase_time_source": plan.phase_time_source,
        "geometry": {
            "affine": volume.geometry.affine.tolist(),
            "orientation": volume.geometry.orientation,
        },
        "rescale": {"slope": volume.slope, "intercept": volume.intercept},
        "tags": _tags(plan),
        "made_by": {
            "medplat": medplat.__version__,
            "compressor": compressor,
            "options": dict(options or {}),
        },
    }
    content |= _kept(plan, keep)
    return {name: _plain(value) for name, value in content.items()}


def spacing(volume: Volume) -> list[float]:
    """Distances of voxel centres along x, y, z in mm."""
    columns = volume.geometry.affine[:3, :3]
    return [round(float(one), 6) for one in np.sqrt((columns**2).sum(axis=0))]


def _tags(plan: SeriesPlan) -> dict[str, Any]:
    """Technical values; their texts are scrubbed like a description, UIDs stand as they are."""
    names = _identity(plan).texts if plan.frames else ()
    return {name: scrub_value(value, names) for name, value in plan.metadata.items()}


def _identity(plan: SeriesPlan) -> Identity:
    return plan.frames[0][0].identity


def _kept(plan: SeriesPlan, keep: Collection[str]) -> dict[str, Any]:
    """What the user asked to keep of the person."""
    found: dict[str, Any] = {}
    if not plan.frames:
        return found
    who = _identity(plan)
    if "patient-id" in keep:
        found |= {"patient_id": who.patient_id, "issuer_of_patient_id": who.issuer}
    if "demographics" in keep:
        sex = who.sex.strip().upper()
        found |= {"sex": sex if sex in ("F", "M", "O") else None, "age_years": age_years(who.age)}
    return found


def age_years(text: str) -> float | None:
    """Years from a PatientAge such as "043Y", "018M", "006W" or "012D"; 90 at most."""
    match = _AGE.fullmatch(text.strip().upper())
    if match is None:
        return None
    years = int(match[1]) / {"Y": 1, "M": 12, "W": 52.1775, "D": 365.2425}[match[2]]
    return min(90.0, round(years, 2))


def _plain(value: Any) -> Any:
    """Tuples as lists, numpy numbers as Python's, for JSON."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
