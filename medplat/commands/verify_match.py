"""A NIfTI file laid on its series voxel by voxel: which slice and phase is which, and which way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import product
from typing import NamedTuple

import numpy as np

from medplat.commands.verify_geometry import Finding, corners_off
from medplat.commands.verify_source import Slices, Unit, digest, slice_hashes, values_hash
from medplat.types import Affine, Array

_TESTED = 5
_WHOLE = 1e-3
_SCALES = 256
_SAMPLE = 16
_STRIDE = 7
HALF = 0.5

Scale = tuple[float, float]


class Turn(NamedTuple):
    """How a slice of the file is laid on one of the series: transposed first, then reversed."""

    axis: int
    transposed: bool
    flip_x: bool
    flip_y: bool


@dataclass
class Match:
    """What a comparison gave.

    Attributes:
        true: Where the file's voxels lie: voxel index to RAS+ mm.
        phases: For each phase of the file, that of the series.
        turn: How its slices were laid.
        pairs: For each of its slices that of the series.
        findings: On slices, phases and values; the header is compared elsewhere.
    """

    true: Affine
    phases: tuple[int, ...]
    turn: Turn
    pairs: dict[int, int]
    findings: list[Finding] = field(default_factory=list)


def axes_of(shape: Sequence[int], unit: Slices) -> list[int]:
    """The axes of a file that may be the slice axis of a series."""
    plane = sorted(unit.shape[:2])
    return [
        axis
        for axis in range(3)
        if sorted(n for at, n in enumerate(shape[:3]) if at != axis) == plane
    ]


class Values:
    """The values of a file, and what its slices hash to under each reading of them.

    A reading is a slope and intercept that are taken back, None for the values as stored. Series
    of an export share most of them: each is hashed once.
    """

    def __init__(self, array: Array, slope: float, intercept: float) -> None:
        """(x, y, z, t) as stored in the file, and what its header says of real values.

        Values that are not finite stand as 0, so that they spoil their own slice alone.
        """
        finite = np.isfinite(array)
        self.not_finite = int(finite.size - finite.sum())
        self.array = np.where(finite, array, 0) if self.not_finite else array
        self.real = self.array.astype(np.float64) * slope + intercept
        known = self.real[finite] if self.not_finite else self.real
        self.low, self.high = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
        self._hashes: dict[tuple[Scale | None, int], list[bytes]] = {}

    def read(self, scale: Scale | None) -> Array | None:
        """The whole numbers that a reading gives; None where it gives others."""
        if scale is None:
            return _whole(self.array) if _is_whole(self.array) else None
        slope, intercept = scale
        few = (self.real[::_STRIDE, ::_STRIDE, ::_STRIDE] - intercept) / slope
        if not _is_whole(few, (self.high - self.low) / abs(slope)):
            return None
        back = (self.real - intercept) / slope
        return _whole(back) if _is_whole(back) else None

    def share(self, scale: Scale | None, unit: Slices) -> float:
        """The part of its slices whose values some slice of the series holds too, 0 to 1."""
        axes = axes_of(self.array.shape, unit)
        wanted = [axis for axis in axes if (scale, axis) not in self._hashes]
        array = self.read(scale) if wanted else None
        for axis in wanted:
            found = [] if array is None else list(slice_hashes(array, axis).values())
            self._hashes[scale, axis] = found
        return max((_part(self._hashes[scale, axis], unit) for axis in axes), default=0.0)


def _part(hashes: Sequence[bytes], unit: Slices) -> float:
    return sum(one in unit.contents.hashes for one in hashes) / len(hashes) if hashes else 0.0


def as_stored(values: Values, unit: Slices) -> tuple[float, Array] | None:
    """The file's stored values, where they are for the most part those of a series.

    Returns:
        The part of its slices that the series holds too, and the values.
    """
    share = values.share(None, unit)
    array = values.read(None) if share >= HALF else None
    return None if array is None else (share, array)


def rescaled(values: Values, unit: Slices) -> tuple[float, Array] | None:
    """As `as_stored`, after a slope is taken back: the series' own, by slice, or any that fits."""
    scales = sorted({pair for phase in unit.scales for pair in phase if pair[0]})[:_SCALES]
    for axis in axes_of(values.array.shape, unit) if len(scales) > 1 else ():
        array = _by_slice(values.real, axis, scales, unit)
        share = _part(list(slice_hashes(array, axis).values()), unit)
        if share >= HALF:
            return share, array
    tried = scales if len(scales) == 1 else []
    reach = unit.contents.high - unit.contents.low
    if values.high > values.low and reach > 0:
        slope = (values.high - values.low) / reach
        tried.append((slope, values.low - unit.contents.low * slope))
    for scale in tried:
        share = values.share(scale, unit)
        found = values.read(scale) if share >= HALF else None
        if found is not None:
            return share, found
    return None


