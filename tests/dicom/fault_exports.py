"""DICOM series with one physical fault each, and what betrays it; written with pydicom alone.

Shares no code with `medplat.dicom`. `FAULTS` is the table: what happened, the header or pixel
evidence, and the codes with which a refusal names it. `UNDETECTABLE` lists faults that leave no
trace in the files, which no converter can find. `kernels/bench/wrong_volumes.py` gives the same
exports to other converters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid
from regular_exports import Export, axes, clock_text, make, move, set_pixels, step_of, text

Plant = Callable[[Export, np.random.Generator], None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: What happened.
        evidence: What in headers or pixels betrays it.
        codes: Codes that name it; a refusal must carry one of them.
        phases: Phases of the series that it is planted in: 1, or more than 1.
        plant: Changes a regular export in place.
        harmless: A converter may write the undamaged volume.
    """

    name: str
    evidence: str
    codes: frozenset[str]
    phases: int
    plant: Plant
    harmless: bool = False


FAULTS: list[Fault] = []


def fault(name: str, evidence: str, codes: str, phases: int = 1, harmless: bool = False) -> Any:
    """Put a planting function into the table."""

    def add(plant: Plant) -> Plant:
        FAULTS.append(Fault(name, evidence, frozenset(codes.split()), phases, plant, harmless))
        return plant

    return add


def inner(export: Export, rng: np.random.Generator, margin: int = 2) -> int:
    """A slice that is not at an end."""
    return int(rng.integers(margin, len(export.images[0]) - margin))


def upper_half(export: Export) -> Iterator[tuple[int, Dataset]]:
    half = len(export.images[0]) // 2
    for phase in export.images:
        yield from enumerate(phase[half:])


# Slices lost or sent twice


@fault("one slice missing", "a gap of two steps", "MISSING_SLICE")
def _one_missing(export: Export, rng: np.random.Generator) -> None:
    del export.images[0][inner(export, rng)]


@fault("three neighbouring slices missing", "a gap of four steps", "MISSING_SLICE")
def _three_missing(export: Export, rng: np.random.Generator) -> None:
    z = inner(export, rng, 4)
    del export.images[0][z - 1 : z + 2]


@fault("every second slice of one half missing", "gaps of one and of two steps", "MISSING_SLICE")
def _thinned(export: Export, rng: np.random.Generator) -> None:
    half = len(export.images[0]) // 2
    del export.images[0][half + 1 : -1 : 2]


@fault("one slice missing in every phase", "a gap of two steps", "MISSING_SLICE", 4)
def _missing_everywhere(export: Export, rng: np.random.Generator) -> None:
    z = inner(export, rng)
    for phase in export.images:
        del phase[z]


@fault("one slice of one phase missing", "fewer images at one position", "MISSING_SLICE", 4)
def _missing_once(export: Export, rng: np.random.Generator) -> None:
    del export.images[int(rng.integers(4))][inner(export, rng, 0)]


@fault(
    "last phase aborted",
    "fewer images at the last positions",
    "MISSING_SLICE DUPLICATE_SLICE",  # the commonest count is taken for the right one
    4,
)
def _aborted(export: Export, rng: np.random.Generator) -> None:
    del export.images[-1][inner(export, rng) :]


@fault(
    "a slice sent again with other pixels",
    "two different images at one position",
    "DUPLICATE_SLICE",
)
def _edited_copy(export: Export, rng: np.random.Generator) -> None:
    copy = deepcopy(export.images[0][inner(export, rng)])
    copy.SOPInstanceUID = generate_uid()
    set_pixels(copy, rng.integers(0, 4000, (copy.Rows, copy.Columns)))
    export.images[0].append(copy)


@fault("one instance UID, two contents", "other bytes under one UID", "DUPLICATE_SLICE")
def _same_uid(export: Export, rng: np.random.Generator) -> None:
    copy = deepcopy(export.images[0][inner(export, rng)])
    set_pixels(copy, rng.integers(0, 4000, (copy.Rows, copy.Columns)))
    export.images[0].append(copy)


