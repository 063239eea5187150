"""From the files of one series to plans of its output stacks, and from a plan to a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medplat.dicom import (
    copies,
    geometry,
    mosaic,
    multiframe,
    phases,
    pixels,
    plans,
    screen,
    series,
    summary,
)
from medplat.dicom import resample as resampling
from medplat.dicom.clock import DAY_US, past_midnight
from medplat.dicom.geometry import Plane, Slot
from medplat.dicom.header import Header
from medplat.dicom.phases import Phases
from medplat.dicom.plans import Draft, Fate, SeriesPlan, SkippedError, left_out, one_phase
from medplat.dicom.resample import Regrid
from medplat.dicom.series import SeriesFiles
from medplat.errors import Refused
from medplat.types import Array, Geometry, Series, Volume

if TYPE_CHECKING:
    from medplat.pseudonym import Pseudonyms

__all__ = ["Fate", "SeriesPlan", "broken", "one_phase", "plan", "read_volume", "study_times"]
# Smaller moments are times of day: there was no date.
_UNDATED_US = 10**12


class _Choices(NamedTuple):
    """What a person allows for a doubtful series; see `plan`."""

    allow_shear: bool
    resample: bool
    accept_order: bool


def plan(
    files: SeriesFiles,
    *,
    pseudonyms: Pseudonyms | None = None,
    allow_shear: bool = False,
    resample: bool = False,
    accept_order: bool = False,
    exclude: bool = False,
) -> list[SeriesPlan]:
    """Decide what becomes of one series: one plan an output stack (echo, image type, b-value).

    Args:
        files: The headers of one series, from `series.group`.
        pseudonyms: Gives `case`, `patient` and the hash in `key`; None leaves the first two empty.
        allow_shear: Convert sheared stacks with a warning (the affine then holds the shear).
        resample: Bring sheared and unevenly spaced stacks onto a regular grid, with a warning; goes
            before `allow_shear`.
        accept_order: Where tags disagree on the phases, follow the strongest.
        exclude: Leave the series out, whatever it is: the code is EXCLUDED.

    Returns:
        At least one plan; a rejected or skipped series has exactly one.
    """
    choices = _Choices(allow_shear, resample, accept_order)

    def draft(headers: Sequence[Header], suffix: str = "") -> Draft:
        blank = summary.describe(headers, files, pseudonyms)
        key = summary.stack_key(headers, files, suffix, pseudonyms)
        found = Draft(tuple(headers), blank, key)
        if not files.has_uid:
            found.note("NO_UID", "study or series UID is empty: no DICOM SEG can be written")
        if files.lost and not files.alone:
            found.note("IMAGE_LOST", f"{_lost(files)} may be of this series or of another one")
        return found

    whole = draft(files.headers)
    try:
        if exclude:
            raise SkippedError("EXCLUDED", "a person decided to leave the series out")
        _one_patient(files)
        fit, unfit = screen.sort_out(files.headers)
        for header, code in unfit:
            whole.lose(header, code, left_out(code))
        screen.check(fit)
        kept = copies.drop_files(fit)
        if fit[0].modality in screen.FLAT_MODALITIES and fit[0].frames == 1:
            return _flat_plans(kept, unfit, draft)
        if files.lost and files.alone:
            raise Refused("IMAGE_LOST", f"{_lost(files)} can only be of this series")
        multiframe.check_parts(kept.headers)
        images = [frame for header in kept.headers for frame in multiframe.frames(header)]
        screen.check_planes(images)
        parts = series.split(images)
    except (Refused, SkippedError) as error:
        return [whole.stop(error)]
    drafts = [draft(stack.headers, stack.suffix) for stack in parts.stacks]
    drafts[0].drop(unfit, f"of {len(files.headers)} images are left out")
    drafts[0].drop(kept.dropped, "files repeat an image that is used")
    drafts[0].drop(parts.set_aside, "images beside the stack are left out")
    return plans.once([_plan_stack(one, choices) for one in drafts])


def _lost(files: SeriesFiles) -> str:
    return f"{files.lost} {'file' if files.lost == 1 else 'files'} that could not be read"


def _one_patient(files: SeriesFiles) -> None:
    """Images of several patients are never mixed, nor one of them taken for the other."""
    persons = {(header.identity.patient_id, header.identity.issuer) for header in files.headers}
    stated = {patient for patient, _ in persons if patient}
    if files.has_uid and len(stated) > 1:
        raise Refused("MIXED_PATIENT", f"the images name {len(stated)} different patients")
    if not files.has_uid and len(persons) > 1:
        text = f"images of {len(persons)} patients cannot be told apart without UIDs"
        raise Refused("NO_UID", text)


def broken(files: SeriesFiles, pseudonyms: Pseudonyms | None, message: str) -> SeriesPlan:
    """The plan of a series on which `plan` broke: failed, every file with the code INTERNAL.

    Args:
        files: The series.
        pseudonyms: As in `plan`.
        message: What happened; never the text of the error, which may hold a name.
    """
    first = files.headers[0]
    failed = Series(
        series_uid=files.series_uid,
        study_uid=files.study_uid,
        case=pseudonyms.case(files.study_uid) if pseudonyms else "",
        patient=summary.patient(first, pseudonyms),
        modality=first.modality,
        number=first.series_number,
        status="failed",
        codes=("INTERNAL",),
        messages=(message,),
    )
    key = summary.stack_key(files.headers, files, "", pseudonyms)
    paths = sorted({header.path for header in files.headers})
    fates = tuple(Fate(path, "rejected", reason="INTERNAL") for path in paths)
    return SeriesPlan(failed, None, (), key, fates)


def _flat_plans(
    kept: copies.Kept, unfit: Sequence[tuple[Header, str]], draft: Any
) -> list[SeriesPlan]:
    """One 2-D plan for each projection image (CR, DX, MG)."""
    images = sorted(kept.headers, key=lambda h: (h.instance_number or 0, h.sop_instance_uid))
    made = []
    for index, header in enumerate(images, start=1):
        one: Draft = draft([header], f"_i{index}" if len(images) > 1 else "")
        if index == 1:
            one.drop(unfit, "images are left out")
            one.drop(kept.dropped, "files repeat an image")
        try:
            place, tag = geometry.flat(header)
        except Refused as refused:
            made.append(one.stop(refused))
            continue
        metadata = {**summary.stack_metadata([header]), "spacing_source": tag}
        frames = ((header,),)
        started = summary.started([header])
        made.append(one.finish(place, frames, started_us=started, metadata=metadata))
    return made


def _plan_stack(draft: Draft, choices: _Choices) -> SeriesPlan:
    try:
        images = [tile for header in draft.headers for tile in mosaic.tiles(header)]
        if len(images) == 1:
            raise SkippedError("SINGLE_SLICE", "the series holds a single image")
        plane = geometry.plane(images)
        slots, dropped = copies.level(geometry.slots(images, plane))
        draft.drop(dropped, "images repeat another one at their position")
        irregular = _check_geometry(draft, slots, plane, choices)
        regrid = None
        if irregular and choices.resample:
            regrid = resampling.regrid(slots, plane, (images[0].columns, images[0].rows))
        found = _phases(draft, slots, choices.accept_order)
    except (Refused, SkippedError) as error:
        return draft.stop(error)
    place = Geometry(
        geometry.affine(slots, plane),
        (images[0].columns, images[0].rows, len(slots)),
        frame_of_reference_uid=draft.blank.frame_of_reference_uid,
    )
    if regrid is not None:
        place = replace(regrid.target, frame_of_reference_uid=place.frame_of_reference_uid)
        draft.note("", f"resampled by linear interpolation onto a regular grid of {place.shape}")
    flat = [header for phase in found.frames for header in phase]
    _remark(draft, flat)
    draft.blank = replace(draft.blank, orientation=geometry.orientation_name(plane))
    return draft.finish(
        place,
        found.frames,
        phase_times_s=found.times_s,
        phase_time_source=found.source,
        started_us=summary.started(flat),
        metadata=_metadata(found, slots, regrid),
        regrid=regrid,
    )


def _metadata(found: Phases, slots: Sequence[Slot], regrid: Regrid | None) -> dict[str, Any]:
    metadata = summary.stack_metadata([header for phase in found.frames for header in phase])
    metadata |= summary.fourth_axis(found.frames)
    if regrid is not None:
        positions = [round(slot.distance, 4) for slot in slots]
        metadata["resampled"] = {"method": "linear", "slices_lay_at_mm": positions}
    return metadata


def _check_geometry(
    draft: Draft, slots: list[Slot], plane: Plane, choices: _Choices
) -> frozenset[str]:
    """Raise on a stack whose positions cannot be trusted; note what is only doubtful.

    Returns:
        SHEARED and UNEVEN_SPACING, where they were found and allowed.
    """
    if len(slots) == 1:
        many, first = len(slots[0].headers), slots[0].headers[0]
        if first.slice_thickness is None and first.spacing_between_slices is None:
            raise Refused("NO_GEOMETRY", f"{many} images at one position, without slice thickness")
        raise SkippedError("SINGLE_SLICE", f"{many} images at one position")
    check = geometry.check_two if len(slots) == 2 else geometry.check
    findings = check(slots, plane)
    allowed = {"SHEARED"} if choices.allow_shear or choices.resample else set()
    if choices.resample and len(slots) > 2:
        allowed.add("UNEVEN_SPACING")
    warnings = {"TWO_SLICES", *allowed}
    fatal = [finding for finding in findings if finding.code not in warnings]
    for finding in findings:
        if finding not in fatal[:1]:
            draft.note(finding.code, finding.message)
    if fatal:
        raise Refused(fatal[0].code, fatal[0].message)
    return frozenset({finding.code for finding in findings} & allowed)


def _phases(draft: Draft, slots: list[Slot], accept: bool) -> Phases:
    if len(slots[0].headers) == 1:
        return Phases((tuple(slot.headers[0] for slot in slots),))
    problem: Refused | None = None
    try:
        found = phases.order(slots, accept=accept)
        if not found.guess:
            return _noted(draft, found)
    except Refused as refused:
        problem = refused
    if copies.all_equal(slots):
        dropped = [(h, "DUPLICATE_SLICE") for slot in slots for h in slot.headers[1:]]
        draft.drop(dropped, "images repeat another one at their position")
        return Phases((tuple(slot.headers[0] for slot in slots),))
    if problem is not None:
        raise problem
    draft.note("PHASE_ORDER_GUESSED", found.guess)
    return _noted(draft, found)


def _noted(draft: Draft, found: Phases) -> Phases:
    for text in found.notes:
        draft.note("", text)
    return found


def _remark(draft: Draft, headers: Sequence[Header]) -> None:
    scales = {(header.slope, header.intercept) for header in headers}
    if len(scales) > 1:
        slopes = [slope for slope, _ in scales]
        text = f"{len(scales)} different rescales (slope {min(slopes):g} to {max(slopes):g})"
        draft.note("RESCALE_VARIES", f"{text}: real values are stored as float32")
    if headers[0].image_type[:1] == ("DERIVED",):
        draft.note("", "a derived series with a complete geometry")
    if summary.lossy(headers):
        draft.note("", "the images went through lossy compression")


def study_times(found: Sequence[SeriesPlan]) -> list[SeriesPlan]:
    """The same plans with `series.study_time_s` filled: seconds from the study's first acquisition.

    Args:
        found: All plans of a SOURCE, or at least of whole studies.
    """
    starts: dict[str, set[int]] = defaultdict(set)
    for one in found:
        if one.started_us is not None:
            starts[one.series.study_uid].add(one.started_us)
    clocks = {study: _since_first(sorted(times)) for study, times in starts.items()}
    return [
        replace(one, series=replace(one.series, study_time_s=_study_time(one, clocks)))
        for one in found
    ]


def _study_time(one: SeriesPlan, clocks: dict[str, dict[int, float]]) -> float | None:
    return None if one.started_us is None else clocks[one.series.study_uid][one.started_us]


def _since_first(starts_us: list[int]) -> dict[int, float]:
    """Seconds from the first of some moments; by the time of day, where one of them is undated."""
    moments = starts_us
    if starts_us[0] < _UNDATED_US:
        moments = past_midnight([start % DAY_US for start in starts_us])
    first = min(moments)
    return {start: (us - first) / 1e6 for start, us in zip(starts_us, moments, strict=True)}


def array_bytes(plan: SeriesPlan) -> int:
    """Bytes of the array that `read_volume` makes; 0 where the plan is not convertible."""
    if not plan.convertible:
        return 0
    flat = [header for phase in plan.frames for header in phase]
    first = flat[0]
    varies = len({(header.slope, header.intercept) for header in flat}) > 1
    size = 4 if varies else max(1, first.bits_allocated // 8)
    return len(flat) * first.rows * first.columns * size


def read_volume(plan: SeriesPlan, workers: int = 1) -> Volume:
    """Read the pixels of a convertible plan.

    Args:
        plan: From `plan`.
        workers: Threads that read and decode.

    Returns:
        The volume: (x, y, z) or (x, y, z, t), stored integers with slope and intercept, or float32
        real values where the rescale varies (the code RESCALE_VARIES is then in `plan.series`).

    Raises:
        Refused: TRUNCATED or UNSUPPORTED_SYNTAX, found only when pixels are read.
        ValueError: The plan is not convertible.
    """
    if plan.geometry is None or not plan.convertible:
        raise ValueError(f"series {plan.key} is {plan.series.status}: there is nothing to read")
    first = plan.frames[0][0]
    flat = [header for phase in plan.frames for header in phase]
    scales = {(header.slope, header.intercept) for header in flat}
    # NIfTI takes a slope of 0 for "no slope".
    pixels.check_size(first)
    rescale = len(scales) > 1 or first.slope == 0
    kind = np.dtype(np.float32) if rescale else pixels.dtype(first)
    shape = (len(plan.frames), len(plan.frames[0]), first.rows, first.columns)
    array = np.empty(shape, kind)
    jobs: dict[str, list[tuple[int, int, Header]]] = defaultdict(list)
    for t, phase in enumerate(plan.frames):
        for z, header in enumerate(phase):
            jobs[header.path].append((t, z, header))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: _fill(array, job, rescale), jobs.values()))
    else:
        for job in jobs.values():
            _fill(array, job, rescale)
    slope, intercept = (1.0, 0.0) if rescale else scales.pop()
    turned = array.transpose(3, 2, 1, 0)
    volume = Volume(
        turned if len(plan.frames) > 1 else turned[..., 0],
        plan.geometry,
        slope,
        intercept,
        plan.phase_times_s,
        plan.metadata,
    )
    return volume if plan.regrid is None else resampling.apply(volume, plan.regrid)


def _fill(array: Array, job: Sequence[tuple[int, int, Header]], rescale: bool) -> None:
    """Read one file into the slices that it fills; `array` is (t, z, row, column)."""
    first = job[0][2]
    sheet = np.empty(pixels.sheet_shape(first), pixels.dtype(first))
    with pixels.open_file(first) as file:
        for index, (t, z, header) in enumerate(job):
            if not rescale and first.mosaic is None:
                pixels.read_into(header, array[t, z], file)
                continue
            if first.mosaic is None or index == 0:
                pixels.read_into(header, sheet, file)
            tile = mosaic.tile(sheet, header)
            array[t, z] = tile * header.slope + header.intercept if rescale else tile
