"""Every series of the real data is equal to its reference, or refused by the code that fits it.

The references were made by other tools (dicom2nifti, dcm2niix); they are compared in world space,
so that another order or sense of voxel axes does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group
from medplat.types import Volume


@dataclass(frozen=True)
class Expected:
    source: str
    status: str
    codes: tuple[str, ...] = ()
    reference: str | None = None
    number: int | None = None


D = "dicom2nifti"
COMPRESSED = f"{D}/generic/compressed/001_ground_truth.nii.gz"
GE = "dcm_qa_nih/In/20180918GE"
SI = "dcm_qa_nih/In/20180918Si"
REF = "dcm_qa_nih/Ref"
NIH = f"{REF}/DCM2NIIX_regression_test_"
GUESSED = ("PHASE_ORDER_GUESSED",)
TRUE = "_ground_truth.nii.gz"

TABLE = (
    Expected(f"{D}/anatomical/001", "converted", (), f"{D}/anatomical/001{TRUE}"),
    Expected(f"{D}/ge/anatomical/001", "converted", (), f"{D}/ge/anatomical/001{TRUE}"),
    Expected(f"{D}/ge/anatomical/001_single_slice", "skipped", ("SINGLE_SLICE",)),
    Expected(f"{D}/generic/anatomical/001", "converted", (), f"{D}/generic/anatomical/001{TRUE}"),
    Expected(
        f"{D}/generic/anatomical/001_implicit",
        "converted",
        (),
        f"{D}/generic/anatomical/001_implicit{TRUE}",
    ),
    Expected(
        f"{D}/generic/anatomical/002_non_isotropic",
        "warned",
        ("RESCALE_VARIES",),
        f"{D}/generic/anatomical/002_non_isotropic{TRUE}",
    ),
    Expected(f"{D}/generic/compressed/001", "converted", (), COMPRESSED),
    Expected(f"{D}/generic/compressed_j2k/001", "converted", (), COMPRESSED),
    Expected(f"{D}/generic/compressed_jpeg/001", "converted", (), COMPRESSED),
    Expected(f"{D}/generic/compressed_jpegls/001", "converted", (), COMPRESSED),
    Expected(f"{D}/generic/compressed_rle/001", "converted", (), COMPRESSED),
    Expected(f"{D}/generic/rgb/001", "skipped", ("NOT_IMAGE",)),
    Expected(f"{D}/hitachi/anatomical/001", "converted", (), f"{D}/hitachi/anatomical/001{TRUE}"),
    Expected(
        f"{D}/hitachi/anatomical/001_implicit",
        "converted",
        (),
        f"{D}/hitachi/anatomical/001_implicit{TRUE}",
    ),
    Expected(f"{D}/hyperfine/anatomical/001", "rejected", ("MULTIFRAME",)),
    Expected(f"{D}/philips/anatomical/001", "converted", (), f"{D}/philips/anatomical/001{TRUE}"),
    Expected(f"{D}/siemens/anatomical/001", "converted", (), f"{D}/siemens/anatomical/001{TRUE}"),
    Expected(f"{D}/failing/gantrytilting/001", "rejected", ("SHEARED",)),
    Expected(f"{D}/failing/notavolume/001", "rejected", ("NO_GEOMETRY",)),
    Expected(
        f"{D}/failing/slicecount/001",
        "warned",
        ("TWO_SLICES",),
        f"{D}/failing/slicecount/001{TRUE}",
    ),
    Expected(f"{D}/failing/sliceincrement/001", "rejected", ("MISSING_SLICE",)),
    Expected(f"{D}/failing/sliceincrement/002", "rejected", ("MISSING_SLICE", "SHEARED")),
    Expected(f"{D}/failing/sliceorientation/001", "rejected", ("MIXED_ORIENTATION",)),
    Expected("monai_testing", "rejected", ("UNEVEN_SPACING",)),
    Expected("totalseg_ct", "warned", ("NO_UID",)),
    *(
        Expected(f"{GE}/mr_000{n}{end}", "warned", GUESSED, f"{NIH}{n}.nii.gz", n)
        for n, end in ((4, ""), (5, ".zip"), (6, ".zip"), (7, ".zip"))
    ),
    *(
        Expected(f"{SI}/mr_000{n}", "converted", (), f"{REF}/EPI_PE={way}_{n}.nii.gz", n)
        for n, way in ((3, "AP"), (4, "PA"), (5, "RL"), (6, "LR"))
    ),
    Expected("dcm_qa_nih", "warned", GUESSED, f"{NIH}7.nii.gz", 7),
    Expected("dcm_qa_ts", "warned", ("DUPLICATE_SLICE",), "dcm_qa_ts/Ref/all.nii.gz"),
    *(
        Expected(f"dcm_qa_ts/In/{n}.dcm", "converted", (), "dcm_qa_ts/Ref/all.nii.gz")
        for n in range(1, 10)
    ),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/2.nii.gz", 2),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/3.nii.gz", 3),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/4.nii.gz", 4),
)


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
    ours = volume.array * np.float64(volume.slope) + volume.intercept
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
    close = np.isclose(turned, theirs, rtol=1e-5, atol=0)
    return off, float(1 - close.mean())


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.source}-{case.number or ''}")
def test_series_is_equal_to_its_reference_or_refused(
    case: Expected, realdata: Path, tmp_path: Path
) -> None:
    source = realdata / "dicom" / case.source
    if source.suffix == ".dcm":
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / source.name).write_bytes(source.read_bytes())
        source = tmp_path / "only"
    found = [
        one
        for one in plans_of(source)
        if case.number is None or (one.series.number == case.number and _wanted(one, case))
    ]
    assert len(found) == 1
    series = found[0].series
    assert (series.status, series.codes) == (case.status, case.codes)
    assert len(series.messages) >= len(series.codes)
    if not found[0].convertible:
        return
    volume = read_volume(found[0])
    assert volume.array.shape == series.shape
    assert volume.array.dtype != np.float64
    if case.reference is not None:
        off, differing = world_difference(volume, realdata / "dicom" / case.reference)
        assert off <= 1e-3
        assert differing == 0


def _wanted(one: SeriesPlan, case: Expected) -> bool:
    return one.series.status == case.status


def test_nothing_of_the_real_data_fails_or_is_lost(realdata: Path) -> None:
    for name in ("dcmqi", "highdicom", "dcm_qa_enh", "dcm_qa_agfa", "pydicom_tests"):
        for one in plans_of(realdata / "dicom" / name):
            if one.convertible:
                read_volume(one)
            else:
                assert one.series.codes


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
