"""Every series of the real data is equal to its reference, or refused by the code that fits it.

The references were made by other tools (dicom2nifti, dcm2niix); they are compared in world space,
so that another order or sense of voxel axes does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group
from medplat.types import Volume


class Stack(NamedTuple):
    """What must become of one stack: series number, verdict, and the reference it is equal to."""

    number: int
    status: str = "converted"
    codes: tuple[str, ...] = ()
    reference: str | None = None
    suffix: str = ""


D = "dicom2nifti"
TRUE = "_ground_truth.nii.gz"
COMPRESSED = f"{D}/generic/compressed/001{TRUE}"
GE = "dcm_qa_nih/In/20180918GE"
SI = "dcm_qa_nih/In/20180918Si"
NIH = "dcm_qa_nih/Ref"
ENH = "dcm_qa_enh/Ref"
GUESSED = ("PHASE_ORDER_GUESSED",)


def _true(source: str, number: int = 4, *codes: str) -> Stack:
    return Stack(number, "warned" if codes else "converted", codes, f"{D}/{source}{TRUE}")


_GE = {
    number: Stack(number, "warned", GUESSED, f"{NIH}/DCM2NIIX_regression_test_{number}.nii.gz")
    for number in (4, 5, 6, 7)
}
_SIEMENS = {
    number: Stack(number, reference=f"{NIH}/EPI_PE={way}_{number}.nii.gz")
    for number, way in ((3, "AP"), (4, "PA"), (5, "RL"), (6, "LR"))
}

TABLE: dict[str, tuple[Stack, ...]] = {
    "dcm_qa_12bit": tuple(
        Stack(number, reference=f"dcm_qa_12bit/Ref/{number}.nii.gz") for number in (2, 3, 4)
    ),
    "dcm_qa_agfa": (Stack(11), Stack(11)),
    "dcm_qa_enh": (
        Stack(6, reference=f"{ENH}/Siemens_REST1_w_SMS_PF7-8_6.nii.gz"),
        Stack(801, reference=f"{ENH}/Philips_WIP_B0_NS_801_e1.nii.gz"),
        Stack(
            801,
            reference=f"{ENH}/Philips_WIP_B0_NS_801_e2_fieldmaphz.nii.gz",
            suffix="_real",
        ),
    ),
    "dcm_qa_nih": (*_GE.values(), *_SIEMENS.values()),
    "dcm_qa_ts": (Stack(1, "warned", ("DUPLICATE_SLICE",), "dcm_qa_ts/Ref/all.nii.gz"),),
    "dcmqi": (
        Stack(2),
        *(Stack(123456) for _ in range(4)),
        Stack(701, "skipped", ("SINGLE_SLICE",)),
    ),
    "highdicom": (Stack(1001), Stack(1, "skipped", ("SINGLE_SLICE",))),
    "monai_testing": (Stack(2, "rejected", ("UNEVEN_SPACING",)),),
    "pydicom_tests": (Stack(1, "skipped", ("NOT_IMAGE",)),),
    "totalseg_ct": (Stack(0, "warned", ("NO_UID",)),),
    f"{D}/anatomical/001": (_true("anatomical/001"),),
    f"{D}/failing/gantrytilting/001": (Stack(4, "rejected", ("SHEARED",)),),
    f"{D}/failing/notavolume/001": (Stack(4, "rejected", ("NO_GEOMETRY",)),),
    f"{D}/failing/slicecount/001": (_true("failing/slicecount/001", 4, "TWO_SLICES"),),
    f"{D}/failing/sliceincrement/001": (Stack(2, "rejected", ("MISSING_SLICE",)),),
    f"{D}/failing/sliceincrement/002": (Stack(3, "rejected", ("MISSING_SLICE", "SHEARED")),),
    f"{D}/failing/sliceorientation/001": (Stack(202, "rejected", ("MIXED_ORIENTATION",)),),
    f"{D}/ge/anatomical/001": (_true("ge/anatomical/001"),),
    f"{D}/ge/anatomical/001_single_slice": (Stack(4, "skipped", ("SINGLE_SLICE",)),),
    f"{D}/generic/anatomical/001": (_true("generic/anatomical/001"),),
    f"{D}/generic/anatomical/001_implicit": (_true("generic/anatomical/001_implicit"),),
    f"{D}/generic/anatomical/002_non_isotropic": (
        _true("generic/anatomical/002_non_isotropic", 201, "RESCALE_VARIES"),
    ),
    **{
        f"{D}/generic/{name}/001": (Stack(4, reference=COMPRESSED),)
        for name in (
            "compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls",
            "compressed_rle",
        )
    },
    f"{D}/generic/rgb/001": (Stack(747197466, "skipped", ("NOT_IMAGE",)),),
    f"{D}/hitachi/anatomical/001": (_true("hitachi/anatomical/001", 10),),
    f"{D}/hitachi/anatomical/001_implicit": (_true("hitachi/anatomical/001_implicit", 10),),
    f"{D}/hyperfine/anatomical/001": (_true("hyperfine/anatomical/001", 10),),
    f"{D}/philips/anatomical/001": (_true("philips/anatomical/001", 401),),
    f"{D}/siemens/anatomical/001": (_true("siemens/anatomical/001"),),
}  # fmt: skip
# Parts of a set as SOURCE: an archive, a folder, one file.
PARTS: dict[str, tuple[Stack, ...]] = {
    f"{GE}/mr_0004": (_GE[4],),
    **{f"{GE}/mr_000{number}.zip": (_GE[number],) for number in (5, 6, 7)},
    **{f"{SI}/mr_000{number}": (one,) for number, one in _SIEMENS.items()},
    **{
        f"dcm_qa_ts/In/{number}.dcm": (Stack(number, reference="dcm_qa_ts/Ref/all.nii.gz"),)
        for number in range(1, 10)
    },
}


def plans_of(source: Path) -> list[SeriesPlan]:
    files = scan(source)
    plans = [one for series in group(files) for one in plan(series)]
    images = sorted(file.path for file in files if file.status == "image")
    assert sorted(fate.path for one in plans for fate in one.fates) == images
    return plans


def world_difference(volume: Volume, reference: Path) -> tuple[float, float]:
    """Largest affine entry off in mm, and share of voxels that differ, in the reference's axes."""
    image = nib.load(reference)
    assert isinstance(image, nib.Nifti1Image)
    theirs = np.asanyarray(image.dataobj)
    ours = _as_dcm2niix_has_it(volume)
    exact = np.linalg.inv(image.affine) @ volume.geometry.affine
    turn = np.rint(exact[:3, :3])
    assert (np.abs(turn).sum(axis=0) == 1).all()
    assert (np.abs(turn).sum(axis=1) == 1).all()
    order = np.abs(turn).argmax(axis=1)
    signs = turn[np.arange(3), order]
    affine = volume.geometry.affine[:, [*order, 3]].copy()
    turned = ours.transpose(*order, *range(3, ours.ndim))
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:, 3] += affine[:, axis] * (turned.shape[axis] - 1)
            affine[:, axis] *= -1
            turned = np.flip(turned, axis)
    assert turned.shape == theirs.shape
    off = float(np.abs(affine - image.affine).max())
    # dcm2niix rounds its precise slope and intercept to six digits.
    loose = 1e-5 * np.abs(theirs).max() if "philips_precise_slope" in volume.metadata else 0
    close = np.isclose(turned, theirs, rtol=1e-5, atol=loose)
    return off, float(1 - close.mean())


