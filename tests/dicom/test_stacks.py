"""Geometry, grouping, duplicates and rescale of single volumes against the generator's truth."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat.dicom.plans import pair_up
from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group


def plans_of(folder: Path, **options: Any) -> list[SeriesPlan]:
    return [one for series in group(scan(folder)) for one in plan(series, **options)]


def only(folder: Path, **options: Any) -> SeriesPlan:
    (one,) = plans_of(folder, **options)
    return one


def check(folder: Path, made: Any, codes: tuple[str, ...] = ()) -> SeriesPlan:
    one = only(folder)
    assert one.series.codes == codes, one.series.messages
    volume = read_volume(one)
    np.testing.assert_array_equal(volume.array, made.array)
    np.testing.assert_allclose(volume.geometry.affine, made.affine, atol=1e-5)
    return one


@pytest.mark.parametrize(
    ("orientation", "name"),
    [
        ("axial", "axial"), ("sagittal", "sagittal"), ("coronal", "coronal"), ("prone", "axial"),
        ("feet first", "axial"), ("oblique", "axial"),
    ],
)  # fmt: skip
def test_every_orientation_with_unequal_spacing(
    dicom: Any, tmp_path: Path, orientation: str, name: str
) -> None:
    made = dicom.make(orientation=orientation, spacing=(0.55, 1.7), seed=3)
    one = check(dicom.write(tmp_path, made.flat), made)
    assert one.series.orientation == name
    assert one.series.spacing_mm == pytest.approx((1.7, 0.55, 2.5), abs=1e-5)


def test_names_and_walk_order_do_not_matter(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(seed=4)
    keys = []
    for seed in (1, 2):
        folder = dicom.write(tmp_path / str(seed), made.flat, seed)
        one = check(folder, made)
        keys.append((one.key, [h.sop_instance_uid for h in one.frames[0]], one.metadata))
    assert keys[0] == keys[1]


def test_two_decimals_in_the_positions_are_no_reason(dicom: Any, tmp_path: Path) -> None:
    for seed in range(3):
        made = dicom.make(orientation="oblique", step=0.6, decimals=2, slices=17, seed=seed)
        one = only(dicom.write(tmp_path / str(seed), made.flat))
        assert one.series.status == "converted", one.series.messages


@pytest.mark.parametrize(
    ("shift", "code"),
    [
        (lambda z: (0.0, 0.0, 0.04 * (z % 2)), "UNEVEN_SPACING"),
        (lambda z: (0.0, 0.0, 0.005 * z * z), "UNEVEN_SPACING"),
        (lambda z: (0.3 * (z % 2), 0.0, 0.0), "UNEVEN_SPACING"),
        (lambda z: (0.0, 0.6 * z, 0.0), "SHEARED"),
        (lambda z: (0.0, 0.0, 2.5 * (z > 3)), "MISSING_SLICE"),
        (lambda z: (0.0, 0.0, 400.0 * (z > 3)), "UNEVEN_SPACING"),
    ],
    ids=["jitter", "drift", "sideways jitter", "shear", "gap", "far away"],
)
def test_irregular_stacks_are_refused(dicom: Any, tmp_path: Path, shift: Any, code: str) -> None:
    made = dicom.make(shift=shift, slices=11)
    one = only(dicom.write(tmp_path, made.flat))
    assert (one.series.status, one.series.codes) == ("rejected", (code,))
    assert one.frames == ()
    with pytest.raises(ValueError, match="nothing to read"):
        read_volume(one)


def test_a_missing_slice_is_named_in_mm(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=8)
    images = made.images[0][:3] + made.images[0][4:]
    one = only(dicom.write(tmp_path, images))
    assert one.series.codes == ("MISSING_SLICE",)
    position = float(made.affine[2, 3] + 3 * 2.5)
    assert f"{position:.2f} mm" in one.series.messages[0]


def test_accepted_shear_stands_in_the_affine(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(shift=lambda z: (0.0, 0.6 * z, 0.0))
    one = only(dicom.write(tmp_path, made.flat), allow_shear=True)
    assert (one.series.status, one.series.codes) == ("warned", ("SHEARED",))
    truth = made.affine.copy()
    truth[:3, 2] += truth[:3, 1] / 0.7 * 0.6
    np.testing.assert_allclose(read_volume(one).geometry.affine, truth, atol=1e-5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", None), ("ImageOrientationPatient", None), ("PixelSpacing", None),
        ("ImageOrientationPatient", [1, 0, 0, 0.1, 1, 0]), ("PixelSpacing", [0, 0]),
        ("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]),
    ],
)  # fmt: skip
def test_no_geometry(dicom: Any, tmp_path: Path, keyword: str, value: Any) -> None:
    def change(image: Any, t: int, z: int) -> None:
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)

    one = only(dicom.write(tmp_path, dicom.make().each(change).flat))
    assert (one.series.status, one.series.codes) == ("rejected", ("NO_GEOMETRY",))


def test_one_image_without_geometry_is_not_left_out(dicom: Any, tmp_path: Path) -> None:
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        made = dicom.make(slices=9)
        delattr(made.flat[-1], name)
        one = only(dicom.write(tmp_path / name, made.flat))
        assert (one.series.status, one.series.codes) == ("rejected", ("NO_GEOMETRY",))


def test_a_rescale_that_is_no_number_is_not_one(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.each(lambda i, t, z: i.update({"RescaleSlope": "17.5"})).flat)
    victim = next(path for path in tmp_path.rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes().replace(b"17.5", b"x7.5"))
    assert only(tmp_path).series.status == "rejected"


def test_mixed_orientation_and_mixed_shape(dicom: Any, tmp_path: Path) -> None:
    one, other = dicom.make(), dicom.make(orientation="sagittal")
    small = dicom.make(rows=8)
    for name, second, code in (("a", other, "MIXED_ORIENTATION"), ("b", small, "MIXED_SHAPE")):
        for image in second.flat:
            image.SeriesInstanceUID = one.flat[0].SeriesInstanceUID
            image.StudyInstanceUID = one.flat[0].StudyInstanceUID
            image.FrameOfReferenceUID = one.flat[0].FrameOfReferenceUID
        found = only(dicom.write(tmp_path / name, one.flat + second.flat))
        assert (found.series.status, found.series.codes) == ("rejected", (code,))


def test_a_scout_beside_the_stack_is_left_out(dicom: Any, tmp_path: Path) -> None:
    made, scout = dicom.make(slices=9), dicom.make(orientation="sagittal", slices=1).flat[0]
    marked = dicom.make(orientation="coronal", slices=1).flat[0]
    marked.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    for image in (scout, marked):
        image.SeriesInstanceUID = made.flat[0].SeriesInstanceUID
        image.StudyInstanceUID = made.flat[0].StudyInstanceUID
    one = check(dicom.write(tmp_path, [*made.flat, scout, marked]), made, ("LOCALIZER",))
    assert one.series.status == "warned"
    assert sorted(f.reason for f in one.fates if f.status == "skipped") == ["LOCALIZER"] * 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "LOCALIZER"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "DERIVED"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "DERIVED"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "NOT_IMAGE"),
    ],
)
def test_what_is_not_meant_to_be_a_volume_is_skipped(
    dicom: Any, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    made = dicom.make().each(lambda image, t, z: image.update(change))
    one = only(dicom.write(tmp_path, made.flat))
    assert (one.series.status, one.series.codes) == ("skipped", (code,))
    assert {fate.status for fate in one.fates} == {"skipped"}


def test_derived_with_complete_geometry_is_converted(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    made.each(lambda image, t, z: image.update({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}))
    one = check(dicom.write(tmp_path, made.flat), made)
    assert "derived" in one.series.messages[0]


def test_one_position(dicom: Any, tmp_path: Path) -> None:
    single = only(dicom.write(tmp_path / "a", dicom.make(slices=1).flat))
    assert (single.series.status, single.series.codes) == ("skipped", ("SINGLE_SLICE",))
    several = dicom.make(slices=1, phases=4)
    for image in several.flat:
        del image.SliceThickness
    one = only(dicom.write(tmp_path / "b", several.flat))
    assert (one.series.status, one.series.codes) == ("rejected", ("NO_GEOMETRY",))


def test_the_same_file_twice(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.flat)
    shutil.copy(next(p for p in tmp_path.rglob("*") if p.is_file()), tmp_path / "copy")
    one = check(tmp_path, made, ("DUPLICATE_FILE",))
    assert [fate.reason for fate in one.fates if fate.status != "used"] == ["DUPLICATE_FILE"]


def test_the_same_image_with_a_rewritten_header(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.flat)
    made.flat[2].InstitutionName = "elsewhere"
    dicom.write(tmp_path / "again", made.flat[2:3])
    check(tmp_path, made, ("DUPLICATE_FILE",))


@pytest.mark.parametrize("same_uid", [True, False])
@pytest.mark.parametrize("same_pixels", [True, False])
def test_two_images_at_one_position(
    dicom: Any, tmp_path: Path, same_uid: bool, same_pixels: bool
) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.flat)
    twin = deepcopy(made.flat[2])
    if not same_uid:
        twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    if not same_pixels:
        twin.PixelData = made.flat[3].PixelData
    dicom.write(tmp_path / "again", [twin])
    if same_pixels:
        check(tmp_path, made, ("DUPLICATE_FILE" if same_uid else "DUPLICATE_SLICE",))
    else:
        one = only(tmp_path)
        assert (one.series.status, one.series.codes) == ("rejected", ("DUPLICATE_SLICE",))


def test_the_whole_series_sent_again_under_new_uids(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.flat)
    for index, image in enumerate(made.flat):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.{index}"
    dicom.write(tmp_path / "again", made.flat)
    check(tmp_path, made, ("DUPLICATE_SLICE",))


def test_rescale_that_is_constant_stays_apart(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(dtype="int16").each(
        lambda image, t, z: image.update({"RescaleSlope": "0.25", "RescaleIntercept": "-1024"})
    )
    volume = read_volume(check(dicom.write(tmp_path, made.flat), made))
    assert volume.array.dtype == np.int16
    assert (volume.slope, volume.intercept) == (0.25, -1024.0)


def test_rescale_that_varies_gives_real_values(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make().each(
        lambda image, t, z: image.update({"RescaleSlope": str(1 + z), "RescaleIntercept": "-3"})
    )
    one = only(dicom.write(tmp_path, made.flat))
    assert (one.series.status, one.series.codes) == ("warned", ("RESCALE_VARIES",))
    volume = read_volume(one)
    truth = made.array * (1.0 + np.arange(7)) - 3.0
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, truth, rtol=1e-6)


def test_empty_uids(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make().each(
        lambda image, t, z: image.update({"StudyInstanceUID": "", "SeriesInstanceUID": ""})
    )
    one = check(dicom.write(tmp_path, made.flat), made, ("NO_UID",))
    assert one.series.status == "warned"


def test_without_uids_two_patients_never_become_two_phases(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=2).each(
        lambda image, t, z: image.update(
            {"StudyInstanceUID": "", "SeriesInstanceUID": "", "PatientID": f"P{t}"}
        )
    )
    one = only(dicom.write(tmp_path, made.flat))
    assert (one.series.status, one.series.codes) == ("rejected", ("NO_UID",))
    assert "2 patients" in one.series.messages[0]


def test_one_series_of_two_patients_is_refused(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=2).each(lambda image, t, z: image.update({"PatientID": f"P{t}"}))
    one = only(dicom.write(tmp_path, made.flat))
    assert (one.series.status, one.series.codes) == ("rejected", ("MIXED_PATIENT",))


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_projection_images_are_flat(dicom: Any, tmp_path: Path, keyword: str) -> None:
    made = dicom.make(slices=2)
    for index, image in enumerate(made.flat):
        image.Modality, image.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
        image.PhotometricInterpretation, image.InstanceNumber = "MONOCHROME1", index
        del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
        setattr(image, keyword, ["0.2", "0.3"])
    plans = plans_of(dicom.write(tmp_path, made.flat))
    assert [one.key[-3:] for one in plans] == ["_i1", "_i2"]
    for index, one in enumerate(plans):
        volume = read_volume(one)
        assert volume.geometry.orientation == "unknown"
        assert one.metadata["spacing_source"] == keyword
        np.testing.assert_allclose(np.diag(volume.geometry.affine), [0.3, 0.2, 1, 1])
        np.testing.assert_array_equal(volume.array[..., 0], made.array[..., index])


def test_free_text_holds_no_names(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make().each(
        lambda image, t, z: image.update(
            {"SeriesDescription": "T1 tra JANE 19991231", "ProtocolName": "doe breast"}
        )
    )
    one = only(dicom.write(tmp_path, made.flat))
    assert one.series.description == "T1 tra"
    assert one.metadata["ProtocolName"] == "breast"
    assert "Doe" not in repr(one.frames[0][0])


def test_the_sentences_of_codes_stand_first_and_in_their_order() -> None:
    codes: list[str] = []
    messages: list[str] = []
    for code, text in (("", "x"), ("A", "a"), ("", "y"), ("B", "b"), ("A", "a again")):
        pair_up(codes, messages, code, text)
    assert (codes, messages) == (["A", "B"], ["a", "b", "x", "y", "a again"])