@fault(
    "a slice of one phase sent again with other pixels",
    "one image more at one position",
    "DUPLICATE_SLICE",
    4,
)
def _edited_in_phase(export: Export, rng: np.random.Generator) -> None:
    t = int(rng.integers(4))
    copy = deepcopy(export.images[t][inner(export, rng, 0)])
    copy.SOPInstanceUID = generate_uid()
    set_pixels(copy, rng.integers(0, 4000, (copy.Rows, copy.Columns)))
    export.images[t].append(copy)


@fault("a slice sent twice", "two equal images", "DUPLICATE_FILE DUPLICATE_SLICE", harmless=True)
def _twice(export: Export, rng: np.random.Generator) -> None:
    copy = deepcopy(export.images[0][inner(export, rng, 0)])
    if rng.random() < 0.5:
        copy.SOPInstanceUID = generate_uid()
    export.images[0].append(copy)


# Positions and orientation


@fault("table jumped by part of a step", "one odd gap", "UNEVEN_SPACING")
def _jump(export: Export, rng: np.random.Generator) -> None:
    along = step_of(export) * rng.uniform(0.1, 0.7)
    for _, image in upper_half(export):
        move(image, along)


@fault("slice positions jitter", "uneven gaps", "UNEVEN_SPACING MISSING_SLICE")
def _jitter(export: Export, rng: np.random.Generator) -> None:
    step = step_of(export)
    export.each(lambda image, t, z: move(image, step * rng.choice([-0.2, 0.2]) * (z % 2)))


@fault("spacing grows along the stack", "uneven gaps", "UNEVEN_SPACING")
def _drift(export: Export, rng: np.random.Generator) -> None:
    step = step_of(export) * rng.uniform(0.01, 0.05)
    export.each(lambda image, t, z: move(image, step * z * z))


@fault("two slice spacings in one stack", "gaps of two sizes", "UNEVEN_SPACING MISSING_SLICE")
def _two_spacings(export: Export, rng: np.random.Generator) -> None:
    extra = step_of(export) * rng.uniform(0.3, 1.7)
    for z, image in upper_half(export):
        move(image, extra * z)


@fault("gantry tilt", "slices offset sideways", "SHEARED")
def _tilt(export: Export, rng: np.random.Generator) -> None:
    _, column, _ = axes(export.images[0][0])
    slide = np.linalg.norm(step_of(export)) * np.tan(np.deg2rad(rng.uniform(0.6, 25)))
    export.each(lambda image, t, z: move(image, column * slide * z))


@fault("patient slid sideways midway", "an in-plane jump", "UNEVEN_SPACING SHEARED")
def _slid(export: Export, rng: np.random.Generator) -> None:
    row, _, _ = axes(export.images[0][0])
    for _, image in upper_half(export):
        move(image, row * 3.0)


@fault("one slice sideways", "an in-plane offset", "UNEVEN_SPACING SHEARED")
def _one_aside(export: Export, rng: np.random.Generator) -> None:
    image = export.images[0][inner(export, rng)]
    move(image, axes(image)[1] * rng.uniform(0.5, 20))


@fault("orientation turns midway", "two orientations", "MIXED_ORIENTATION")
def _turned(export: Export, rng: np.random.Generator) -> None:
    row, column, _ = axes(export.images[0][0])
    angle = np.deg2rad(rng.uniform(0.5, 8))
    turned = np.concatenate([row * np.cos(angle) + column * np.sin(angle),
                             column * np.cos(angle) - row * np.sin(angle)])  # fmt: skip
    for _, image in upper_half(export):
        image.ImageOrientationPatient = text(turned)


