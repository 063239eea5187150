"""BreastDCEDL: I-SPY1, I-SPY2 and Duke breast DCE-MRI with pCR, as published and from DICOM.

As a data set it reads the published NIfTI files with the spacing of the clinical table. As the data
set of a convert workflow it writes the same layout from DICOM exports, with true affines. Nothing
is downloaded; the licence is stated as CC BY 4.0 by the repository, as CC BY-NC 4.0 by the deposit,
and the sources have their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import Field

from medplat import console, manifest, nifti
from medplat.errors import DataError, Refused, UsageError
from medplat.types import Case, Image, Series
from medplat.workflow.schema import Strict
from medplat_datasets import _breastdcedl_layout as layout
from medplat_datasets import _breastdcedl_plan as planning
from medplat_datasets import _breastdcedl_publish as publishing
from medplat_datasets import _breastdcedl_read as reading
from medplat_datasets._breastdcedl_plan import Choice
from medplat_datasets._breastdcedl_table import Patient, read_table

LICENCE = (
    "BreastDCEDL: its repository says CC BY 4.0, its deposit CC BY-NC 4.0, and I-SPY1, I-SPY2 and "
    "Duke have terms of their own: settle which bind you before you pass anything on"
)
_USABLE = ("converted", "warned")


class Config(Strict):
    """Keys of `dataset` beside `name` and `split`."""

    clinical_table: Path | None = Field(
        None, description="CSV table of BreastDCEDL: all cohorts, or I-SPY2 alone."
    )
    root: Path | None = Field(
        None, description="Folder of the published NIfTI files; absent: rows without images."
    )
    store: Path | None = Field(
        None, description="Where files with the table's spacing are kept, for those without one."
    )
    spacing_overrides: Mapping[str, float] = Field(
        {}, description="In-plane spacing in mm by pid, over the table's."
    )
    guess_phases: bool = Field(
        False, description="Rows without phases: 0, 2, 6 or the last; 0, 1, last for Duke."
    )
    unassigned: Literal["train", "validation", "test"] | None = Field(
        None, description="Where patients without an official split go; null: left out."
    )
    early_s: float = Field(120.0, gt=0, description="From DICOM: seconds of the early phase.")
    late_s: float = Field(400.0, gt=0, description="From DICOM: seconds of the late phase.")
    wanted: tuple[str, ...] = Field(
        planning.WANTED, description="From DICOM: descriptions of the dynamic series."
    )
    unwanted: tuple[str, ...] = Field(
        planning.UNWANTED, description="From DICOM: descriptions of what is made from them."
    )
    tumour_segments: tuple[str, ...] = Field(
        (), description="From DICOM: names of the tumour's segments, where there are several."
    )
    exclude: tuple[str, ...] = Field(
        ("Breast_MRI_250", "Breast_MRI_577"), description="Patients known to be damaged."
    )


def ready(config: Config, keep: Sequence[str]) -> None:
    """Refuse a conversion that cannot give the published names and table.

    Raises:
        UsageError: The clinical table, or --keep patient-id, is missing.
    """
    if config.clinical_table is None:
        raise UsageError(
            "the data set breastdcedl needs its clinical table: "
            "--set dataset.clinical_table=FILE.csv"
        )
    if not config.clinical_table.is_file():
        raise UsageError(f"dataset.clinical_table: there is no file {config.clinical_table}")
    if "patient-id" not in keep:
        raise UsageError(
            "the data set breastdcedl names files by the patient's id and joins the table with it: "
            "give --keep patient-id"
        )


def plan(
    series: Sequence[Series],
    config: Config,
    pids: Mapping[str, str],
    visits: Mapping[str, str],
) -> list[Choice]:
    """What each series of an export is: its patient, role, phase, and why.

    Args:
        series: Of the export, refused ones too.
        config: How series are chosen.
        pids: PatientID by the pseudonym in `Series.patient`.
        visits: Name of the visit by StudyInstanceUID, where the headers state it.
    """
    return planning.plan(
        series, pids, visits,
        wanted=config.wanted, unwanted=config.unwanted, exclude=config.exclude,
    )  # fmt: skip


def publish(out: Path, config: Config, gzip_level: int = 1) -> tuple[int, int]:
    """Write `OUT/breastdcedl/` from the finished conversion in OUT.

    Returns:
        How many patients were written, and how many refused.

    Raises:
        DataError: The clinical table cannot be read.
    """
    assert config.clinical_table is not None
    console.say(LICENCE)
    table = read_table(config.clinical_table)
    with FileLock(out / f".{publishing.FOLDER}.lock"):
        series, lines, pids, visits = _converted(out)
        wanted = publishing.Wanted(
            config.early_s, config.late_s, config.tumour_segments, gzip_level
        )
        choices = plan(series, config, pids, visits)
        done = publishing.publish(out, choices, lines, table, wanted)
    for pid, why in sorted(done.refused.items()):
        console.say(f"{publishing.FOLDER}: {pid} is refused, {why}")
    console.say(
        f"{publishing.FOLDER}: {len(done.rows)} patients written, {len(done.refused)} refused; "
        f"see series.csv and notes.csv in {out / publishing.FOLDER}"
    )
    return len(done.rows), len(done.refused)


def _converted(
    out: Path,
) -> tuple[list[Series], dict[str, manifest.Line], dict[str, str], dict[str, str]]:
    """The series of OUT, their manifest lines by file, PatientIDs and visits."""
    series: list[Series] = []
    by_file: dict[str, manifest.Line] = {}
    pids: dict[str, str] = {}
    visits: dict[str, str] = {}
    lines = manifest.read_all(out)
    for line in sorted(lines, key=lambda one: (str(one["study_uid"]), str(one["stack"]))):
        if line.get("patient_id"):
            pids[line["patient"]] = str(line["patient_id"])
        paths = [out / one["path"] for one in line["outputs"] if one["kind"] == "volume"]
        if line["status"] not in _USABLE or not paths:
            series.append(_unwritten(line))
            continue
        for one in nifti.series_of(paths):
            series.append(one)
            by_file[str(one.path)] = line
            if visit := visit_of(nifti.read_sidecar(paths[0]).get("tags", {})):
                visits[line["study_uid"]] = visit
    return series, by_file, pids, visits


def visit_of(tags: Mapping[str, Any]) -> str | None:
    """The visit that the technical values of a series name: T0, T1 ..."""
    return tags.get("ClinicalTrialTimePointID") or tags.get("StudyDescriptionEnds")


def _unwritten(line: manifest.Line) -> Series:
    return Series(
        series_uid=line["series_uid"],
        study_uid=line["study_uid"],
        case=line["case"],
        patient=line["patient"],
        modality=line["modality"],
        number=line["number"],
        description=line["description"],
        status=line["status"],
        codes=tuple(line["codes"]),
    )


def cases(config: Config) -> list[Case]:
    """One case a patient of the clinical table, with the inputs pre, early and late.

    Rows that cannot be used are named in a warning and left out; so are patients whose files are
    not in `root`, where one is given. `target` is pCR or no_pCR.

    Raises:
        DataError: There is no table, or files lie in `root` that need `store`.
    """
    if config.clinical_table is None:
        raise DataError("dataset.clinical_table: name the CSV table of BreastDCEDL")
    console.say(LICENCE)
    table = read_table(config.clinical_table)
    try:
        files = reading.find(config.root) if config.root is not None else {}
    except Refused as error:
        raise DataError(f"{config.root}: {error.message}") from error
    left: dict[str, list[str]] = {}
    rows = [one for one in table.patients.values() if one.pid not in table.outside]
    found = [case for one in rows if (case := _case(one, config, files, left))]
    for why in (*table.refused.values(), *table.outside.values()):
        console.warn(f"left out: {why}")
    for what, pids in left.items():
        console.warn(f"{len(pids)} patients {what}: {', '.join(pids)}")
    bare = sum(reading.GEOMETRY_FROM_TABLE in case.codes for case in found)
    if bare:
        console.warn(
            f"{bare} patients have files with an identity affine: spacing is taken from the table, "
            "position and direction are not those of the patient"
        )
    return found


def _case(
    patient: Patient,
    config: Config,
    files: Mapping[tuple[str, int | None], Path],
    left: dict[str, list[str]],
) -> Case | None:
    """The case of a row; None, and a note in `left`, where it cannot be one."""
    pid = patient.pid
    for column, what in (("xy_spacing", "without in-plane spacing"), ("pre", "without phases")):
        if not patient.cells.get(column):
            left.setdefault(f"{what} in the table", []).append(pid)
    split = patient.split or config.unassigned
    if split is None:
        left.setdefault("left out, without an official split", []).append(pid)
        return None
    images: dict[str, Image] = {}
    label: Path | None = None
    codes: list[str] = []
    try:
        if config.root is not None:
            images, label, codes = _files(patient, config, files)
    except Refused as error:
        left.setdefault(f"left out, {error.code}", []).append(f"{pid} ({error.message})")
        return None
    pcr = patient.index("pCR")
    return Case(
        case=pid,
        patient=pid,
        images=images,
        label=label,
        target=None if pcr is None else ("no_pCR", "pCR")[pcr],
        split=split,
        codes=tuple(codes),
        columns=dict(patient.cells),
    )


def _files(
    patient: Patient, config: Config, files: Mapping[tuple[str, int | None], Path]
) -> tuple[dict[str, Image], Path | None, list[str]]:
    """Images by input name, the mask, and codes.

    Raises:
        Refused: A file is absent or not as the table says.
        DataError: A copy is needed and `store` is not given.
    """
    pid = patient.pid
    there = sorted(phase for own, phase in files if own == pid and phase is not None)
    wanted, codes = _phases(patient, config, there)
    missing = [phase for phase in wanted.values() if phase not in there]
    if missing:
        raise Refused("MISSING_INPUT", f"no file of phase {missing[0]}")
    if config.store is None:
        raise DataError("dataset.store: name a folder for the files with the table's spacing")
    shapes, places = [], {}
    for phase in [*dict.fromkeys(wanted.values()), None]:
        if (pid, phase) in files:
            path, shape, bare = reading.stored(
                files[pid, phase], config.store, patient, config.spacing_overrides
            )
            places[phase] = path
            shapes.append(shape)
            codes += [reading.GEOMETRY_FROM_TABLE] if bare else []
    reading.same_shape(shapes, pid)
    images = {name: Image(places[phase]) for name, phase in wanted.items()}
    return images, places.get(None), list(dict.fromkeys(codes))


def _phases(
    patient: Patient, config: Config, there: Sequence[int]
) -> tuple[dict[str, int], list[str]]:
    """Phase by input name: the table's, else guessed where that is allowed."""
    stated = {name: patient.index(column) for name, column in layout.PHASES.items()}
    given = {name: index for name, index in stated.items() if index is not None}
    if len(given) == len(stated):
        return given, []
    if not config.guess_phases or not there:
        raise Refused("MISSING_INPUT", "the table names no phases; see dataset.guess_phases")
    return guessed(patient.cohort.name, there[-1]), ["PHASE_ORDER_GUESSED"]


def guessed(cohort: str, last: int) -> dict[str, int]:
    """The index rule in circulation, which agrees with the table in two of three rows.

    Args:
        cohort: "spy1", "spy2" or "duke".
        last: Index of the last phase.
    """
    if cohort == "duke":
        return {"pre": 0, "early": min(1, last), "late": last}
    return {"pre": 0, "early": min(2, last), "late": min(last, 6)}


__all__ = ["Choice", "Config", "cases", "guessed", "plan", "publish", "ready", "visit_of"]
