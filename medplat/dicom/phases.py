"""Which image belongs to which time point (specs section 4).

Counting images at each position carries the weight; tags only say which is which, and all strong
tags must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from medplat.dicom.clock import DAY_US, past_midnight
from medplat.dicom.geometry import Slot
from medplat.dicom.header import Header
from medplat.errors import Refused

Value = float | int | None
Order = tuple[tuple[Header, ...], ...]


@dataclass(frozen=True)
class Phases:
    """Phases in order.

    Attributes:
        frames: Headers phase by phase, slices in array order.
        times_s: Seconds from the first phase; None where no time is known.
        source: The tag that the times come from.
        guess: Why the order is a guess; "" where it is not.
        notes: Further sentences.
    """

    frames: Order
    times_s: tuple[float, ...] | None = None
    source: str | None = None
    guess: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Key:
    """A tag that may tell phases apart: by its value, and (times) by rank at each position.

    `vetoes` is False for a tag that may decide, but not overrule a time.
    """

    name: str
    values: dict[int, Value]
    strong: bool = True
    is_time: bool = False
    ranks: bool = False
    vetoes: bool = True


def order(slots: Sequence[Slot], *, accept: bool = False) -> Phases:
    """Put the images of equally filled positions into phases.

    Args:
        slots: Positions along the normal, each with the same number k > 1 of images.
        accept: Where tags disagree, a person has settled for the order of the strongest.

    Raises:
        Refused: PHASE_CONFLICT.
    """
    headers = [header for slot in slots for header in slot.headers]
    keys = _keys(headers)
    tried = [(key, _partition(key, slots)) for key in keys]
    strong = [(key, found) for key, found in tried if found is not None and key.strong]
    guess, notes = "", _notes(headers, len(slots[0].headers))
    if strong:
        timed = [pair for pair in strong if pair[0].is_time]
        chosen, frames = (timed or strong)[0]
        for key, found in strong:
            if found != frames and (key.vetoes or not timed):
                text = _conflict(chosen, key, frames, found)
                if not accept:
                    raise Refused("PHASE_CONFLICT", text)
                notes += (f"{text}: {chosen.name} is followed",)
    else:
        frames, guess = _guess(slots, keys, tried)
    try:
        times, source = _times(frames, keys)
    except Refused as refused:
        if not accept:
            raise
        times, source, notes = None, None, (*notes, refused.message)
    return Phases(frames, times, source, guess, notes)


def _keys(headers: Sequence[Header]) -> list[_Key]:
    acquired = _unwrapped(headers, lambda h: h.acquired_us, lambda h: h.acquired_dated)
    # A list of begin times is one for each phase: it tells nothing of membership.
    begins = _by(headers, lambda h: h.begin_s[0] if len(h.begin_s) == 1 else None)
    content = _unwrapped(headers, lambda h: h.content_us, lambda h: False)
    return [
        _Key("TemporalPositionIdentifier", _by(headers, lambda h: h.temporal_position)),
        *_dimensions(headers),
        _Key("private begin time", begins, is_time=True, ranks=True),
        _Key("TriggerTime", _by(headers, lambda h: h.trigger_time_ms), is_time=True),
        _Key("AcquisitionNumber", _by(headers, lambda h: h.acquisition_number)),
        _Key("AcquisitionTime", acquired, is_time=True, ranks=True),
        _Key("ContentTime", content, strong=False, is_time=True, ranks=True),
    ]


def _dimensions(headers: Sequence[Header]) -> list[_Key]:
    """One key for each dimension of a multi-frame object, whatever the vendor means by it."""
    counts = {len(header.dimensions) for header in headers}
    return [
        _Key(
            f"DimensionIndexValues {index + 1}",
            {id(header): header.dimensions[index] for header in headers},
            vetoes=False,
        )
        for index in range(counts.pop() if len(counts) == 1 else 0)
    ]


def _by(headers: Sequence[Header], value: Callable[[Header], Value]) -> dict[int, Value]:
    return {id(header): value(header) for header in headers}


def _unwrapped(
    headers: Sequence[Header],
    value: Callable[[Header], int | None],
    dated: Callable[[Header], bool],
) -> dict[int, Value]:
    """Clock times with midnight crossed where the date is absent or did not change."""
    found = {id(header): value(header) for header in headers}
    known = [us for us in found.values() if us is not None]
    if len(known) < len(found) or len({dated(h) for h in headers}) > 1:
        return dict.fromkeys(found)
    one_day = all(not dated(h) for h in headers) or min(known) // DAY_US == max(known) // DAY_US
    return {**dict(zip(found, past_midnight(known), strict=True))} if one_day else {**found}


def _partition(key: _Key, slots: Sequence[Slot]) -> Order | None:
    """Phases by the key's values, else (times) by rank at each position; None where neither."""
    values = key.values
    if any(values[id(h)] is None for slot in slots for h in slot.headers):
        return None
    rows = [sorted(slot.headers, key=lambda h: values[id(h)] or 0) for slot in slots]
    table = [[values[id(h)] for h in row] for row in rows]
    if any(len(set(row)) < len(row) for row in table):
        return None
    if any(row != table[0] for row in table):
        if not key.ranks:
            return None
        for early, late in pairwise(zip(*table, strict=True)):
            if max(v or 0 for v in early) > min(v or 0 for v in late):
                return None
    return tuple(zip(*rows, strict=True))


