"""What the parent hands to the worker for one case, and what the worker hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medplat.dicom.header import Entry
from medplat.types import Image, Series

if TYPE_CHECKING:
    from medplat.dicom.read import SeriesPlan

SourceKind = Literal["dicom", "nifti", "picture", "bag"]
SegKind = Literal["labelmap", "binary"]
Number = int | float


@dataclass(frozen=True)
class Study:
    """One case as it was found, before its inputs are chosen.

    Attributes:
        case: Fit for a folder name, unique in the source.
        patient: Pseudonym.
        kind: Where it comes from.
        series: What `select.choose` chooses from; empty where `images` is given.
        plans: DICOM only: the plan of each of `series`, in the same order.
        images: NIfTI, pictures and bags: the file of each input.
        missing: Inputs without a file.
    """

    case: str
    patient: str
    kind: SourceKind
    series: tuple[Series, ...] = ()
    plans: tuple[SeriesPlan, ...] = ()
    images: dict[str, Image] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Take:
    """Where the image of one input is read from: a plan or a file, and its phase."""

    name: str
    plan: SeriesPlan | None = None
    image: Image | None = None
    phase: int | None = None


@dataclass(frozen=True)
class Job:
    """One case, ready to be run.

    Attributes:
        case: Its name.
        patient: Pseudonym.
        kind: Where it comes from.
        takes: One for each input of the model, in order.
        folder: Where its outputs go.
        entries: Every file that is read.
        used: Input name to what stands in the manifest of its series.
        left: Series that were not taken, and why.
        input_sha256: Over the sorted sha256 of the files' bytes.
        settings_sha256: Over model, choice and options.
        shape: Of the first input's grid, where known.
        spacing_mm: Of the first input's grid, where known.
    """

    case: str
    patient: str
    kind: SourceKind
    takes: tuple[Take, ...]
    folder: Path
    entries: tuple[Entry, ...]
    used: dict[str, dict[str, Any]]
    left: dict[str, str]
    input_sha256: str = ""
    settings_sha256: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelName:
    """How the model is named in every output."""

    name: str
    version: str
    weights_sha256: str


@dataclass
class Result:
    """How a case ended.

    Attributes:
        status: "done", "skipped" (nothing in it is a volume), "rejected" or "failed".
        code: Of the error; "" when done.
        message: One sentence; "" when done.
        notes: Sentences about a case that is done (seg.dcm was refused ...).
        numbers: `<label>_ml` or `<class>_probability`.
        outputs: Path relative to OUT, and sha256.
        seconds: read, prepare, predict, write.
        peak_rss_mb: Highest memory of the worker so far.
    """

    status: str
    code: str = ""
    message: str = ""
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Number | None] = field(default_factory=dict)
    outputs: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
