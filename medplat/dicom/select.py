"""Which series of a study feeds which input of a model, and why each other one does not.

The rules are the workflow's `inputs` (DESIGN section 4); they travel inside the model. Two series
that fit are never settled by taking the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from medplat.errors import Refused
from medplat.types import Series
from medplat.workflow.schema import Input


@dataclass(frozen=True)
class Chosen:
    """What one input takes: a series, which of its phases (None: it is 3-D), and why it fits."""

    series: Series
    phase: int | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """The choice for one study.

    Attributes:
        chosen: Input name to what it takes.
        reasons: SeriesInstanceUID of each series that was not taken to a sentence.
    """

    chosen: Mapping[str, Chosen]
    reasons: Mapping[str, str]


class NotChosen(Refused):
    """No or no single choice is possible; `reasons` as in `Selection`, for the manifest."""

    def __init__(self, code: str, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(code, message)
        self.reasons = dict(reasons)


def name(series: Series) -> str:
    """How a series is called in sentences: its number and scrubbed description."""
    number = "without number" if series.number is None else str(series.number)
    return f"series {number}" + (f" '{series.description}'" if series.description else "")


def phases(series: Series) -> int:
    """How many phases a series holds; 1 for a 3-D series."""
    if series.phase_times_s is not None:
        return len(series.phase_times_s)
    return series.shape[3] if len(series.shape) == 4 else 1


def choose(series: Sequence[Series], inputs: Sequence[Input]) -> Selection:
    """Choose one series, and one phase of it, for each input.

    Args:
        series: All series of one study, also those that were rejected or skipped.
        inputs: The channels of the model, in order.

    Raises:
        NotChosen: A `Refused` with MISSING_INPUT where no series fits an input, AMBIGUOUS_INPUT
            where two do, or where two inputs fall on the same image.
    """
    chosen: dict[str, Chosen] = {}
    whys: list[list[str]] = [[] for _ in series]
    for wanted in inputs:
        fits: list[int] = []
        for at, one in enumerate(series):
            why_not = misfits(one, wanted)
            if why_not:
                whys[at].append(f"not {wanted.name}: {', '.join(why_not)}")
            else:
                fits.append(at)
        _one_must_fit(series, wanted, fits, whys)
        found = series[fits[0]]
        chosen[wanted.name] = Chosen(found, _phase(found, wanted), _because(found, wanted))
    _all_must_differ(chosen, series, whys)
    taken = {id(choice.series) for choice in chosen.values()}
    left = [at for at, one in enumerate(series) if id(one) not in taken]
    return Selection(chosen, _reasons(series, whys, left))


def misfits(series: Series, wanted: Input) -> list[str]:
    """Every reason why `series` cannot be `wanted`; empty when it fits."""
    if series.status not in ("converted", "warned"):
        codes = ", ".join(series.codes) or "no code"
        return [f"it was {series.status} ({codes})"]
    return [*_header_misfits(series, wanted), *_phase_misfits(series, wanted)]


def _header_misfits(series: Series, wanted: Input) -> list[str]:
    found: list[str] = []
    if wanted.modality is not None and series.modality.upper() != wanted.modality.upper():
        found.append(f"modality is {series.modality or 'not stated'}, not {wanted.modality}")
    if wanted.description and not _matches(series, wanted.description):
        found.append(f"description fits none of {_listed(wanted.description)}")
    if hit := _matches(series, wanted.not_description):
        found.append(f"description fits '{hit}', which is excluded")
    if wanted.orientation is not None and series.orientation != wanted.orientation:
        found.append(
            f"slices are {series.orientation or 'of unknown plane'}, not {wanted.orientation}"
        )
    found += _thickness_misfits(series, wanted)
    if wanted.contrast is not None and bool(series.contrast) != wanted.contrast:
        found.append(f"{'a' if series.contrast else 'no'} contrast agent is named")
    derived = bool(series.image_type) and series.image_type[0].upper() == "DERIVED"
    if wanted.original is not None and derived == wanted.original:
        found.append("it is a derived image" if derived else "it is an original image")
    return found


def _thickness_misfits(series: Series, wanted: Input) -> list[str]:
    if wanted.slice_thickness_mm is None:
        return []
    low, high = wanted.slice_thickness_mm
    thickness = series.slice_thickness_mm
    if thickness is None and len(series.spacing_mm) > 2:
        thickness = series.spacing_mm[2]
    if thickness is None:
        return ["slice thickness is not stated"]
    if low - 1e-6 <= thickness <= high + 1e-6:
        return []
    return [f"slice thickness {thickness:g} mm is not within {low:g} to {high:g} mm"]


def _phase_misfits(series: Series, wanted: Input) -> list[str]:
    count = phases(series)
    if wanted.phase_time_s is not None:
        if not series.phase_times_s:
            return ["it has no phase times"]
        if nearest_phase(series.phase_times_s, wanted) is None:
            seconds = ", ".join(f"{time:g}" for time in series.phase_times_s)
            return [f"no phase is near {wanted.phase_time_s:g} s (they begin at {seconds} s)"]
        return []
    if wanted.phase is not None and wanted.phase >= count:
        return [
            f"it has {count} phase{'s' if count > 1 else ''}, phase {wanted.phase} is asked for"
        ]
    if wanted.phase is None and count > 1:
        return [f"it has {count} phases and the input names none"]
    return []


def nearest_phase(times: Sequence[float], wanted: Input) -> int | None:
    """Index of the phase nearest to `wanted.phase_time_s`; None where none lies near enough.

    The phase before contrast must never stand in for an early one that was not scanned.
    """
    if wanted.phase_time_s is None or not times:
        return None
    tolerance = wanted.phase_tolerance_s
    if tolerance is None:
        tolerance = max(15.0, wanted.phase_time_s / 2)
    away = [abs(time - wanted.phase_time_s) for time in times]
    return away.index(min(away)) if min(away) <= tolerance else None


def _phase(series: Series, wanted: Input) -> int | None:
    if phases(series) == 1:
        return None
    if wanted.phase_time_s is not None and series.phase_times_s:
        return nearest_phase(series.phase_times_s, wanted)
    return wanted.phase


def _because(series: Series, wanted: Input) -> str:
    """The conditions that were asked for, with the values that met them."""
    met: list[str] = []
    if wanted.modality is not None:
        met.append(f"modality {series.modality}")
    if hit := _matches(series, wanted.description):
        met.append(f"description fits '{hit}'")
    if wanted.not_description:
        met.append(f"description fits none of {_listed(wanted.not_description)}")
    if wanted.orientation is not None:
        met.append(f"{series.orientation}")
    if wanted.slice_thickness_mm is not None:
        thickness = series.slice_thickness_mm
        met.append(f"thickness {series.spacing_mm[2] if thickness is None else thickness:g} mm")
    if wanted.contrast is not None:
        met.append("with contrast" if wanted.contrast else "without contrast")
    if wanted.original is not None:
        met.append("original" if wanted.original else "derived")
    phase = _phase(series, wanted)
    if phase is not None:
        times = series.phase_times_s
        met.append(f"phase {phase}" + (f" at {times[phase]:g} s" if times else ""))
    return ", ".join(met) or "the only series that can be used"


def _one_must_fit(
    series: Sequence[Series], wanted: Input, fits: list[int], whys: list[list[str]]
) -> None:
    if len(fits) == 1:
        return
    everything = _reasons(series, whys, list(range(len(series))))
    if not fits:
        seen = "; ".join(
            f"{name(one)}: {why[-1].partition(': ')[2]}"
            for one, why in zip(series[:5], whys[:5], strict=True)
        )
        more = f"; and {len(series) - 5} more" if len(series) > 5 else ""
        raise NotChosen(
            "MISSING_INPUT",
            f"no series fits input {wanted.name} ({seen or 'the study has none'}{more})",
            everything,
        )
    both = " and ".join(name(series[at]) for at in fits)
    raise NotChosen(
        "AMBIGUOUS_INPUT",
        f"{len(fits)} series fit input {wanted.name}: {both}; narrow the workflow's inputs",
        {
            **everything,
            **{series[at].series_uid: f"fits {wanted.name}, as another does" for at in fits},
        },
    )


def _all_must_differ(
    chosen: Mapping[str, Chosen], series: Sequence[Series], whys: list[list[str]]
) -> None:
    seen: dict[tuple[int, int | None], str] = {}
    for input_name, choice in chosen.items():
        other = seen.setdefault((id(choice.series), choice.phase), input_name)
        if other != input_name:
            phase = "" if choice.phase is None else f"phase {choice.phase} of "
            raise NotChosen(
                "AMBIGUOUS_INPUT",
                f"inputs {other} and {input_name} both fall on {phase}{name(choice.series)}",
                _reasons(series, whys, list(range(len(series)))),
            )


def _reasons(
    series: Sequence[Series], whys: list[list[str]], which: Sequence[int]
) -> dict[str, str]:
    """Sentences by series UID; stacks of one series share an entry."""
    found: dict[str, str] = {}
    for at in which:
        text = "; ".join(whys[at])
        uid = series[at].series_uid
        known = found.get(uid)
        found[uid] = text if known in (None, text) else f"{known} | {text}"
    return {uid: text for uid, text in found.items() if text}


def _matches(series: Series, patterns: Sequence[str]) -> str | None:
    text = series.description.casefold()
    return next((one for one in patterns if fnmatchcase(text, one.casefold())), None)


def _listed(patterns: Sequence[str]) -> str:
    return " or ".join(f"'{one}'" for one in patterns)
