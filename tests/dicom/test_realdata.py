"""Every series of the real data is equal to its reference, or refused by the code that fits it.

The references were made by other tools (dicom2nifti, dcm2niix); they are compared in world space, so
that another order or sense of voxel axes does not count.
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
NIH = "dcm_qa_nih/Ref/DCM2NIIX_regression_test_"
GUESSED = ("PHASE_ORDER_GUESSED",)
TRUE = "_ground_truth.nii.gz"

TABLE = (
    Expected(f"{D}/anatomical/001", "converted", (), f"{D}/anatomical/001{TRUE}"),
    Expected(f"{D}/ge/anatomical/001", "converted", (), f"{D}/ge/anatomical/001{TRUE}"),
    Expected(f"{D}/ge/anatomical/001_single_slice", "skipped", ("SINGLE_SLICE",)),
    Expected(f"{D}/generic/anatomical/001", "converted", (), f"{D}/generic/anatomical/001{TRUE}"),
    Expected(
        f"{D}/generic/anatomical/001_implicit", "converted", (), f"{D}/generic/anatomical/001{TRUE}"
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
        f"{D}/hitachi/anatomical/001_implicit", "converted", (), f"{D}/hitachi/anatomical/001{TRUE}"
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
        Expected(f"{SI}/mr_000{n}", "converted", (), reference, n)
        for n, reference in ((3, "epi_pe_ap_3"), (4, "epi_pe_pa_4"), (5, "rl"), (6, "lr"))
    ),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/2.nii.gz", 2),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/3.nii.gz", 3),
    Expected("dcm_qa_12bit", "converted", (), "dcm_qa_12bit/Ref/4.nii.gz", 4),
)