def _by_slice(real: Array, axis: int, scales: Sequence[Scale], unit: Slices) -> Array:
    """Each slice by the slope that makes it a slice of the series; 0 where none does."""
    moved = np.moveaxis(real, axis, 2)
    found = np.zeros(moved.shape, np.int64)
    for j, t in np.ndindex(moved.shape[2:]):
        for slope, intercept in scales:
            back = (moved[:, :, j, t] - intercept) / slope
            if not _is_whole(back[:_SAMPLE, :_SAMPLE]) or not _is_whole(back):
                continue
            plane = _whole(back)
            if values_hash(plane) in unit.contents.hashes:
                found[:, :, j, t] = plane
                break
    return np.moveaxis(found, 2, axis)


def _is_whole(array: Array, reach: float | None = None) -> bool:
    """Whether values are whole numbers, as near as float32 holds those of this reach."""
    if array.dtype.kind != "f":
        return True
    if not np.isfinite(array).all() or np.abs(array).max(initial=0) > 2**53:
        return False
    reach = np.ptp(array) if reach is None else reach
    return bool(np.abs(array - np.rint(array)).max(initial=0) <= _WHOLE * max(1.0, reach / 1e4))


def _whole(array: Array) -> Array:
    return np.rint(array).astype(np.int64) if array.dtype.kind == "f" else array


def lay(array: Array, real: Array, unit: Unit, said: Affine) -> Match | None:
    """Lay a file on its series.

    Args:
        array: (x, y, z, t) as `as_stored` or `rescaled` read it.
        real: With the slope and intercept of its header.
        unit: The series.
        said: Affine of the file's header: it decides where symmetric contents leave a choice.

    Returns:
        None where no slice of the file is a slice of the series, however it is turned.
    """
    stored = unit.stored()
    found: list[tuple[int, float, Match]] = []
    for axis in axes_of(array.shape, unit):
        for turn in _turns(array, stored, axis):
            found += _candidates(_turned(array, turn), stored, turn, unit, said)
    if not found:
        return None
    matched = max(count for count, _, _ in found)
    best = min((one for one in found if one[0] == matched), key=lambda one: one[1])[2]
    best.findings += _slope_findings(np.moveaxis(real, best.turn.axis, 2), stored, unit, best)
    return best


def _turned(array: Array, turn: Turn) -> Array:
    """The file as (x, y, slice, t) of the series, but for the sense of the slices."""
    moved = np.moveaxis(array, turn.axis, 2)
    if turn.transposed:
        moved = moved.swapaxes(0, 1)
    return moved[:: -1 if turn.flip_x else 1, :: -1 if turn.flip_y else 1]


def _turns(array: Array, stored: Array, axis: int) -> list[Turn]:
    """The ways to turn the file's slices that make them equal to the series' slices."""
    here, there = slice_hashes(array, axis), slice_hashes(stored, 2)
    places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for place, one in there.items():
        places[one].append(place)
    known = sorted((len(places[one]), place, one) for place, one in here.items() if one in places)
    tested = [(place, places[one][:8]) for _, place, one in known[:_TESTED]]
    found = []
    for transposed, flip_x, flip_y in product((False, True), repeat=3):
        turn = Turn(axis, transposed, flip_x, flip_y)
        moved = _turned(array, turn)
        if moved.shape[:2] != stored.shape[:2]:
            continue
        equal = sum(
            any(np.array_equal(moved[:, :, j, t], stored[:, :, z, p]) for z, p in near)
            for (j, t), near in tested
        )
        if tested and 2 * equal > len(tested):
            found.append(turn)
    return found


def _candidates(
    moved: Array, stored: Array, turn: Turn, unit: Unit, said: Affine
) -> list[tuple[int, float, Match]]:
    """Both senses of the slices, and each place to begin: (slices matched, corners off, match)."""
    here, there = _hashes(moved), _hashes(stored)
    phases = _phases(here, there)
    a = [tuple(row) for row in here]
    b = [tuple(row[p] for p in phases) for row in there]
    found = []
    for reverse in (False, True):
        ordered = b[::-1] if reverse else b
        blocks = SequenceMatcher(None, a, ordered, autojunk=False).get_matching_blocks()
        pairs = {j + n: z + n for j, z, size in blocks for n in range(size)}
        if reverse:
            pairs = {j: len(b) - 1 - z for j, z in pairs.items()}
        telling = sum(len(set(a[j])) > 1 or not _flat(moved[:, :, j]) for j in pairs)
        findings = _slice_findings(a, b, pairs) + _phase_findings(phases, unit)
        sense = -1 if reverse else 1
        for start in sorted({z - sense * j for j, z in pairs.items()}):
            true = unit.affine @ _index_map(moved, turn, sense, start)
            off = corners_off(said, true, _file_shape(moved, turn))
            match = Match(true, phases, turn, pairs, list(findings))
            found.append((telling, off, match))
    return found


def _flat(slices: Array) -> bool:
    return bool((slices == slices.flat[0]).all())


