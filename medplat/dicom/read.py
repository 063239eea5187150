"""From the files of one series to plans of its output stacks, and from a plan to a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat.dicom import copies, geometry, mosaic, phases, pixels, screen, series, summary
from medplat.dicom.geometry import Plane, Slot
from medplat.dicom.header import Header
from medplat.dicom.phases import Phases
from medplat.dicom.plans import Draft, Fate, SeriesPlan, SkippedError, left_out
from medplat.dicom.series import SeriesFiles
from medplat.errors import Refused
from medplat.types import Array, Geometry, Series, Volume

if TYPE_CHECKING:
    from medplat.pseudonym import Pseudonyms

__all__ = ["Fate", "SeriesPlan", "broken", "plan", "read_volume", "study_times"]
# Smaller moments are times of day: there was no date.
_UNDATED_S = 1e6
_DAY_S = 86_400


def plan(
    files: SeriesFiles, *, pseudonyms: Pseudonyms | None = None, allow_shear: bool = False
) -> list[SeriesPlan]:
    """Decide what becomes of one series: one plan an output stack (echo, image type, b-value).

    Args:
        files: The headers of one series, from `series.group`.
        pseudonyms: Gives `case`, `patient` and the hash in `key`; None leaves the first two empty.
        allow_shear: Convert sheared stacks with a warning (the affine then holds the shear).

    Returns:
        At least one plan; a rejected or skipped series has exactly one.
    """

    def draft(headers: Sequence[Header], suffix: str = "") -> Draft:
        blank = summary.describe(headers, files, pseudonyms)
        key = summary.stack_key(headers, files, suffix, pseudonyms)
        found = Draft(tuple(headers), blank, key)
        if not files.has_uid:
            found.note("NO_UID", "study or series UID is empty: no DICOM SEG can be written")
        return found

    whole = draft(files.headers)
    try:
        _one_patient(files)
        fit, unfit = screen.sort_out(files.headers)
        for header, code in unfit:
            whole.lose(header, code, left_out(code))
        screen.check(fit)
        if fit[0].modality in screen.FLAT_MODALITIES:
            return _flat_plans(fit, unfit, draft)
        parts = series.split(fit)
    except (Refused, SkippedError) as error:
        return [whole.stop(error)]
    drafts = [draft(stack.headers, stack.suffix) for stack in parts.stacks]
    drafts[0].drop(unfit, f"of {len(files.headers)} images are left out")
    drafts[0].drop(parts.set_aside, "images beside the stack are left out")
    return [_plan_stack(one, allow_shear) for one in drafts]


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
    who = first.identity
    failed = Series(
        series_uid=files.series_uid,
        study_uid=files.study_uid,
        case=pseudonyms.case(files.study_uid) if pseudonyms else "",
        patient=pseudonyms.patient(who.patient_id, who.issuer) if pseudonyms else "",
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
    fit: Sequence[Header], unfit: Sequence[tuple[Header, str]], draft: Any
) -> list[SeriesPlan]:
    """One 2-D plan for each projection image (CR, DX, MG)."""
    kept = copies.drop_files(fit)
    images = sorted(kept.headers, key=lambda h: (h.instance_number or 0, h.sop_instance_uid))
    plans = []
    for index, header in enumerate(images, start=1):
        one: Draft = draft([header], f"_i{index}" if len(images) > 1 else "")
        if index == 1:
            one.drop(unfit, "images are left out")
            one.drop(kept.dropped, "files repeat an image")
        try:
            place, tag = geometry.flat(header)
        except Refused as refused:
            plans.append(one.stop(refused))
            continue
        metadata = {**summary.stack_metadata([header]), "spacing_source": tag}
        frames = ((header,),)
        started = summary.started([header])
        plans.append(one.finish(place, frames, started_s=started, metadata=metadata))
    return plans


def _plan_stack(draft: Draft, allow_shear: bool) -> SeriesPlan:
    try:
        kept = copies.drop_files(draft.headers)
        draft.drop(kept.dropped, "files repeat an image that is used")
        images = [tile for header in kept.headers for tile in mosaic.tiles(header)]
        if len(images) == 1:
            raise SkippedError("SINGLE_SLICE", "the series holds a single image")
        plane = geometry.plane(images)
        slots, dropped = copies.level(geometry.slots(images, plane))
        draft.drop(dropped, "images repeat another one at their position")
        _check_geometry(draft, slots, plane, allow_shear)
        found = _phases(draft, slots)
    except (Refused, SkippedError) as error:
        return draft.stop(error)
    place = Geometry(
        geometry.affine(slots, plane),
        (images[0].columns, images[0].rows, len(slots)),
        frame_of_reference_uid=draft.blank.frame_of_reference_uid,
    )
    flat = [header for phase in found.frames for header in phase]
    _remark(draft, flat)
    draft.blank = replace(draft.blank, orientation=geometry.orientation_name(plane))
    return draft.finish(
        place,
        found.frames,
        phase_times_s=found.times_s,
        phase_time_source=found.source,
        started_s=summary.started(flat),
        metadata=summary.stack_metadata(flat),
    )


def _check_geometry(draft: Draft, slots: list[Slot], plane: Plane, allow_shear: bool) -> None:
    """Raise on a stack whose positions cannot be trusted; note what is only doubtful."""
    if len(slots) == 1:
        many, first = len(slots[0].headers), slots[0].headers[0]
        if first.slice_thickness is None and first.spacing_between_slices is None:
            raise Refused("NO_GEOMETRY", f"{many} images at one position, without slice thickness")
        raise SkippedError("SINGLE_SLICE", f"{many} images at one position")
    check = geometry.check_two if len(slots) == 2 else geometry.check
    findings = check(slots, plane)
    warnings = {"TWO_SLICES"} | ({"SHEARED"} if allow_shear else set())
    fatal = [finding for finding in findings if finding.code not in warnings]
    for finding in findings:
        if finding not in fatal[:1]:
            draft.note(finding.code, finding.message)
    if fatal:
        raise Refused(fatal[0].code, fatal[0].message)


def _phases(draft: Draft, slots: list[Slot]) -> Phases:
    if len(slots[0].headers) == 1:
        return Phases((tuple(slot.headers[0] for slot in slots),))
    problem: Refused | None = None
    try:
        found = phases.order(slots)
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


def study_times(plans: Sequence[SeriesPlan]) -> list[SeriesPlan]:
    """The same plans with `series.study_time_s` filled: seconds from the study's first acquisition.

    Args:
        plans: All plans of a SOURCE, or at least of whole studies.
    """
    starts: dict[str, list[float]] = defaultdict(list)
    for one in plans:
        if one.started_s is not None:
            starts[one.series.study_uid].append(one.started_s)
    return [
        replace(one, series=replace(one.series, study_time_s=_since(one, starts))) for one in plans
    ]


def _since(one: SeriesPlan, starts: dict[str, list[float]]) -> float | None:
    if one.started_s is None:
        return None
    all_of_study = starts[one.series.study_uid]
    if min(all_of_study) < _UNDATED_S:
        return round(one.started_s % _DAY_S - min(start % _DAY_S for start in all_of_study), 6)
    return round(one.started_s - min(all_of_study), 6)


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
    return Volume(
        turned if len(plan.frames) > 1 else turned[..., 0],
        plan.geometry,
        slope,
        intercept,
        plan.phase_times_s,
        plan.metadata,
    )


def _fill(array: Array, job: Sequence[tuple[int, int, Header]], rescale: bool) -> None:
    """Read one file into the slices that it fills; `array` is (t, z, row, column)."""
    t, z, first = job[0]
    if not rescale and first.mosaic is None:
        pixels.read_into(first, array[t, z])
        return
    sheet = np.empty(pixels.sheet_shape(first), pixels.dtype(first))
    pixels.read_into(first, sheet)
    for t, z, header in job:
        tile = mosaic.tile(sheet, header)
        array[t, z] = tile * header.slope + header.intercept if rescale else tile
