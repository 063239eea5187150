"""The one table of verdict codes: name, meaning, verdict, what the user can do.

`medplat show codes` prints it. Sources: DESIGN section 3; conditions and thresholds stand with the
checks that raise the codes (`geometry`, `series`, `phases`, `pixels`, `scan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CodeVerdict = Literal["rejected", "skipped", "warned", "noted", "failed"]


@dataclass(frozen=True)
class Code:
    """One verdict code.

    Attributes:
        name: Upper-case word.
        meaning: One sentence.
        verdict: What becomes of the file, series, label or case by default.
        advice: What the user can do.
    """

    name: str
    meaning: str
    verdict: CodeVerdict
    advice: str


_SEND_AGAIN = "Ask the archive to send the series again."
_NONE = "Nothing to do."
_REPAIR = "Run medplat verify with --repair, or convert the export again."
_CONVERT = "Convert the export again."
_EXPORT = "Give its export; a resampled file cannot be checked."
_LABEL = "Make the label again on the grid of the converted series."

_TABLE: tuple[tuple[str, CodeVerdict, str, str], ...] = (
    # Files
    ("NOT_DICOM", "skipped", "The file is not DICOM.", _NONE),
    ("NOT_IMAGE", "skipped", "Valid DICOM, but not an image that becomes a volume.", _NONE),
    ("NO_PIXELS", "rejected", "An image object without pixel data.", _SEND_AGAIN),
    ("TRUNCATED", "rejected", "Pixel data or header end too early, or do not decode.", _SEND_AGAIN),
    (
        "UNSUPPORTED_SYNTAX",
        "rejected",
        "No decoder is used for this transfer syntax.",
        "Install what the message names, or let the archive send another transfer syntax.",
    ),
    (
        "OUTSIDE_ROOT",
        "rejected",
        "A link, archive member or index entry leaves SOURCE, or an archive is not safe to open.",
        "Copy the file into SOURCE, or unpack the archive yourself.",
    ),
    (
        "MISSING_FILE",
        "rejected",
        "The DICOMDIR names a file that is not there, or a link leads nowhere.",
        "Give the folder instead of the DICOMDIR, or copy the medium again.",
    ),
    (
        "UNREADABLE",
        "failed",
        "The system could not read the file or folder (rights, a disk or network error).",
        "Mend the medium or the rights, and run the same command again.",
    ),
    (
        "IMAGE_LOST",
        "rejected",
        "A file that is damaged before its UIDs, unreadable or absent may be of this series (only "
        "warned of, where it may be of several).",
        "Ask the archive to send the study again, or remove the damaged file.",
    ),
    ("DUPLICATE_FILE", "warned", "The same image was found twice; one copy is used.", _NONE),
    # Series
    (
        "MIXED_PATIENT",
        "rejected",
        "The images of one series name several patients.",
        "Ask the archive what belongs together.",
    ),
    ("NO_UID", "warned", "Study or series UID is empty; no DICOM SEG can be written.", _NONE),
    ("LOCALIZER", "skipped", "A scout or localizer.", _NONE),
    ("DERIVED", "skipped", "A projection, screen save or secondary capture.", _NONE),
    ("SINGLE_SLICE", "skipped", "All images lie at one position: not a volume.", _NONE),
    ("EXCLUDED", "skipped", "A person left the series out with --decisions.", _NONE),
    (
        "MULTIFRAME",
        "warned",
        "The source is a multi-frame object, for which no DICOM SEG is written.",
        "Take seg.nii.gz, or let the archive send classic single-frame objects.",
    ),
    (
        "MOSAIC",
        "rejected",
        "A Siemens mosaic whose private header is gone, so that its tiles cannot be placed.",
        "Export again with private tags.",
    ),
    (
        "MIXED_ORIENTATION",
        "rejected",
        "The images of the series lie in several orientations or frames of reference.",
        "Split the series at the archive or scanner.",
    ),
    (
        "MIXED_SHAPE",
        "rejected",
        "The images differ in matrix, spacing or pixel format.",
        "Split the series at the archive or scanner.",
    ),
    (
        "NO_GEOMETRY",
        "rejected",
        "Position, orientation or pixel spacing is absent or impossible.",
        "Export again with the image plane module.",
    ),
    ("MISSING_SLICE", "rejected", "At least one slice of the stack is absent.", _SEND_AGAIN),
    (
        "UNEVEN_SPACING",
        "rejected",
        "The slices are not equally spaced.",
        "Ask the archive to send the series again, or accept interpolated slices with --resample.",
    ),
    (
        "SHEARED",
        "rejected",
        "The slices are offset sideways (gantry tilt).",
        "Keep the shear in the affine with --allow-shear, or interpolate with --resample.",
    ),
    (
        "DUPLICATE_SLICE",
        "rejected",
        "Different images claim the same position and phase (dropped, where they are equal).",
        "Remove the wrong one.",
    ),
    ("RESCALE_VARIES", "warned", "Rescale values differ; real values are kept as float32.", _NONE),
    ("TWO_SLICES", "warned", "Two slices only: even spacing cannot be checked.", _NONE),
    (
        "PHASE_ORDER_GUESSED",
        "warned",
        "The order of the phases rests on ContentTime or InstanceNumber alone.",
        "Check the order in the report.",
    ),
    (
        "PHASE_CONFLICT",
        "rejected",
        "Tags disagree on the phases, or none tells them apart.",
        "Settle the order at the archive, or accept the one named first with --decisions.",
    ),
    # Labels
    ("LABEL_GRID_MISMATCH", "rejected", "The label lies on another grid than its series.", _LABEL),
    ("LABEL_OUTSIDE", "rejected", "The label reaches outside the grid of its series.", _LABEL),
    (
        "LABEL_FLIPPED",
        "rejected",
        "The label fits only after an axis is flipped (kept where its own affine says so).",
        _LABEL,
    ),
    (
        "LABEL_OVERLAP",
        "rejected",
        "One voxel belongs to two segments.",
        "Draw them apart, or have a file written for each: split-label in --decisions.",
    ),
    (
        "LABEL_UNKNOWN_VALUE",
        "rejected",
        "The label holds a value without a name.",
        "Name it beside the label (JSON or ITK-SNAP label description).",
    ),
    ("LABEL_EMPTY", "rejected", "No voxel of the label is set.", "Draw it again, or remove it."),
    (
        "LABEL_WRONG_SERIES",
        "rejected",
        "The label refers to another series, or to none alone.",
        "Give the label the UID of its series, by reference or in its file name.",
    ),
    # Existing NIfTI files
    ("NIFTI_FLIPPED", "rejected", "The voxels run against the header's axes.", _REPAIR),
    ("NIFTI_AXES", "rejected", "The header takes one voxel axis for another.", _REPAIR),
    ("NIFTI_ROTATED", "rejected", "The axes of the header point elsewhere.", _REPAIR),
    ("NIFTI_SPACING", "rejected", "The voxel sizes of the header are wrong.", _REPAIR),
    ("NIFTI_SHIFTED", "rejected", "The volume lies more than 0.1 voxel off.", _REPAIR),
    ("NIFTI_NO_ORIENTATION", "rejected", "The header does not say how the voxels lie.", _REPAIR),
    ("NIFTI_FORMS", "rejected", "The two affines of the header disagree.", _REPAIR),
    ("NIFTI_SLOPE", "rejected", "Rescale slope or intercept is absent or wrong.", _CONVERT),
    ("NIFTI_SLICES", "rejected", "Slices are absent, or not of the series.", _CONVERT),
    ("NIFTI_SLICE_ORDER", "rejected", "Slices stand at wrong places.", _CONVERT),
    ("NIFTI_PHASES", "rejected", "Phases are absent, or there twice.", _CONVERT),
    ("NIFTI_PHASE_ORDER", "rejected", "The phases stand in a wrong order.", _CONVERT),
    ("NIFTI_VALUES", "rejected", "Voxels are not those of the series.", _CONVERT),
    (
        "NIFTI_REFUSED",
        "rejected",
        "The file was made from a series that cannot be trusted.",
        "See the series in the report of medplat convert.",
    ),
    ("NIFTI_UNPAIRED", "rejected", "No series of SOURCE is like the file.", _EXPORT),
    ("NIFTI_UNREADABLE", "rejected", "The file cannot be read as NIfTI.", _CONVERT),
    # Cases
    (
        "AMBIGUOUS_INPUT",
        "rejected",
        "Two or more series fit one input of the model.",
        "Narrow the workflow's inputs, or remove one series.",
    ),
    (
        "MISSING_INPUT",
        "rejected",
        "No series fits an input of the model.",
        "Compare the reasons in the manifest with the workflow's inputs.",
    ),
    (
        "NO_INPUT",
        "rejected",
        "The case holds nothing that could be read (skipped where nothing in it is a volume).",
        "See the reasons.",
    ),
    (
        "FRAME_OF_REFERENCE",
        "rejected",
        "The inputs of one case lie in different frames of reference.",
        "Set infer.register: rigid.",
    ),
    (
        "MODEL_FAILED",
        "failed",
        "The network raised an error on the case, or gave values that are not finite.",
        "Compare the case with those the model was trained on.",
    ),
    (
        "TRANSFORM_FAILED",
        "failed",
        "A transform of the model's workflow raised an error on the case.",
        "Compare the case with those the model was trained on.",
    ),
    (
        "INPUT_CHANGED",
        "failed",
        "A file of the case changed while it was read.",
        "Run the same command again.",
    ),
    ("TIMEOUT", "failed", "The case took longer than --timeout.", "Raise --timeout."),
    ("WORKER_DIED", "failed", "The worker process ended twice on this case.", "See the log file."),
    (
        "OOM",
        "failed",
        "Memory did not suffice for the case.",
        "Use a smaller window, or a larger machine.",
    ),
    ("WRITE_FAILED", "failed", "An output could not be written.", "Check space and permissions."),
    ("INTERNAL", "failed", "A bug in medplat.", "Report it with the log file."),
)

CODES: dict[str, Code] = {
    name: Code(name, meaning, verdict, advice) for name, verdict, meaning, advice in _TABLE
}

# What a person may decide on a doubtful series with `--decisions`.
SETTLED_BY: dict[str, tuple[str, ...]] = {
    "SHEARED": ("resample", "allow-shear"),
    "UNEVEN_SPACING": ("resample",),
    "PHASE_CONFLICT": ("accept-order",),
    "PHASE_ORDER_GUESSED": ("accept-order",),
    "LABEL_OVERLAP": ("split-label",),
}