def _hashes(array: Array) -> list[list[bytes]]:
    return [
        [digest(array[:, :, z, t]) for t in range(array.shape[3])] for z in range(array.shape[2])
    ]


def _phases(here: Sequence[Sequence[bytes]], there: Sequence[Sequence[bytes]]) -> tuple[int, ...]:
    """For each phase of the file that of the series which shares most slices with it."""
    mine = [Counter(row[t] for row in here) for t in range(len(here[0]))]
    theirs = [Counter(row[p] for row in there) for p in range(len(there[0]))]
    found: list[int] = []
    for t, one in enumerate(mine):
        scores = [(one & other).total() for other in theirs]
        best = [p for p, score in enumerate(scores) if score == max(scores)]
        fresh = [p for p in best if p not in found]
        found.append(t if t in fresh else (fresh or best)[0])
    return tuple(found)


def _index_map(moved: Array, turn: Turn, sense: int, start: int) -> Array:
    """Voxel index of the file to voxel index of the series."""
    in_plane = [axis for axis in range(3) if axis != turn.axis]
    if turn.transposed:
        in_plane.reverse()
    into = np.zeros((4, 4))
    into[3, 3] = 1
    for row, (axis, flip) in enumerate(zip(in_plane, (turn.flip_x, turn.flip_y), strict=True)):
        into[row, axis] = -1 if flip else 1
        into[row, 3] = moved.shape[row] - 1 if flip else 0
    into[2, turn.axis], into[2, 3] = sense, start
    return into


def _file_shape(moved: Array, turn: Turn) -> list[int]:
    plane = [moved.shape[1], moved.shape[0]] if turn.transposed else list(moved.shape[:2])
    plane.insert(turn.axis, moved.shape[2])
    return plane


def _slice_findings(
    a: Sequence[object], b: Sequence[object], pairs: Mapping[int, int]
) -> list[Finding]:
    extra = [j for j in range(len(a)) if j not in pairs]
    absent = [z for z in range(len(b)) if z not in set(pairs.values())]
    if not extra and not absent:
        return []
    misplaced = Counter(a[j] for j in extra) & Counter(b[z] for z in absent)
    if misplaced:
        count = misplaced.total()
        text = f"{count} slices of the file stand at another place than in the series"
        return [Finding("NIFTI_SLICE_ORDER", text)]
    if len(extra) == len(absent):
        return [Finding("NIFTI_VALUES", f"the voxels of slices {_list(extra)} are not the series'")]
    found = []
    if len(absent) > len(extra):
        text = f"{len(absent) - len(extra)} of {len(b)} slices are absent (of {_list(absent)})"
        found.append(Finding("NIFTI_SLICES", text))
    else:
        text = f"{len(extra) - len(absent)} slices are no slices of the series ({_list(extra)})"
        found.append(Finding("NIFTI_SLICES", text))
    return found


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _phase_findings(phases: Sequence[int], unit: Unit) -> list[Finding]:
    """Order and repeats; what is absent can be told only from all files of a series."""
    stacks: dict[int, list[int]] = defaultdict(list)
    for phase in phases:
        stack, t = unit.phases[phase]
        stacks[stack].append(t)
    found = []
    for order in stacks.values():
        if len(set(order)) < len(order):
            text = f"phases of the series stand in the file twice ({_list(order)})"
            found.append(Finding("NIFTI_PHASES", text))
        elif order != sorted(order):
            text = f"the phases stand in the order {_list(order)}"
            found.append(Finding("NIFTI_PHASE_ORDER", text))
    return found[:1]


def _slope_findings(real: Array, stored: Array, unit: Unit, match: Match) -> list[Finding]:
    """Whether the file's real values are the series', slice by slice, at both ends of the range."""
    for t, phase in enumerate(match.phases):
        precise = unit.precise(phase)
        for j, z in sorted(match.pairs.items()):
            here = _ends(real[:, :, j, t])
            there = _ends(stored[:, :, z, phase])
            scale = unit.scales[phase][z]
            if _agree(here, there, scale) or (precise and _agree(here, there, precise)):
                continue
            slope = (here[1] - here[0]) / (there[1] - there[0] or 1.0)
            text = (
                f"slice {j} holds {here[0]:g} to {here[1]:g}, which is slope {slope:g} and "
                f"intercept {here[0] - slope * there[0]:g}; the series has {scale[0]:g} and "
                f"{scale[1]:g}"
            )
            return [Finding("NIFTI_SLOPE", text)]
    return []


def _ends(plane: Array) -> tuple[float, float]:
    return float(plane.min()), float(plane.max())


def _agree(
    here: tuple[float, float], there: tuple[float, float], scale: tuple[float, float]
) -> bool:
    wanted = sorted(scale[0] * value + scale[1] for value in there)
    size = max(abs(value) for value in wanted)
    off = max(abs(a - b) for a, b in zip(sorted(here), wanted, strict=True))
    return off <= 1e-4 * size + 1e-9
