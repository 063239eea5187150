"""How scanners and archives lay out dynamic series, and what must become of each.

Written with pydicom alone; shares no code with `medplat.dicom`. `LAYOUTS` names every layout; each
builds a `Case` of random size and orientation out of a random generator, with the truth from the
generator's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from regular_exports import Array, Export, clock_text, make, set_pixels, step_of, text

Rng = np.random.Generator


@dataclass
class Case:
    """Files, and what must become of them.

    Attributes:
        images: Every file.
        truth: (x, y, z, t) real values.
        affine: RAS.
        codes: Expected codes; the first is the reason of a refusal.
        status: Expected verdict.
        times: Expected phase times.
        names: What the reason of a refusal must name.
    """

    images: list[Dataset]
    truth: Array
    affine: Array
    codes: tuple[str, ...] = ()
    status: str = "converted"
    times: tuple[float, ...] | None = None
    names: str = ""
    options: dict[str, bool] = field(default_factory=dict)

    def write(self, folder: Path, rng: Rng) -> Path:
        """Write under names, and in folders, that tell nothing."""
        for name, image in zip(
            rng.permutation(10**6)[: len(self.images)], self.images, strict=True
        ):
            place = folder / f"d{name % 3}"
            place.mkdir(parents=True, exist_ok=True)
            image.save_as(place / f"{name:06d}", enforce_file_format=True)
        return folder


SLICES = 6
LAYOUTS: dict[str, Callable[[Rng], Case]] = {}


def layout(name: str) -> Any:
    """Put a builder into the table."""

    def add(build: Callable[[Rng], Case]) -> Callable[[Rng], Case]:
        LAYOUTS[name] = build
        return build

    return add


def bare(rng: Rng, phases: int | None = None) -> tuple[Export, tuple[float, ...]]:
    """A series whose headers say nothing of phases, and the times they begin at."""
    export = make(rng, phases=phases or int(rng.integers(3, 6)))
    export.images = [phase[:SLICES] for phase in export.images]
    export.truth = export.truth[:, :, :SLICES]
    for image in export.flat:
        for keyword in ("TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime"):
            if keyword in image:
                delattr(image, keyword)
        del image.InstanceNumber
        del image.AcquisitionDate
    gaps = rng.integers(5_000, 90_000, len(export.images) - 1) / 1000
    return export, (0.0, *np.cumsum(gaps).tolist())


def case(export: Export, **expected: Any) -> Case:
    return Case(export.flat, export.truth, export.affine, **expected)


def guessed(export: Export) -> Case:
    return case(export, codes=("PHASE_ORDER_GUESSED",), status="warned")


def refused(export: Export, code: str, names: str = "") -> Case:
    return case(export, codes=(code,), status="rejected", names=names)


@layout("1 temporal position from 0, count one short, constant ContentTime")
def _siemens(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(image: Dataset, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = t
        image.NumberOfTemporalPositions = len(times) - 1
        image.ContentTime, image.SliceLocation = "120000", str(219 - z)
        image.AcquisitionTime = clock_text(36_000 + times[t])

    export.each(say)
    return case(export, times=times)


@layout("1 temporal position and private times, as I-SPY2 has them")
def _ispy2(rng: Rng) -> Case:
    export, times = bare(rng)
    whole = bool(rng.random() < 0.5)

    def say(image: Dataset, t: int, z: int) -> None:
        image.TemporalPositionIdentifier, image.TriggerTime = t, "0"
        image.ContentTime = clock_text(50_000 + z)
        stated = times if whole else times[t : t + 1]
        image.add_new(0x01170010, "LO", "A vendor")
        image.add_new(0x01171034, "DS", [f"{one:.3f}" for one in stated])

    export.each(say)
    return case(export, times=times)


@layout("2 trigger time in ms, slice location an index")
def _philips(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(image: Dataset, t: int, z: int) -> None:
        image.TriggerTime, image.SliceLocation = f"{1000 * times[t]:.0f}", str(z)

    export.each(say)
    return case(export, times=times)


@layout("2 private begin of the dynamic, in a block that an archive moved")
def _philips_begin(rng: Rng) -> Case:
    export, times = bare(rng)
    block = int(rng.integers(0x10, 0x20))

    def say(image: Dataset, t: int, z: int) -> None:
        image.add_new(0x20050000 | block, "LO", "Philips MR Imaging DD 001")
        image.add_new(0x20050000 | block << 8 | 0xA0, "FL", times[t])

    export.each(say)
    return case(export, times=times)


@layout("2 private timer in tenths of a millisecond, slice by slice")
def _ge_timer(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(image: Dataset, t: int, z: int) -> None:
        image.add_new(0x00210010, "LO", "GEMS_RELA_01")
        image.add_new(0x0021105E, "DS", f"{1e4 * times[t] + 10 * z:.1f}")

    export.each(say)
    return case(export, times=times)


@layout("3 acquisition number and instance number, phase after phase")
def _ge(rng: Rng) -> Case:
    export, _ = bare(rng)
    count = len(export.images[0])

    def say(image: Dataset, t: int, z: int) -> None:
        image.AcquisitionNumber, image.InstanceNumber = t + 1, t * count + z + 1

    export.each(say)
    return case(export)


@layout("4 instance number restarts, only the acquisition time differs")
def _restarting(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(image: Dataset, t: int, z: int) -> None:
        image.InstanceNumber = z + 1
        image.AcquisitionTime = clock_text(30_000 + times[t])

    export.each(say)
    return case(export, times=times)


@layout("5 only instance number, phase after phase")
def _phase_major(rng: Rng) -> Case:
    export, _ = bare(rng)
    count = len(export.images[0])
    export.each(lambda image, t, z: setattr(image, "InstanceNumber", t * count + z + 1))
    return guessed(export)


@layout("5 only instance number, slice after slice")
def _slice_major(rng: Rng) -> Case:
    export, times = bare(rng)
    export.each(lambda image, t, z: setattr(image, "InstanceNumber", z * len(times) + t + 1))
    return guessed(export)


@layout("5 only the time of processing")
def _content_time(rng: Rng) -> Case:
    export, times = bare(rng)
    export.each(lambda image, t, z: setattr(image, "ContentTime", clock_text(9000 + times[t])))
    return guessed(export)


@layout("5 nothing at all tells the phases")
def _nothing(rng: Rng) -> Case:
    export, _ = bare(rng)
    return refused(export, "PHASE_CONFLICT")


@layout("6 one slice of one phase missing")
def _missing_one(rng: Rng) -> Case:
    export = _siemens_export(rng)
    del export.images[int(rng.integers(len(export.images)))][inner(rng)]
    return refused(export, "MISSING_SLICE", "mm along the normal; absent there: phase")


@layout("6 one slice missing in every phase")
def _missing_everywhere(rng: Rng) -> Case:
    export = _siemens_export(rng)
    at = inner(rng)
    for phase in export.images:
        del phase[at]
    return refused(export, "MISSING_SLICE", "mm along the normal")


def inner(rng: Rng) -> int:
    """A slice that is not at an end."""
    return int(rng.integers(1, SLICES - 1))


def _siemens_export(rng: Rng) -> Export:
    export, _ = bare(rng)
    export.each(lambda image, t, z: setattr(image, "TemporalPositionIdentifier", t + 1))
    return export


@layout("7 one slice twice, the same file")
def _same_file(rng: Rng) -> Case:
    found = case(_siemens_export(rng), codes=("DUPLICATE_FILE",), status="warned")
    found.images.append(deepcopy(found.images[int(rng.integers(len(found.images)))]))
    return found


@layout("7 one slice twice, under a new UID")
def _same_pixels(rng: Rng) -> Case:
    found = case(_siemens_export(rng), codes=("DUPLICATE_SLICE",), status="warned")
    copy = deepcopy(found.images[int(rng.integers(len(found.images)))])
    copy.SOPInstanceUID = generate_uid()
    found.images.append(copy)
    return found


@layout("7 one slice twice, with different pixels")
def _other_pixels(rng: Rng) -> Case:
    found = refused(_siemens_export(rng), "DUPLICATE_SLICE", "mm along the normal")
    copy = deepcopy(found.images[int(rng.integers(len(found.images)))])
    copy.SOPInstanceUID = generate_uid()
    set_pixels(copy, rng.integers(0, 4000, (copy.Rows, copy.Columns)))
    found.images.append(copy)
    return found


@layout("9 rescale by phase")
def _rescale_by_phase(rng: Rng) -> Case:
    return _rescaled(rng, lambda t, z: (1.0 + t / 8, -10.0 * t))


@layout("9 rescale by slice")
def _rescale_by_slice(rng: Rng) -> Case:
    return _rescaled(rng, lambda t, z: (0.001 * (z + 1), 0.0))


def _rescaled(rng: Rng, scale: Callable[[int, int], tuple[float, float]]) -> Case:
    export = _siemens_export(rng)
    before = float(export.flat[0].RescaleSlope), float(export.flat[0].RescaleIntercept)
    stored = (export.truth - before[1]) / before[0]

    def say(image: Dataset, t: int, z: int) -> None:
        slope, intercept = scale(t, z)
        image.RescaleSlope, image.RescaleIntercept = f"{slope:.6g}", f"{intercept:.6g}"
        export.truth[:, :, z, t] = stored[:, :, z, t] * slope + intercept

    export.each(say)
    return case(export, codes=("RESCALE_VARIES",), status="warned")


@layout("12 interleaved slices with a time each")
def _interleaved(rng: Rng) -> Case:
    export, times = bare(rng)
    count = len(export.images[0])
    order = [*range(0, count, 2), *range(1, count, 2)]
    part = 4.0 / count

    def say(image: Dataset, t: int, z: int) -> None:
        image.AcquisitionTime = clock_text(36_000 + times[t] + order.index(z) * part)

    export.each(say)
    return case(export, times=times)


@layout("12 past midnight, undated")
def _midnight(rng: Rng) -> Case:
    return _past_midnight(rng, dated=False)


@layout("12 past midnight, the date left as it was")
def _midnight_dated(rng: Rng) -> Case:
    return _past_midnight(rng, dated=True)


def _past_midnight(rng: Rng, dated: bool) -> Case:
    export, times = bare(rng)
    start = 86_400 - times[-1] / 2

    def say(image: Dataset, t: int, z: int) -> None:
        image.AcquisitionTime = clock_text(start + times[t])
        if dated:
            image.AcquisitionDate = "20010203"

    export.each(say)
    return case(export, times=times)


@layout("12 a clock of whole seconds, phases within one of them")
def _coarse(rng: Rng) -> Case:
    export, _ = bare(rng, phases=5)

    def say(image: Dataset, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = t + 1
        image.AcquisitionTime = f"1000{t // 2:02d}"

    export.each(say)
    return case(export)


@layout("12 temporal position contradicts the acquisition time")
def _contradiction(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(image: Dataset, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = len(times) - t
        image.AcquisitionTime = clock_text(40_000 + times[t])

    export.each(say)
    return refused(export, "PHASE_CONFLICT", "AcquisitionTime and TemporalPositionIdentifier")


@layout("12 the same, accepted by a person")
def _accepted(rng: Rng) -> Case:
    found = _contradiction(rng)
    start = _seconds(found.images[0])
    times = tuple(sorted({round(_seconds(i) - start, 6) for i in found.images}))
    found.codes, found.status, found.times = (), "converted", times
    found.options = {"accept_order": True}
    return found


def _seconds(image: Dataset) -> float:
    clock = str(image.AcquisitionTime)
    return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + float(clock[4:])


@layout("11 sheared")
def _sheared(rng: Rng) -> Case:
    export = _shear(rng)
    return refused(export, "SHEARED", "degrees")


@layout("11 sheared, kept in the affine")
def _shear_allowed(rng: Rng) -> Case:
    return case(_shear(rng), codes=("SHEARED",), status="warned", options={"allow_shear": True})


def _shear(rng: Rng) -> Export:
    export = make(rng)
    image = export.flat[0]
    row = np.array([float(one) for one in image.ImageOrientationPatient[:3]])
    per_slice = float(rng.uniform(0.1, 1.0)) * float(np.linalg.norm(step_of(export)))
    place = [np.array([float(one) for one in i.ImagePositionPatient]) for i in export.flat]
    for z, one in enumerate(export.flat):
        one.ImagePositionPatient = text(place[z] + z * per_slice * row)
    export.affine[:3, 2] += np.array([-1.0, -1.0, 1.0]) * row * per_slice
    return export


@layout("11 positions with two decimals")
def _two_decimals(rng: Rng) -> Case:
    export = make(rng)
    for image in export.flat:
        image.ImagePositionPatient = [f"{float(one):.2f}" for one in image.ImagePositionPatient]
    return case(export)
