"""From files to series, and from a series to stacks: what can share one array (specs section 3)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medplat.dicom import beside, geometry
from medplat.dicom.header import Header
from medplat.errors import Refused

if TYPE_CHECKING:
    from medplat.dicom.scan import SourceFile
    from medplat.pseudonym import Pseudonyms

ORIENTATION_TOLERANCE = 1e-4
_SPACING_TOLERANCE = 1e-4
_OUTLIERS = 3
_OUTLIER_RATIO = 4
_COMPONENTS = {"M": "", "P": "_phase", "R": "_real", "I": "_imaginary"}
_COMPLEX = {"MAGNITUDE": "M", "PHASE": "P", "REAL": "R", "IMAGINARY": "I"}


@dataclass(frozen=True)
class SeriesFiles:
    """All image headers of one series, sorted by path.

    Attributes:
        series_uid: SeriesInstanceUID, or the grouping key of specs section 3 where it is empty.
        study_uid: StudyInstanceUID, or the same key.
        headers: One a file.
        has_uid: False where study or series UID is empty (code NO_UID).
        lost: Files that could not be read and may be images of it (`beside.told`).
        alone: No other series could claim them.
    """

    series_uid: str
    study_uid: str
    headers: tuple[Header, ...]
    has_uid: bool = True
    lost: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Stack:
    """Headers that can share one array, and what the output's name gets for it ("_e1")."""

    headers: tuple[Header, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Split:
    """A series taken apart.

    Attributes:
        stacks: One output each.
        set_aside: (header, code) of the few images that do not belong to the big stack.
    """

    stacks: tuple[Stack, ...]
    set_aside: tuple[tuple[Header, str], ...] = ()


def group(files: Sequence[SourceFile], pseudonyms: Pseudonyms | None = None) -> list[SeriesFiles]:
    """Put the image files of a scan together by study and series.

    Args:
        files: From `scan.scan`; all but the images are left out.
        pseudonyms: Salts the key that stands in for an empty UID.

    Returns:
        Sorted by study, series number and series UID.
    """
    groups: dict[tuple[str, str, bool], list[Header]] = defaultdict(list)
    for file in files:
        if file.status == "image" and file.header is not None:
            groups[_key(file.header, pseudonyms)].append(file.header)
    found = [
        SeriesFiles(series, study, tuple(sorted(same, key=lambda h: h.path)), has_uid)
        for (study, series, has_uid), headers in groups.items()
        for same in _reissued(headers)
    ]
    found.sort(key=lambda s: (s.study_uid, s.headers[0].series_number or 0, s.series_uid))
    return beside.told(found, files)


def _key(header: Header, pseudonyms: Pseudonyms | None) -> tuple[str, str, bool]:
    if header.study_uid and header.series_uid:
        return header.study_uid, header.series_uid, True
    parts = (
        header.frame_of_reference_uid,
        str(header.series_number),
        header.series_description,
        f"{header.rows}x{header.columns}",
    )
    text = "\0".join(parts)
    salted = pseudonyms.digest(text) if pseudonyms else hashlib.sha256(text.encode()).hexdigest()
    key = f"no-uid-{salted[:16]}"
    return header.study_uid or key, header.series_uid or key, False


def _reissued(headers: list[Header]) -> list[list[Header]]:
    """Apart by SeriesNumber, where one SOPInstanceUID was issued under several of them."""
    numbers: dict[str, set[int | None]] = defaultdict(set)
    for header in headers:
        numbers[header.sop_instance_uid].add(header.series_number)
    if all(len(found) == 1 for found in numbers.values()):
        return [headers]
    parts: dict[int | None, list[Header]] = defaultdict(list)
    for header in headers:
        parts[header.series_number].append(header)
    return list(parts.values())


def split(headers: Sequence[Header]) -> Split:
    """Take a series apart into stacks.

    Args:
        headers: Undamaged image planes of one series.

    Raises:
        Refused: MIXED_ORIENTATION or MIXED_SHAPE, where stacks of comparable size cannot share an
            array and nothing regular (echo, image type, b-value) tells them apart.
    """
    families = _families(headers)
    aside: list[tuple[Header, str]] = []
    if len(families) > 1:
        families.sort(key=len, reverse=True)
        biggest, others = families[0], families[1:]
        strays = sum(len(other) for other in others)
        few = all(len(other) <= _OUTLIERS for other in others)
        if not (few and len(biggest) > _OUTLIER_RATIO * strays):
            raise _mixed(biggest, others)
        aside = [(h, _stray_code(biggest[0], h)) for other in others for h in other]
    return Split(tuple(_stacks(families[0])), tuple(aside))


def _families(headers: Sequence[Header]) -> list[list[Header]]:
    """Groups of equal matrix, pixel format, spacing, orientation and frame of reference."""
    exact: dict[Hashable, list[Header]] = defaultdict(list)
    for header in sorted(headers, key=_content):
        exact[_format(header)].append(header)
    found: list[list[Header]] = []
    for same in exact.values():
        bad = [text for header in same if (text := geometry.problem(header))]
        if bad and len(bad) < len(same):
            raise Refused("NO_GEOMETRY", f"{bad[0]}, in {len(bad)} of {len(same)} images")
        nearby: list[list[Header]] = []
        for header in same:
            for family in nearby:
                if _same_plane(family[0], header):
                    family.append(header)
                    break
            else:
                nearby.append([header])
        found.extend(nearby)
    return found


def _content(header: Header) -> tuple[object, ...]:
    """An order that depends on what the images hold, never on where the files lie."""
    return (
        header.position or (0.0, 0.0, 0.0),
        header.instance_number or 0,
        header.sop_instance_uid,
        header.frame,
    )


def _format(h: Header) -> Hashable:
    return (
        h.sop_class_uid, h.rows, h.columns, h.samples, h.photometric, h.bits_allocated,
        h.bits_stored, h.high_bit, h.signed, h.pixels.keyword, h.frame_of_reference_uid,
    )  # fmt: skip


def _same_plane(one: Header, other: Header) -> bool:
    if (one.orientation, one.pixel_spacing) == (other.orientation, other.pixel_spacing):
        return True
    if (one.orientation is None) != (other.orientation is None):
        return False
    if one.orientation is not None and other.orientation is not None:
        differences = np.subtract(one.orientation, other.orientation)
        if not float(np.abs(differences).max()) <= ORIENTATION_TOLERANCE:
            return False
    if one.pixel_spacing is None or other.pixel_spacing is None:
        return one.pixel_spacing == other.pixel_spacing
    return bool(np.allclose(one.pixel_spacing, other.pixel_spacing, rtol=_SPACING_TOLERANCE))


def _stray_code(main: Header, stray: Header) -> str:
    alike = (main.rows, main.columns) == (stray.rows, stray.columns)
    return "LOCALIZER" if alike and main.orientation != stray.orientation else "MIXED_SHAPE"


def _mixed(biggest: list[Header], others: list[list[Header]]) -> Refused:
    one, sizes = biggest[0], [len(biggest), *(len(other) for other in others)]
    counts = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
    where = f"the images fall into {len(sizes)} groups of {counts}"
    shapes = {(family[0].rows, family[0].columns) for family in (biggest, *others)}
    if len(shapes) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes)[:4])
        if all(_same_orientation(one, other[0]) for other in others):
            return Refused("MIXED_SHAPE", f"{where} that differ in matrix ({shown})")
    if any(not _same_orientation(one, other[0]) for other in others):
        return Refused("MIXED_ORIENTATION", f"{where} that differ in orientation")
    if any(one.frame_of_reference_uid != other[0].frame_of_reference_uid for other in others):
        return Refused("MIXED_ORIENTATION", f"{where} that differ in frame of reference")
    return Refused("MIXED_SHAPE", f"{where} that differ in pixel spacing or pixel format")


