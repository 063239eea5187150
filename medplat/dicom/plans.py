"""What is decided of one output stack: the plan, and the fate of each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from medplat.dicom import summary
from medplat.dicom.codes import CODES
from medplat.dicom.header import Header
from medplat.dicom.resample import Regrid
from medplat.errors import Refused
from medplat.types import Geometry, Series, SeriesStatus

FateStatus = Literal["used", "skipped", "rejected"]


class Fate(NamedTuple):
    """What became of one input file: a row of files.csv.

    `phase` and `slice` are indices in the output array ("3", or a range "0-5" where one file fills
    several), None where the file is not used. `reason` is a code, "" for a used file.
    """

    path: str
    status: FateStatus
    phase: str | None = None
    slice: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class SeriesPlan:
    """One output stack of a series, decided from headers alone.

    Attributes:
        series: Verdict and description; status, codes and messages filled, path None.
        geometry: Where the voxels lie; None where the stack is skipped or rejected.
        frames: Headers phase by phase, slices in array order; empty unless convertible.
        key: Stem of the output's file name: number, 6 characters of a hash, suffix of the stack.
        fates: Every input file of the stack once, sorted by path.
        phase_times_s: Seconds from the first phase; None where unknown.
        phase_time_source: The tag that the phase times come from.
        started_us: First acquisition of the stack on an absolute clock: internal, never written.
        metadata: Technical values for the sidecar (allow-list).
        regrid: How the slices come onto a regular grid, where the stack is resampled.
    """

    series: Series
    geometry: Geometry | None
    frames: tuple[tuple[Header, ...], ...]
    key: str
    fates: tuple[Fate, ...]
    phase_times_s: tuple[float, ...] | None = None
    phase_time_source: str | None = None
    started_us: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    regrid: Regrid | None = None

    @property
    def convertible(self) -> bool:
        """True when `read_volume` may be called."""
        return self.series.status in ("converted", "warned")


def left_out(code: str) -> FateStatus:
    """Whether a file left out for this code is skipped or rejected."""
    return "skipped" if CODES[code].verdict == "skipped" else "rejected"


def used(frames: Sequence[Sequence[Header]]) -> list[Fate]:
    """Fates of the files that fill an array."""
    places: dict[str, list[tuple[int, int]]] = {}
    for t, phase in enumerate(frames):
        for z, header in enumerate(phase):
            places.setdefault(header.path, []).append((t, z))
    return [
        Fate(path, "used", _range(t for t, _ in at), _range(z for _, z in at))
        for path, at in places.items()
    ]


def _range(indices: Iterable[int]) -> str:
    found = sorted(indices)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


def once(found: list[SeriesPlan]) -> list[SeriesPlan]:
    """The plans of one series, each file in the account of one of them only.

    A multi-frame file may have frames in several stacks: it counts for the first that uses it.
    """
    owners: dict[str, tuple[bool, int]] = {}
    for index, plan in enumerate(found):
        for fate in plan.fates:
            claim = (fate.status != "used", index)
            owners[fate.path] = min(claim, owners.get(fate.path, claim))
    return [
        replace(plan, fates=tuple(f for f in plan.fates if owners[f.path][1] == index))
        for index, plan in enumerate(found)
    ]


def one_phase(plan: SeriesPlan, phase: int) -> SeriesPlan:
    """The plan of a single phase of a dynamic stack."""
    return replace(plan, frames=(plan.frames[phase],), phase_times_s=None)


def pair_up(codes: list[str], messages: list[str], code: str, message: str) -> None:
    """Add a code and its sentence to those of a stack: sentences of codes stand first, in order."""
    if code and code not in codes:
        messages.insert(len(codes), message)
        codes.append(code)
    else:
        messages.append(message)


class SkippedError(Exception):
    """A series or stack is not meant to be a volume."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


@dataclass
class Draft:
    """A stack on its way to a plan: what was found, and which files were lost.

    Attributes:
        headers: Every file of the stack, used or not.
        blank: Series, without shape and verdict.
        key: Stem of the output's name.
    """

    headers: tuple[Header, ...]
    blank: Series
    key: str
    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    lost: dict[str, Fate] = field(default_factory=dict)

    def note(self, code: str, message: str) -> None:
        """Add a code with its sentence; a sentence without a new code is only a remark."""
        pair_up(self.codes, self.messages, code, message)

    def lose(self, header: Header, code: str, status: FateStatus = "rejected") -> None:
        """A file that is not used."""
        self.lost.setdefault(header.path, Fate(header.path, status, reason=code))

    def drop(self, dropped: Sequence[tuple[Header, str]], what: str) -> None:
        """Files that are left out of a stack that goes on."""
        for header, code in dropped:
            self.lose(header, code, left_out(code))
        for code, count in sorted(Counter(code for _, code in dropped).items()):
            self.note(code, f"{count} {what}")

    def stop(self, error: Refused | SkippedError) -> SeriesPlan:
        """The plan of a stack that is not converted."""
        if error.code in self.codes:
            at = self.codes.index(error.code)
            del self.codes[at]
            self.messages.append(self.messages.pop(at))
        self.codes.insert(0, error.code)
        self.messages.insert(0, error.message)
        status: Literal["rejected", "skipped"] = "skipped"
        started = None
        if isinstance(error, Refused):
            # The study's clock must not change with a verdict that a person may settle.
            status, started = "rejected", summary.started(self.headers)
        for header in self.headers:
            self.lose(header, error.code, status)
        series = self._series(status)
        return SeriesPlan(series, None, (), self.key, self._fates([]), started_us=started)

    def finish(
        self, place: Geometry, frames: tuple[tuple[Header, ...], ...], **rest: Any
    ) -> SeriesPlan:
        """The plan of a stack that is converted."""
        spacing = np.linalg.norm(place.affine[:3, :3], axis=0)
        fates = used(frames)
        if rest.get("regrid") is not None:
            fates = [fate._replace(slice=None) for fate in fates]
        series = replace(
            self._series("warned" if self.codes else "converted"),
            shape=(*place.shape, len(frames)) if len(frames) > 1 else place.shape,
            spacing_mm=tuple(round(float(value), 6) for value in spacing),
            phase_times_s=rest.get("phase_times_s"),
        )
        return SeriesPlan(series, place, frames, self.key, self._fates(fates), **rest)

    def _series(self, status: SeriesStatus) -> Series:
        return replace(
            self.blank, status=status, codes=tuple(self.codes), messages=tuple(self.messages)
        )

    def _fates(self, found: list[Fate]) -> tuple[Fate, ...]:
        every = self.lost | {fate.path: fate for fate in found}
        return tuple(sorted(every.values(), key=lambda fate: fate.path))