def _guess(
    slots: Sequence[Slot], keys: list[_Key], tried: list[tuple[_Key, Order | None]]
) -> tuple[Order, str]:
    for key, found in tried:
        if found is not None:
            return found, f"the order of the {len(found)} phases rests on {key.name} alone"
    found, how = _by_instance(slots)
    if found is not None:
        text = f"the order of the {len(found)} phases rests on InstanceNumber alone ({how} runs)"
        return found, text
    counts = ", ".join(f"{key.name} {len(set(key.values.values()) - {None})}" for key in keys)
    numbers = {h.instance_number for slot in slots for h in slot.headers} - {None}
    raise Refused(
        "PHASE_CONFLICT",
        f"no tag tells the {len(slots[0].headers)} images at each of {len(slots)} positions apart "
        f"(distinct values: {counts}, InstanceNumber {len(numbers)})",
    )


def _by_instance(slots: Sequence[Slot]) -> tuple[Order | None, str]:
    """Phases out of InstanceNumber: phase-major or slice-major runs."""
    place = {id(h): index for index, slot in enumerate(slots) for h in slot.headers}
    headers = [h for slot in slots for h in slot.headers]
    numbers = [(h.instance_number, h.frame) for h in headers]
    if None in {number for number, _ in numbers} or len(set(numbers)) < len(numbers):
        return None, ""
    headers.sort(key=lambda h: (h.instance_number or 0, h.frame))
    z, k = len(slots), len(slots[0].headers)
    runs = [headers[i : i + z] for i in range(0, len(headers), z)]
    if all(len({place[id(h)] for h in run}) == z for run in runs):
        return tuple(tuple(sorted(run, key=lambda h: place[id(h)])) for run in runs), "phase-major"
    runs = [headers[i : i + k] for i in range(0, len(headers), k)]
    if all(len({place[id(h)] for h in run}) == 1 for run in runs):
        runs.sort(key=lambda run: place[id(run[0])])
        return tuple(zip(*runs, strict=True)), "slice-major"
    return None, ""


def _times(frames: Order, keys: list[_Key]) -> tuple[tuple[float, ...] | None, str | None]:
    by_name = {key.name: key for key in keys}
    k = len(frames)
    for name, scale in (
        ("AcquisitionTime", 1e6),
        ("private begin time", 1.0),
        ("TriggerTime", 1e3),
    ):
        values = by_name[name].values
        if name == "private begin time" and len(frames[0][0].begin_s) == k:
            starts: list[float] | None = list(frames[0][0].begin_s)
        else:
            starts = _starts(frames, values)
        if starts is None or len(set(starts)) == 1:
            continue
        if name == "TriggerTime" and any(len({values[id(h)] for h in p}) > 1 for p in frames):
            continue  # The timing of slices inside a volume.
        if _coarse(starts, scale):
            continue
        if any(late <= early for early, late in pairwise(starts)):
            shown = ", ".join(f"{(start - starts[0]) / scale:g}" for start in starts[:12])
            raise Refused("PHASE_CONFLICT", f"{name} of the phases does not increase ({shown} s)")
        return tuple((start - starts[0]) / scale for start in starts), name
    return None, None


def _coarse(starts: Sequence[float], scale: float) -> bool:
    """Whether a clock of whole seconds gives phases that follow one another the same time."""
    whole = all(start % scale == 0 for start in starts)
    rising = all(late >= early for early, late in pairwise(starts))
    return whole and rising and len(set(starts)) < len(starts)


def _starts(frames: Order, values: dict[int, Value]) -> list[float] | None:
    starts: list[float] = []
    for phase in frames:
        known = [value for h in phase if (value := values[id(h)]) is not None]
        if len(known) < len(phase):
            return None
        starts.append(min(known))
    return starts


def _conflict(chosen: _Key, other: _Key, frames: Order, found: Order) -> str:
    same = [{id(h) for h in phase} for phase in frames]
    theirs = [{id(h) for h in phase} for phase in found]
    what = "order" if all(members in same for members in theirs) else "membership"
    return f"{chosen.name} and {other.name} disagree on the {what} of the {len(frames)} phases"


def _notes(headers: Sequence[Header], k: int) -> tuple[str, ...]:
    stated = headers[0].temporal_positions
    if stated in (None, k, k - 1):
        return ()
    return (f"NumberOfTemporalPositions says {stated}, {k} phases were found",)
