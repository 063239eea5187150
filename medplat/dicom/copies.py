"""Duplicates: what is the same image twice, and what only claims the same place (specs section 7).

Pixels are hashed for candidates only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medplat.dicom import multiframe, pixels
from medplat.dicom.geometry import Slot
from medplat.dicom.header import Header
from medplat.errors import Refused

_COMMON_SHARE = 0.6
_PHASE_FIELDS = (
    "temporal_position", "begin_s", "trigger_time_ms", "acquisition_number", "acquired_us",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What remains, and (header, code) of the copies that were dropped."""

    headers: tuple[Header, ...]
    dropped: tuple[tuple[Header, str], ...] = ()


def drop_files(headers: Sequence[Header]) -> Kept:
    """Keep one of the files that hold the same SOP instance.

    Args:
        headers: One a file.

    Raises:
        Refused: DUPLICATE_SLICE where two files of one SOPInstanceUID hold different images.
    """
    by_uid: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: h.path):
        by_uid[header.sop_instance_uid, "" if header.sop_instance_uid else header.path].append(
            header
        )
    kept: list[Header] = []
    dropped: list[tuple[Header, str]] = []
    for same in by_uid.values():
        kept.append(same[0])
        for other in same[1:]:
            if not _equal_files(same[0], other):
                raise Refused(
                    "DUPLICATE_SLICE",
                    f"two files claim the same SOPInstanceUID (image {other.instance_number}) "
                    "and differ",
                )
            dropped.append((other, "DUPLICATE_FILE"))
    return Kept(tuple(kept), tuple(dropped))


def _equal_files(one: Header, other: Header) -> bool:
    if one.entry.size == other.entry.size and pixels.file_digest(one) == pixels.file_digest(other):
        return True
    if _facts(one) != _facts(other):
        return False
    pairs = zip(multiframe.frames(one), multiframe.frames(other), strict=True)
    return all(pixels.digest(a) == pixels.digest(b) for a, b in pairs)


def _facts(h: Header) -> tuple[object, ...]:
    """What must agree beside the pixels for two files to be one image."""
    return (
        h.rows, h.columns, h.signed, h.bits_stored, h.position, h.orientation, h.pixel_spacing,
        h.slope, h.intercept, h.acquired_us, h.temporal_position, h.trigger_time_ms, h.begin_s,
        h.frames, h.per_frame,
    )  # fmt: skip


def level(slots: Sequence[Slot]) -> tuple[list[Slot], list[tuple[Header, str]]]:
    """Make every position hold the same number of images, by dropping equal copies only.

    Returns:
        The positions, and (header, code) of what was dropped.

    Raises:
        Refused: MISSING_SLICE or DUPLICATE_SLICE, naming the positions.
    """
    counts = Counter(len(slot.headers) for slot in slots)
    if len(counts) == 1:
        return list(slots), []
    common = max(counts, key=lambda n: (counts[n], -n))
    dropped: list[tuple[Header, str]] = []
    levelled = []
    for slot in slots:
        surplus = len(slot.headers) - common
        copies = _copies(slot, common)[:surplus] if surplus > 0 else []
        dropped += [(header, "DUPLICATE_SLICE") for header in copies]
        gone = {id(header) for header in copies}
        rest = tuple(header for header in slot.headers if id(header) not in gone)
        levelled.append(replace(slot, headers=rest))
    _check_level(levelled, common)
    return levelled, dropped


def _copies(slot: Slot, common: int) -> list[Header]:
    """Images of a position that repeat another one of it, the later first of equal ones kept out.

    The pixels and the rescale must be equal; where several phases are expected, the times too,
    since the empty slices of two phases may well be equal.
    """
    groups: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in slot.headers:
        when: tuple[object, ...] = ()
        if common > 1:
            when = (header.temporal_position, header.acquired_us, header.trigger_time_ms)
            when += (header.begin_s, header.acquisition_number)
        tile = header.frame if header.mosaic else 0
        key = (pixels.digest(header), header.slope, header.intercept, tile, *when)
        groups[key].append(header)
    found: list[Header] = []
    for same in groups.values():
        same.sort(key=lambda h: (h.instance_number or 0, h.sop_instance_uid))
        found += same[1:]
    return found


def _check_level(slots: Sequence[Slot], common: int) -> None:
    counts = Counter(len(slot.headers) for slot in slots)
    if len(counts) == 1:
        return
    share = counts[common] / len(slots)
    if share <= _COMMON_SHARE:
        table = ", ".join(f"{n} images at {many}" for n, many in sorted(counts.items()))
        code = "MISSING_SLICE" if min(counts) < common else "DUPLICATE_SLICE"
        raise Refused(code, f"the positions hold different numbers of images ({table} positions)")
    below = [slot for slot in slots if len(slot.headers) < common]
    above = [slot for slot in slots if len(slot.headers) > common]
    if below:
        raise Refused("MISSING_SLICE", _absent(slots, below, common))
    hold = "position holds" if len(above) == 1 else "positions hold"
    text = f"{len(above)} {hold} more than {common} images that differ: {_places(above)}"
    raise Refused("DUPLICATE_SLICE", text)


def _absent(slots: Sequence[Slot], below: Sequence[Slot], common: int) -> str:
    hold = "position holds" if len(below) == 1 else "positions hold"
    text = f"{len(below)} {hold} fewer than {common} images: {_places(below)}"
    phases = _absent_phases(slots, below)
    return f"{text}; absent there: {phases}" if phases else text


def _absent_phases(slots: Sequence[Slot], below: Sequence[Slot]) -> str:
    """Which value of the first telling tag is absent, in words; "" where no tag tells."""
    for name in _PHASE_FIELDS:
        tables = [{getattr(h, name) for h in slot.headers} for slot in slots]
        every = set().union(*tables)
        full = [slot for slot, table in zip(slots, tables, strict=True) if table == every]
        if None in every or len(full) + len(below) != len(slots) or len(every) < 2:
            continue
        ordered = sorted(every)
        here = [every - {getattr(h, name) for h in slot.headers} for slot in below]
        absent = sorted({ordered.index(value) for values in here for value in values})
        return "phase " + ", ".join(map(str, absent[:10]))
    return ""


def _places(slots: Sequence[Slot]) -> str:
    shown = ", ".join(f"{slot.distance:.2f}" for slot in slots[:10])
    return f"{shown}{', ...' if len(slots) > 10 else ''} mm along the normal"


def all_equal(slots: Sequence[Slot]) -> bool:
    """Whether every position holds one image several times over (the series was sent again)."""
    known: dict[tuple[str, int], str] = {}
    for slot in slots:
        scales = {(header.slope, header.intercept) for header in slot.headers}
        digests = set()
        for header in slot.headers:
            image = (header.path, 0 if header.mosaic else header.frame)
            if image not in known:
                known[image] = pixels.digest(header)
            digests.add(known[image])
        if len(digests) > 1 or len(scales) > 1:
            return False
    return True