def _as_dcm2niix_has_it(volume: Volume) -> Any:
    """Real values; of Philips those that it calls precise, which the sidecar's numbers give."""
    ours = volume.array * np.float64(volume.slope) + volume.intercept
    precise = volume.metadata.get("philips_precise_slope")
    return ours if precise is None else ours / (volume.slope * precise)


def equal_to(volume: Volume, reference: Path) -> bool:
    off, differing = world_difference(volume, reference)
    return off <= 1e-3 and differing == 0


@pytest.mark.parametrize("source", [*TABLE, *PARTS])
def test_series_is_equal_to_its_reference_or_refused(
    source: str, realdata: Path, tmp_path: Path
) -> None:
    folder = realdata / "dicom" / source
    if folder.suffix == ".dcm":
        (tmp_path / folder.name).write_bytes(folder.read_bytes())
        folder = tmp_path
    waiting = list({**TABLE, **PARTS}[source])
    for one in plans_of(folder):
        volume = read_volume(one) if one.convertible else None
        fits = [stack for stack in waiting if _is(one, volume, stack, realdata / "dicom")]
        assert fits, f"{one.key} {one.series.status} {one.series.codes} {one.series.messages}"
        waiting.remove(fits[0])
        assert len(one.series.messages) >= len(one.series.codes)
    assert not waiting