@fault("rows reversed on half of the slices", "two orientations", "MIXED_ORIENTATION")
def _mirrored(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        row, column, _ = axes(image)
        image.ImageOrientationPatient = text(np.concatenate([-row, column]))


@fault("one phase at other positions", "positions of one phase lie between the others'",
       "MISSING_SLICE UNEVEN_SPACING DUPLICATE_SLICE PHASE_CONFLICT", 4)  # fmt: skip
def _shifted_phase(export: Export, rng: np.random.Generator) -> None:
    along = step_of(export) * rng.uniform(0.2, 0.8)
    for image in export.images[int(rng.integers(4))]:
        move(image, along)


@fault("frame of reference changes midway", "two frames of reference", "MIXED_ORIENTATION")
def _two_frames(export: Export, rng: np.random.Generator) -> None:
    other = generate_uid()
    for _, image in upper_half(export):
        image.FrameOfReferenceUID = other


@fault("orientation absent on one slice", "no ImageOrientationPatient", "NO_GEOMETRY")
def _no_orientation(export: Export, rng: np.random.Generator) -> None:
    del export.images[0][inner(export, rng)].ImageOrientationPatient


@fault("position absent on one slice", "no ImagePositionPatient", "NO_GEOMETRY")
def _no_position(export: Export, rng: np.random.Generator) -> None:
    del export.images[0][inner(export, rng)].ImagePositionPatient


@fault("axes not perpendicular", "row and column directions", "NO_GEOMETRY")
def _skewed(export: Export, rng: np.random.Generator) -> None:
    row, column, _ = axes(export.images[0][0])
    column = column + row * rng.uniform(0.02, 0.3)
    column /= np.linalg.norm(column)
    for image in export.flat:
        image.ImageOrientationPatient = text(np.concatenate([row, column]))


@fault("pixel spacing of zero", "PixelSpacing", "NO_GEOMETRY")
def _no_spacing(export: Export, rng: np.random.Generator) -> None:
    for image in export.flat:
        image.PixelSpacing = ["0", "0"]


@fault("two pixel spacings", "PixelSpacing differs", "MIXED_SHAPE")
def _zoomed(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        image.PixelSpacing = [f"{float(value) * 1.1:.6f}" for value in image.PixelSpacing]


@fault("two matrices", "Rows and Columns differ", "MIXED_SHAPE")
def _two_matrices(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        set_pixels(image, rng.integers(0, 4000, (image.Rows + 2, image.Columns)))


# Pixels


@fault("file cut in the pixels", "fewer bytes than the header says", "TRUNCATED")
def _cut(export: Export, rng: np.random.Generator) -> None:
    image = export.images[0][inner(export, rng, 0)]
    export.cut[image.SOPInstanceUID] = int(rng.integers(2, len(image.PixelData)))


@fault("compressed file cut", "no end of the pixel items", "TRUNCATED")
def _cut_stream(export: Export, rng: np.random.Generator) -> None:
    for image in export.flat:
        image.compress(RLELossless, generate_instance_uid=False)
    image = export.images[0][inner(export, rng, 0)]
    export.cut[image.SOPInstanceUID] = int(rng.integers(9, len(image.PixelData) // 2))


@fault("compressed frame emptied", "a frame that does not decode", "TRUNCATED")
def _bad_stream(export: Export, rng: np.random.Generator) -> None:
    for image in export.flat:
        image.compress(RLELossless, generate_instance_uid=False)
    image = export.images[0][inner(export, rng, 0)]
    start = image.PixelData.index(b"\xfe\xff\x00\xe0", 8) + 8
    kept = start + 64 + int(rng.integers(1, 20))
    image.PixelData = image.PixelData[:kept] + bytes(len(image.PixelData) - kept - 8) + (
        image.PixelData[-8:]
    )  # fmt: skip


@fault("image without pixels", "no pixel element", "NO_PIXELS MISSING_SLICE")
def _no_pixels(export: Export, rng: np.random.Generator) -> None:
    del export.images[0][inner(export, rng)].PixelData


@fault("header says more rows than there are", "fewer bytes than Rows says", "TRUNCATED")
def _too_many_rows(export: Export, rng: np.random.Generator) -> None:
    for image in export.flat:
        image.Rows += 3


@fault("signed and unsigned slices", "PixelRepresentation differs", "MIXED_SHAPE")
def _half_signed(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        image.PixelRepresentation = 1


@fault("inverted and plain slices", "PhotometricInterpretation differs", "MIXED_SHAPE")
def _half_inverted(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        image.PhotometricInterpretation = "MONOCHROME1"


@fault("slope differs from slice to slice", "RescaleSlope", "RESCALE_VARIES", harmless=True)
def _slopes(export: Export, rng: np.random.Generator) -> None:
    for z, image in enumerate(export.images[0]):
        slope = 1 + z / 8
        intercept = float(image.RescaleIntercept)
        stored = (export.truth[:, :, z, 0] - intercept) / float(image.RescaleSlope)
        export.truth[:, :, z, 0] = stored * slope + intercept
        image.RescaleSlope = str(slope)


# Phases, series and patients


@fault("temporal positions against the clock", "two tags disagree", "PHASE_CONFLICT", 4)
def _against_clock(export: Export, rng: np.random.Generator) -> None:
    for t, phase in enumerate(export.images):
        for image in phase:
            image.TemporalPositionIdentifier = t
            image.AcquisitionTime = clock_text(40_000 + 60 * [0, 2, 1, 3][t])


@fault("two slices exchanged their phase", "two tags disagree", "PHASE_CONFLICT", 4)
def _exchanged(export: Export, rng: np.random.Generator) -> None:
    z = inner(export, rng, 0)
    for t, phase in enumerate(export.images):
        for image in phase:
            image.TemporalPositionIdentifier = t + 1
            image.AcquisitionTime = clock_text(40_000 + 60 * t)
    one, two = export.images[1][z], export.images[2][z]
    one.TemporalPositionIdentifier, two.TemporalPositionIdentifier = 3, 2


@fault("trigger times against the clock", "two tags disagree", "PHASE_CONFLICT", 4)
def _trigger_against_clock(export: Export, rng: np.random.Generator) -> None:
    for t, phase in enumerate(export.images):
        for image in phase:
            image.TriggerTime = f"{1000 * (3 - t)}"
            image.AcquisitionTime = clock_text(40_000 + 60 * t)


@fault("nothing tells the phases apart", "no tag that separates them", "PHASE_CONFLICT", 4)
def _no_order(export: Export, rng: np.random.Generator) -> None:
    for phase in export.images:
        for z, image in enumerate(phase):
            for word in ("TemporalPositionIdentifier", "TriggerTime"):
                if word in image:
                    delattr(image, word)
            image.AcquisitionTime, image.InstanceNumber = "100000", z + 1


@fault("two patients in one series", "PatientID differs", "MIXED_PATIENT")
def _two_patients(export: Export, rng: np.random.Generator) -> None:
    for _, image in upper_half(export):
        image.PatientID, image.PatientName = "OTHER", "Roe^Richard"


@fault("two stacks under one series UID", "two sets of positions",
       "UNEVEN_SPACING MISSING_SLICE DUPLICATE_SLICE")  # fmt: skip
def _two_stacks(export: Export, rng: np.random.Generator) -> None:
    stack = export.images[0]
    along = step_of(export) * (len(stack) + rng.uniform(3.2, 6.8))
    more = deepcopy(stack)
    for image in more:
        image.SOPInstanceUID = generate_uid()
        move(image, along)
        set_pixels(image, rng.integers(0, 4000, (image.Rows, image.Columns)))
    stack.extend(more)


UNDETECTABLE = {
    "first or last slice missing in every phase": "the stack is regular without it",
    "pixels of two slices exchanged": "headers and files are whole",
    "left and right exchanged in all headers": "a mirrored patient is as regular",
    "wrong spacing in all headers": "nothing else tells the size",
    "wrong slope in all headers": "nothing else tells the unit",
    "all phases' tags exchanged alike": "all tags agree",
    "motion between the phases": "positions are the table's, not the patient's",
}


def exports(n: int, seed: int) -> Iterator[tuple[int, Fault | None, Export]]:
    """`n` exports: each fault in turn, every tenth one regular."""
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        chosen = FAULTS[(number - number // 10 - 1) % len(FAULTS)] if number % 10 else None
        phases = chosen.phases if chosen else int(rng.choice([1, 4]))
        export = make(rng, phases=phases)
        if chosen:
            chosen.plant(export, rng)
        yield number, chosen, export