def _same_orientation(one: Header, other: Header) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation == other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= 1e-4)


def _stacks(family: list[Header]) -> list[Stack]:
    """Split by image type, echo and b-value; each gives an output of its own."""
    stacks = [Stack(tuple(family))]
    stacks = _apart(stacks, _component, _component_suffix, always=True)
    stacks = _apart(stacks, lambda h: (h.echo_number, h.echo_time), _numbered("e"))
    return _apart(stacks, lambda h: h.b_value, _b_suffix)


def _apart(
    stacks: list[Stack],
    key: Callable[[Header], Hashable],
    suffix: Callable[[int, Hashable], str],
    *,
    always: bool = False,
) -> list[Stack]:
    """Split stacks by a key, where it tells images at one position apart (or always)."""
    found: list[Stack] = []
    for stack in stacks:
        groups: dict[Hashable, list[Header]] = defaultdict(list)
        for header in stack.headers:
            groups[key(header)].append(header)
        if len(groups) == 1 or not (always or _overlap(list(groups.values()))):
            found.append(stack)
            continue
        for index, value in enumerate(sorted(groups, key=_sortable), start=1):
            name = stack.suffix + suffix(index, value)
            found.append(Stack(tuple(groups[value]), name))
    names = [stack.suffix for stack in found]
    if len(set(names)) < len(names):
        return [Stack(s.headers, f"{s.suffix}_s{i}") for i, s in enumerate(found, start=1)]
    return found


def _overlap(groups: list[list[Header]]) -> bool:
    """Whether any position occurs in two of the groups."""
    seen: set[tuple[float, ...]] = set()
    for headers in groups:
        places = {tuple(round(v, 2) for v in h.position or ()) for h in headers}
        if seen & places:
            return True
        seen |= places
    return False


def _sortable(value: Hashable) -> tuple[tuple[bool, str, float], ...]:
    parts = value if isinstance(value, tuple) else (value,)
    return tuple(
        (part is None, "", float(part))
        if isinstance(part, int | float)
        else (part is None, str(part), 0.0)
        for part in parts
    )


def _component(header: Header) -> Hashable:
    """ImageType values 1, 3 and 4, or ComplexImageComponent."""
    kind = (*header.image_type, "", "", "", "")[:4]
    return kind[0], kind[2], kind[3], _COMPLEX.get(header.complex_component, "")


def _component_suffix(index: int, value: Hashable) -> str:
    assert isinstance(value, tuple)
    for part in (value[3], value[2], value[1]):
        name = str(part).split("_")[0]
        if name in _COMPONENTS:
            return _COMPONENTS[name]
    return f"_t{index}"


def _numbered(letter: str) -> Callable[[int, Hashable], str]:
    return lambda index, value: f"_{letter}{index}"


def _b_suffix(index: int, value: Hashable) -> str:
    return f"_b{value:.0f}" if isinstance(value, float) else f"_b{index}x"