def _is(one: SeriesPlan, volume: Volume | None, stack: Stack, root: Path) -> bool:
    number, _, rest = one.key.partition("-")
    found = (int(number), one.series.status, one.series.codes, rest[6:])
    if found != (stack.number, stack.status, stack.codes, stack.suffix):
        return False
    if volume is None:
        return one.frames == () and stack.reference is None
    assert volume.array.shape == one.series.shape
    assert volume.array.dtype != np.float64
    return stack.reference is None or equal_to(volume, root / stack.reference)


def test_the_table_names_every_set_and_every_reference(realdata: Path) -> None:
    root = realdata / "dicom"
    sets = {path.name for path in root.iterdir() if path.is_dir()} - {D}
    leaves = {
        path.relative_to(root).as_posix()
        for path in (root / D).rglob("*")
        if path.is_dir() and not any(below.is_dir() for below in path.iterdir())
    }
    assert sets | leaves == set(TABLE)
    used = {stack.reference for stacks in TABLE.values() for stack in stacks}
    there = {path.relative_to(root).as_posix() for path in root.rglob("*.nii.gz")}
    # Of what must be refused, of one slice, of colour, and the same as one that is compared.
    left = {path for path in there - used if "/failing/" not in path}
    assert left <= {
        f"{D}/generic/rgb/001{TRUE}", f"{D}/ge/anatomical/001_single_slice{TRUE}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dcm_qa_agfa/Siemens", "dcm_qa_agfa/Agfa"),
        ("dcmqi/segmentations/23x38x3/image", "dcmqi/segmentations/23x38x3/multiframe"),
        ("dcmqi/segmentations/24x38x3/image", "dcmqi/segmentations/24x38x3/multiframe"),
    ],
)
def test_twins_give_the_same_volume(one: str, other: str, realdata: Path) -> None:
    volumes = [
        read_volume(found)
        for name in (one, other)
        for found in plans_of(realdata / "dicom" / name)
        if found.convertible
    ]
    assert len(volumes) == 2
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_allclose(volumes[0].geometry.affine, volumes[1].geometry.affine, atol=1e-9)
    assert volumes[0].phase_times_s == volumes[1].phase_times_s


def test_totalseg_lies_where_its_segmentation_lies(realdata: Path) -> None:
    (one,) = plans_of(realdata / "dicom" / "totalseg_ct")
    assert one.geometry is not None
    reference = realdata / "volumes" / "totalseg_examples" / "example_seg_dicom.nii.gz"
    image = nib.load(reference)
    assert isinstance(image, nib.Nifti1Image)
    corners = np.array(
        [[i, j, k, 1] for i in (0, 511) for j in (0, 511) for k in (0, 19)], dtype=float
    )
    ours = {tuple(np.round(one.geometry.affine @ corner, 2)[:3]) for corner in corners}
    theirs = {tuple(np.round(image.affine @ corner, 2)[:3]) for corner in corners}
    assert image.shape == one.geometry.shape
    assert ours == theirs
