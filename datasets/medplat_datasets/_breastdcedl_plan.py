"""Which series of an export are the phases of a patient's baseline DCE, and why not the others.

I-SPY1 and I-SPY2 keep all phases in one series, Duke one series a phase, under two kinds of name.
Series numbers have gaps and say nothing of the order: time does, and the names must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from medplat.errors import Refused
from medplat.types import Series
from medplat_datasets import _breastdcedl_layout as layout

WANTED = ("*dyn*", "*dce*")
UNWANTED = (
    "*sub*", "*mip*", "*reformat*", "*scout*", "*: ser", "*percent*", "*: pe*", "*mask*",
)  # fmt: skip
_USABLE = ("converted", "warned")
_NUMBERED = re.compile(r"\bph(?:ase)?\s*(\d+)", re.IGNORECASE)
_PASS = re.compile(r"\b(\d+)(?:st|nd|rd|th)\s+pass", re.IGNORECASE)
_PRE = re.compile(r"\bpre(?:contrast)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """What one series is in the data set.

    Attributes:
        series: The series (one stack of it).
        pid: The patient's id; "" where it is not of the data set.
        role: "dce", or "" where the series is not taken.
        phase: Of a series that is one phase; None where it holds all of them.
        code: Why the whole patient is refused; "" else.
        reason: Why it is taken, or not.
    """

    series: Series
    pid: str
    role: str
    phase: int | None = None
    code: str = ""
    reason: str = ""


def plan(
    series: Sequence[Series],
    pids: Mapping[str, str],
    visits: Mapping[str, str],
    *,
    wanted: Sequence[str] = WANTED,
    unwanted: Sequence[str] = UNWANTED,
    exclude: Sequence[str] = (),
) -> list[Choice]:
    """One choice for each series, patient by patient.

    Args:
        series: All series of an export, refused ones too.
        pids: PatientID by the pseudonym in `Series.patient`.
        visits: Name of the visit by StudyInstanceUID, where the headers state it.
        wanted: Patterns of SeriesDescription, any of which a DCE series fits.
        unwanted: Patterns, none of which it fits.
        exclude: Patients that are left out.
    """
    found: list[Choice] = []
    persons: dict[str, list[Series]] = {}
    for one in series:
        persons.setdefault(one.patient, []).append(one)
    for person in sorted(persons, key=lambda name: (pids.get(name, ""), name)):
        pid = pids.get(person, "")
        cohort = layout.cohort_of(pid)
        if cohort is None:
            reason = "the PatientID is of none of the cohorts"
            found += [Choice(one, "", "", reason=reason) for one in persons[person]]
        elif pid in exclude:
            reason = "the patient is left out by dataset.exclude"
            found += [Choice(one, pid, "", reason=reason) for one in persons[person]]
        else:
            found += _patient(persons[person], pid, cohort, visits, wanted, unwanted)
    return found


def _patient(
    series: Sequence[Series],
    pid: str,
    cohort: layout.Cohort,
    visits: Mapping[str, str],
    wanted: Sequence[str],
    unwanted: Sequence[str],
) -> list[Choice]:
    reasons = {id(one): _unfit(one, wanted, unwanted) for one in series}
    dynamic = [one for one in series if not reasons[id(one)]]
    others = [Choice(one, pid, "", reason=reasons[id(one)]) for one in series if reasons[id(one)]]
    try:
        study = _baseline(dynamic, visits, cohort)
        later = [one for one in dynamic if one.study_uid != study]
        others += [Choice(one, pid, "", reason="another visit than the first") for one in later]
        dynamic = [one for one in dynamic if one.study_uid == study]
        return _phases(dynamic, pid) + others
    except Refused as error:
        refused = [
            Choice(one, pid, "", code=error.code, reason=error.message)
            for one in dynamic or list(series)
        ]
        return refused + (others if dynamic else [])


def _unfit(one: Series, wanted: Iterable[str], unwanted: Iterable[str]) -> str:
    """Why a series is no DCE series of a patient; "" where it may be one."""
    text = one.description.casefold()
    if one.modality != "MR":
        return f"its modality is {one.modality or 'not stated'}"
    if one.status == "skipped":
        return f"skipped by convert: {' '.join(one.codes)}"
    if not any(fnmatchcase(text, pattern.casefold()) for pattern in wanted):
        return "its description is not that of a dynamic series"
    for pattern in unwanted:
        if fnmatchcase(text, pattern.casefold()):
            return f"its description fits {pattern}"
    return ""


def _baseline(dynamic: Sequence[Series], visits: Mapping[str, str], cohort: layout.Cohort) -> str:
    """The study of the first visit.

    Raises:
        Refused: MISSING_INPUT, or AMBIGUOUS_INPUT where the headers do not tell visits apart.
    """
    studies = list(dict.fromkeys(one.study_uid for one in dynamic))
    if not studies:
        raise Refused("MISSING_INPUT", "the patient has no dynamic series")
    first = [study for study in studies if visits.get(study) == cohort.baseline]
    if cohort.baseline and len(first) == 1:
        return first[0]
    unnamed = [study for study in studies if study not in visits]
    if not unnamed and cohort.baseline and not first:
        names = ", ".join(sorted(visits[study] for study in studies))
        raise Refused("MISSING_INPUT", f"the first visit {cohort.baseline} is not there ({names})")
    if len(studies) == 1:
        return studies[0]
    if len(unnamed) == 1 and not any(
        one.status in _USABLE for one in dynamic if one.study_uid == unnamed[0]
    ):
        return unnamed[0]  # Its own verdict is why the patient is refused.
    raise Refused(
        "AMBIGUOUS_INPUT",
        f"{len(studies)} studies hold a dynamic series and do not say which is the first visit: "
        "export the first visit alone",
    )


def _phases(dynamic: Sequence[Series], pid: str) -> list[Choice]:
    """The series that hold the phases.

    Raises:
        Refused: They do not make one dynamic study.
    """
    for one in dynamic:
        if one.status not in _USABLE:
            code = one.codes[0] if one.codes else "NO_INPUT"
            raise Refused(code, f"dynamic series {one.number} was {one.status} by convert")
    whole = [one for one in dynamic if len(one.shape) == 4]
    if len(dynamic) == 1 and whole:
        return [Choice(dynamic[0], pid, "dce", reason="all phases in one series")]
    if whole:
        numbers = ", ".join(str(one.number) for one in dynamic)
        text = f"the dynamic series {numbers} all fit; name the right one with dataset.wanted"
        raise Refused("AMBIGUOUS_INPUT", text)
    if len(dynamic) == 1:
        raise Refused("MISSING_INPUT", f"series {dynamic[0].number} is a single phase")
    ordered = _in_time(dynamic)
    _one_grid(ordered)
    return [
        Choice(one, pid, "dce", phase, reason=f"phase {phase} by acquisition time")
        for phase, one in enumerate(ordered)
    ]


def _in_time(dynamic: Sequence[Series]) -> list[Series]:
    """Series of one phase each in the order of their acquisition, which their names confirm."""
    times = [one.study_time_s for one in dynamic]
    if None in times or len(set(times)) < len(times):
        raise Refused("PHASE_CONFLICT", "acquisition times do not tell the dynamic series apart")
    ordered = sorted(dynamic, key=lambda one: one.study_time_s or 0.0)
    named = [named_phase(one.description) for one in ordered]
    if named.count(None) == 1:
        named[named.index(None)] = 0
    if None not in named and named != list(range(len(named))):
        shown = ", ".join(str(number) for number in named)
        raise Refused("PHASE_CONFLICT", f"by their names the phases are {shown} in order of time")
    return ordered


def named_phase(description: str) -> int | None:
    """The phase that a description names: "Ph2ax 3d dyn" 2, "ax dyn 1st pass" 1, "... pre" 0."""
    found = _NUMBERED.search(description) or _PASS.search(description)
    if found:
        return int(found[1])
    return 0 if _PRE.search(description) else None


def _one_grid(ordered: Sequence[Series]) -> None:
    if len({(one.shape, one.frame_of_reference_uid) for one in ordered}) > 1:
        raise Refused("MIXED_SHAPE", "the phases differ in matrix or frame of reference")
