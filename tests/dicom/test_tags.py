"""Values that need several tags: b-values, uptake factors, mappings, private blocks, clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medplat.dicom.clock import past_midnight
from medplat.dicom.read import SeriesPlan, plan, read_volume, study_times
from medplat.dicom.scan import scan
from medplat.dicom.series import group


def plans_of(folder: Path) -> list[SeriesPlan]:
    return [one for series in group(scan(folder)) for one in plan(series)]


def private(image: Dataset, creator: str, tag: int, vr: str, value: Any, block: int = 0x10) -> None:
    space = image.private_block(tag >> 16, creator, create=True) if block == 0x10 else None
    if space is not None:
        space.add_new(tag & 0xFF, vr, value)
        return
    image.add_new(tag & 0xFFFF0000 | block, "LO", creator)
    image.add_new(tag & 0xFFFF0000 | block << 8 | tag & 0xFF, vr, value)


def _standard(image: Dataset, b: float) -> None:
    image.DiffusionBValue = b


def _siemens(image: Dataset, b: float) -> None:
    private(image, "SIEMENS MR HEADER", 0x0019100C, "IS", int(b), block=0x13)


def _philips(image: Dataset, b: float) -> None:
    private(image, "Philips Imaging DD 001", 0x20011003, "FL", b)


def _ge(image: Dataset, b: float) -> None:
    private(image, "GEMS_PARM_01", 0x00431039, "IS", [int(b) + 1_000_000_000, 8, 0, 0])


@pytest.mark.parametrize("say", [_standard, _siemens, _philips, _ge])
def test_b_values_of_every_vendor_make_stacks(
    dicom: Any, tmp_path: Path, say: Callable[[Dataset, float], None]
) -> None:
    made = dicom.make(phases=2).each(lambda image, t, z: say(image, (50.0, 800.0)[t]))
    low, high = plans_of(dicom.write(tmp_path, made.flat))
    assert [one.key.partition("_")[2] for one in (low, high)] == ["b50", "b800"]
    assert [one.metadata["b_value"] for one in (low, high)] == [50.0, 800.0]
    np.testing.assert_array_equal(read_volume(high).array, made.array[..., 1])


def test_a_private_element_of_another_creator_is_not_taken(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make().each(
        lambda image, t, z: private(image, "SOMEBODY ELSE", 0x0019100C, "IS", 700)
    )
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert "b_value" not in one.metadata


def test_directions_are_told_on_the_fourth_axis(dicom: Any, tmp_path: Path) -> None:
    directions = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]

    def change(image: Any, t: int, z: int) -> None:
        image.DiffusionBValue, image.AcquisitionNumber = 1000.0, t
        image.DiffusionGradientOrientation = list(directions[t])

    made = dicom.make(phases=3).each(change)
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert one.metadata["fourth_axis"] == "diffusion direction"
    assert one.metadata["gradient_directions_lps"] == directions


def test_inversion_times_are_told_on_the_fourth_axis(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.InversionTime, image.AcquisitionNumber = str(100 * (t + 1)), t

    made = dicom.make(phases=3).each(change)
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert one.metadata["fourth_axis"] == "inversion time"
    assert one.metadata["inversion_times_ms"] == [100.0, 200.0, 300.0]


def _pet(image: Any, t: int, z: int) -> None:
    image.SOPClassUID, image.Modality = "1.2.840.10008.5.1.4.1.1.128", "PT"
    image.Units, image.DecayCorrection, image.PatientWeight = "BQML", "START", "70"
    image.SeriesTime, image.RescaleSlope, image.RescaleIntercept = "110000", str(0.5 + z), "0"
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "3.5e8", "6586.2"
    tracer.RadiopharmaceuticalStartTime = "095000"
    image.RadiopharmaceuticalInformationSequence = Sequence([tracer])


def test_pet_with_a_slope_a_slice_and_its_uptake_factor(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make().each(_pet)
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert one.series.codes == ("RESCALE_VARIES",)
    assert one.metadata["Units"] == "BQML"
    # 70 kg; 350 MBq that decayed for 70 minutes: by hand.
    factor = 70_000 / (3.5e8 * 0.5 ** (4200 / 6586.2))
    assert one.metadata["suv_body_weight_factor"] == pytest.approx(factor, rel=1e-12)
    truth = made.array * (0.5 + np.arange(made.array.shape[2]))
    np.testing.assert_allclose(read_volume(one).array, truth, rtol=1e-6)


@pytest.mark.parametrize("absent", ["PatientWeight", "DecayCorrection", "SeriesTime"])
def test_no_uptake_factor_without_all_it_takes(dicom: Any, tmp_path: Path, absent: str) -> None:
    made = dicom.make().each(_pet)
    made.each(lambda image, t, z: delattr(image, absent))
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert "suv_body_weight_factor" not in one.metadata


@pytest.mark.parametrize("rescaled", [True, False])
def test_a_real_world_mapping_stands_in_for_an_absent_rescale(
    dicom: Any, tmp_path: Path, rescaled: bool
) -> None:
    def change(image: Any, t: int, z: int) -> None:
        mapping, unit = Dataset(), Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.125, -2.0
        unit.CodeValue, unit.CodingSchemeDesignator = "um2/s", "UCUM"
        mapping.MeasurementUnitsCodeSequence = Sequence([unit])
        image.RealWorldValueMappingSequence = Sequence([mapping])
        if rescaled:
            image.RescaleSlope, image.RescaleIntercept = "3", "1"

    made = dicom.make().each(change)
    (one,) = plans_of(dicom.write(tmp_path, made.flat))
    assert one.metadata["real_world_value_slope"] == 0.125
    assert one.metadata["real_world_value_units"] == "um2/s"
    volume = read_volume(one)
    assert (volume.slope, volume.intercept) == ((3.0, 1.0) if rescaled else (0.125, -2.0))


def test_an_undated_study_past_midnight(dicom: Any, tmp_path: Path) -> None:
    """One series a phase, two of them after midnight, UIDs and numbers in no order."""
    times = [0.0, 70.5, 141.0, 300.25]
    for t, number in enumerate((600, 4, 601, 11)):
        made = dicom.make(seed=t)

        def change(image: Any, _: int, z: int, t: int = t, number: int = number) -> None:
            image.StudyInstanceUID, image.SeriesNumber = "1.2.3", number
            image.AcquisitionTime = dicom.clock(times[t] - 100 + z / 1000, "00:00:00")
            image.InstanceNumber = 100 - z

        dicom.write(tmp_path / str(t), made.each(change).flat)
    plans = study_times(plans_of(tmp_path))
    by_number = {one.series.number: one.series.study_time_s for one in plans}
    assert [by_number[n] for n in (600, 4, 601, 11)] == pytest.approx(times)


def test_past_midnight() -> None:
    hour = 3_600_000_000
    assert past_midnight([23 * hour, hour, 22 * hour]) == [23 * hour, 25 * hour, 22 * hour]
    assert past_midnight([8 * hour, 19 * hour]) == [8 * hour, 19 * hour]
    assert past_midnight([]) == []


def test_images_that_share_a_header_keep_what_is_their_own(dicom: Any, tmp_path: Path) -> None:
    def differ(image: Dataset, t: int, z: int) -> None:
        image.XRayTubeCurrent = 100 + 10 * (z // 2)
        image.TemporalPositionIdentifier, image.TriggerTime = t + 1, 20.5 * (t + 1)
        image.AcquisitionNumber = 7 * t + z
        image.AcquisitionDate, image.AcquisitionTime = "20200101", f"12{t:02d}{z:02d}.25"
        image.EchoTime = 3.5 + (z == 4)  # Of an element that is expected to be shared.
        image.PatientName = "Other^One" if z == 5 else "Some^Body"
        if z == 6:
            del image.XRayTubeCurrent

    made = dicom.make(phases=2).each(differ)
    dicom.write(tmp_path, made.flat)
    found = {file.header.sop_instance_uid: file.header for file in scan(tmp_path) if file.header}
    assert len(found) == len(made.flat)
    for image in made.flat:
        header = found[image.SOPInstanceUID]
        current = image.get("XRayTubeCurrent")
        assert dict(header.technical).get("XRayTubeCurrent") == current
        assert header.position == tuple(map(float, image.ImagePositionPatient))
        assert header.instance_number == image.InstanceNumber
        assert header.acquisition_number == image.AcquisitionNumber
        assert header.temporal_position == image.TemporalPositionIdentifier
        assert header.trigger_time_ms == image.TriggerTime
        assert header.echo_time == dict(header.technical)["EchoTime"] == image.EchoTime
        assert header.identity.patient_name == image.PatientName
        minute, second = image.AcquisitionTime[2:4], image.AcquisitionTime[4:6]
        of_day_us = ((12 * 60 + int(minute)) * 60 + int(second)) * 1_000_000 + 250_000
        assert header.acquired_us is not None
        assert header.acquired_us % 86_400_000_000 == of_day_us
