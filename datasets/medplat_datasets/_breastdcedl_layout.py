"""The published layout of BreastDCEDL: cohorts, file names, columns (Scientific Data 13:264, 2026).

I-SPY2 and Duke files are named `aqc`, I-SPY1 files `acq`: so are the published ones. Patient ids
hold `-` and `_`, so that a name is matched whole, never split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

# The 29 columns of BreastDCEDL_metadata.csv, in their order.
COLUMNS = (
    "pid", "pCR", "n_xy", "n_z", "n_times", "pre", "post_early", "post_late", "slice_thick",
    "xy_spacing", "mask_start", "mask_end", "sraw", "eraw", "scol", "ecol", "tum_vol", "age",
    "menopause", "race_white", "race_black", "HR", "HER2", "HR_HER2_STATUS", "TripleNeg", "HER2pos",
    "HRposHER2neg", "dataset", "test",
)  # fmt: skip
# Further columns of the I-SPY2 table that an export can fill.
MORE_COLUMNS = ("slice_space", "pix_type", "mask_count", "mask_max")
# The I-SPY2 table's own names for columns of the common one.
SYNONYMS = {"r_white": "race_white", "r_black": "race_black"}
BINARY = (
    "pCR", "HR", "HER2", "MP", "TripleNeg", "HER2pos", "HRposHER2neg", "race_white", "race_black",
)  # fmt: skip
SUBTYPES = ("HRposHER2neg", "HER2pos", "TripleNeg")
# In slices, rows and columns, counted from 0, both ends inside.
BOX = (("mask_start", "mask_end"), ("sraw", "eraw"), ("scol", "ecol"))
COUNTS = (
    "n_xy", "n_z", "n_times", "pre", "post_early", "post_late", "mask_count", "mask_max",
    *(name for pair in BOX for name in pair),
)  # fmt: skip
PHASES = {"pre": "pre", "early": "post_early", "late": "post_late"}
SPLITS = {"0": "train", "1": "test", "2": "validation"}


@dataclass(frozen=True)
class Cohort:
    """One of the three cohorts.

    Attributes:
        name: As in the column `dataset`.
        folder: Of its images; masks lie in `mask` beside it.
        pid: Regular expression of its patient ids.
        image: File name of a phase.
        mask: File name of the mask; "" where there is none.
        baseline: How its first visit is named in headers; "" where there is one visit only.
    """

    name: str
    folder: PurePosixPath
    pid: str
    image: str
    mask: str
    baseline: str

    def image_path(self, pid: str, phase: int) -> PurePosixPath:
        """Where a phase lies below the root of the data set."""
        return self.folder / self.image.format(pid=pid, phase=phase)

    def mask_path(self, pid: str) -> PurePosixPath:
        """Where the mask lies below the root of the data set."""
        return self.folder.parent / "mask" / self.mask.format(pid=pid)


COHORTS = {
    one.name: one
    for one in (
        Cohort(
            "spy1",
            PurePosixPath("SPY1/vis1/dce"),
            r"ISPY1_\d{4}",
            "{pid}_spy1_vis1_acq{phase}.nii.gz",
            "{pid}_spy1_vis1_mask.nii.gz",
            "T1",
        ),
        Cohort(
            "spy2",
            PurePosixPath("SPY2/vis1/dce"),
            r"(?:ISPY2|ACRIN-6698)-\d{6}",
            "{pid}_spy2_vis1_dce_aqc_{phase}.nii.gz",
            "{pid}_spy2_vis1_mask.nii.gz",
            "T0",
        ),
        Cohort(
            "duke",
            PurePosixPath("DUKE/dce"),
            r"Breast_MRI_\d{3}",
            "{pid}_duke_aqc_{phase}.nii.gz",
            "",
            "",
        ),
    )
}


class Name(NamedTuple):
    """What a published file name says; `phase` is None for a mask."""

    cohort: Cohort
    pid: str
    phase: int | None


def cohort_of(pid: str) -> Cohort | None:
    """The cohort that a patient id is of."""
    fitting = (one for one in COHORTS.values() if re.fullmatch(one.pid, pid))
    return next(fitting, None)


def parse(name: str) -> Name | None:
    """What a file name says; None where it is not one of the published kind."""
    for cohort in COHORTS.values():
        for text in (cohort.image, cohort.mask):
            if text and (found := re.fullmatch(_pattern(text, cohort.pid), name)):
                phase = found.groupdict().get("phase")
                return Name(cohort, found["pid"], None if phase is None else int(phase))
    return None


def _pattern(text: str, pid: str) -> str:
    whole = re.escape(text).replace(r"\{pid\}", f"(?P<pid>{pid})")
    return whole.replace(r"\{phase\}", r"(?P<phase>\d{1,2})").replace(r"\.gz", r"(?:\.gz)?")
