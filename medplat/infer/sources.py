"""SOURCE as cases: a DICOM export, what `medplat convert` wrote, NIfTI files, pictures or bags."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import manifest, nifti
from medplat.errors import DataError, MedplatError, UsageError
from medplat.infer.jobs import SourceKind, Study
from medplat.types import Image, Series
from medplat.workflow.schema import Input

if TYPE_CHECKING:
    from medplat.dicom.read import SeriesPlan
    from medplat.dicom.series import SeriesFiles
    from medplat.pseudonym import Pseudonyms

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
BAGS = (".safetensors",)
Shard = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """The cases of a SOURCE, sorted by name, and sentences about what was set aside."""

    kind: SourceKind
    studies: tuple[Study, ...]
    notes: tuple[str, ...] = ()


def find(
    source: Path,
    inputs: Sequence[Input],
    pseudonyms: Pseudonyms,
    *,
    workers: int = 1,
    shard: Shard | None = None,
) -> Found:
    """Look what SOURCE is and list its cases; headers are read, no voxels.

    Args:
        source: A folder, .zip, DICOMDIR, NIfTI file, picture or bag of features.
        inputs: The model's channels; they tell which NIfTI file is which.
        pseudonyms: The project's.
        workers: Threads that read headers.
        shard: (I, N): only the studies whose UID hash modulo N is I - 1.

    Raises:
        UsageError: SOURCE does not exist, or holds nothing to work on.
    """
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a folder, a .zip or a DICOMDIR")
    if (source / "manifest.jsonl").is_file():
        found = Found("nifti", tuple(_converted(source)))
    elif source.is_file() and _is(source, (*NIFTI, *PICTURES, *BAGS)):
        kind: SourceKind = "nifti" if _is(source, NIFTI) else "picture"
        kind = "bag" if _is(source, BAGS) else kind
        found = Found(kind, tuple(_files([source], source.parent, inputs, kind)))
    else:
        found = _dicom(source, pseudonyms, workers, shard) or _folder(source, inputs)
    studies = [one for one in found.studies if shard is None or _mine(one, shard)]
    if not found.studies:
        raise UsageError(
            f"{source}: nothing to work on (no DICOM image, NIfTI file, picture or bag)"
        )
    return Found(found.kind, tuple(sorted(studies, key=lambda one: one.case)), found.notes)


def share(study_uid: str, shard: Shard) -> bool:
    """Whether this part of the work holds the study."""
    number = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:8], "big")
    return number % shard[1] == shard[0] - 1


def _mine(study: Study, shard: Shard) -> bool:
    return share(study.series[0].study_uid if study.series else study.case, shard)


def _is(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _dicom(source: Path, pseudonyms: Pseudonyms, workers: int, shard: Shard | None) -> Found | None:
    """Studies of a DICOM source; None where it holds no DICOM image."""
    from medplat.dicom import read, scan, series

    files = scan.scan(source, workers)
    groups = series.group(files, pseudonyms)
    if not groups:
        return None
    plans: list[SeriesPlan] = []
    for group in groups:
        if shard is None or share(group.study_uid, shard):
            plans += _decided(group, pseudonyms)
    studies: dict[str, list[SeriesPlan]] = {}
    for plan in read.study_times(plans):
        studies.setdefault(plan.series.case, []).append(plan)
    left = Counter(f"{one.status} ({one.code})" for one in files if one.status != "image")
    notes = tuple(f"{count} files {what}" for what, count in sorted(left.items()))
    return Found("dicom", tuple(_study(case, own) for case, own in studies.items()), notes)


def _decided(group: SeriesFiles, pseudonyms: Pseudonyms) -> list[SeriesPlan]:
    """The plans of a series; one that the planner breaks on fails alone."""
    from medplat.dicom import read

    try:
        return read.plan(group, pseudonyms=pseudonyms)
    except MedplatError:
        raise
    except Exception as error:
        return [read.broken(group, pseudonyms, f"a bug in medplat: {type(error).__name__}")]


def _study(case: str, plans: Sequence[SeriesPlan]) -> Study:
    ordered = sorted(plans, key=lambda one: one.key)
    return Study(
        case,
        ordered[0].series.patient,
        "dicom",
        series=tuple(one.series for one in ordered),
        plans=tuple(ordered),
    )


def _converted(source: Path) -> Iterable[Study]:
    """Studies out of the manifest and the sidecars that `medplat convert` wrote."""
    studies: dict[str, list[Series]] = {}
    patients: dict[str, str] = {}
    for line in manifest.read_all(source, manifest.SERIES_KEY):
        if "series_uid" not in line:
            raise UsageError(
                f"{source} holds results of infer, not of convert: give the NIfTI folder"
            )
        patients[line["case"]] = str(line.get("patient", ""))
        studies.setdefault(line["case"], []).extend(_outputs(source, line))
    for case, series in studies.items():
        yield Study(case, patients[case], "nifti", series=tuple(series))


def _outputs(source: Path, line: dict[str, Any]) -> list[Series]:
    paths = [
        source / one["path"] for one in line.get("outputs", []) if _is(Path(one["path"]), NIFTI)
    ]
    images = [path for path in paths if "_label" not in path.name]
    if line.get("status") not in ("converted", "warned") or not images:
        return [_from_line(line)]
    try:
        return nifti.series_of(images)
    except DataError:
        text = f"the sidecar of {images[0].name} is absent or damaged: convert the series again"
        broken = _from_line(line)
        return [replace(broken, status="rejected", codes=("MISSING_FILE",), messages=(text,))]


def _from_line(line: dict[str, Any]) -> Series:
    """What the manifest alone says of a series."""
    return Series(
        series_uid=line["series_uid"],
        study_uid=line.get("study_uid", ""),
        case=line["case"],
        patient=line.get("patient", ""),
        modality=line.get("modality", ""),
        description=line.get("description", ""),
        status=line.get("status", "rejected"),
        codes=tuple(line.get("codes", ())),
    )


def _folder(source: Path, inputs: Sequence[Input]) -> Found:
    """NIfTI files, bags or pictures of a folder and its subfolders."""
    if not source.is_dir():
        return Found("nifti", ())
    files = sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    volumes = [path for path in files if _is(path, NIFTI)]
    if volumes:
        return Found("nifti", tuple(_files(volumes, source, inputs, "nifti")))
    bags = [path for path in files if _is(path, BAGS)]
    if bags:
        return Found("bag", tuple(_files(bags, source, inputs, "bag")))
    pictures = [path for path in files if _is(path, PICTURES)]
    return Found("picture", tuple(_files(pictures, source, inputs, "picture")))


def _files(
    files: Sequence[Path], root: Path, inputs: Sequence[Input], kind: SourceKind
) -> Iterable[Study]:
    """One case a file; with several inputs `<case>/<input>.nii.gz`, `<case>_<input>` or `_0000`.

    One file serves all inputs where each of them names a phase.
    """
    names = [one.name for one in inputs]
    whole = len(names) == 1 or all(
        one.phase is not None or one.phase_time_s is not None for one in inputs
    )
    cases: dict[str, dict[str, Image]] = {}
    for path in files:
        stem = path.relative_to(root).as_posix()
        stem = re.sub(r"(\.nii)?\.[^./]+$", "", stem, flags=re.IGNORECASE)
        if whole:
            cases[stem] = {name: Image(path) for name in names}
            continue
        case, name = _split_name(stem, names)
        if name:
            cases.setdefault(case, {})[name] = Image(path)
        else:
            cases.setdefault(stem, {})
    for case, name in _fit_names(cases).items():
        missing = tuple(one for one in names if one not in cases[case])
        yield Study(name, name, kind, images=cases[case], missing=missing)


def _split_name(stem: str, names: Sequence[str]) -> tuple[str, str | None]:
    for index, name in enumerate(names):
        for end in (f"/{name}", f"_{name}", f"_{index:04d}"):
            if stem.endswith(end) and len(stem) > len(end):
                return stem.removesuffix(end), name
    return stem, None


def _fit_names(cases: Iterable[str]) -> dict[str, str]:
    """Case to a name that is fit for a folder on any system, and unique."""
    fit: dict[str, str] = {}
    for case in cases:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", case).strip("._") or "case"
        if name.casefold() in {one.casefold() for one in fit.values()}:
            name = f"{name}-{hashlib.sha256(case.encode()).hexdigest()[:6]}"
        fit[case] = name
    return fit


def check_images(study: Study) -> None:
    """Refuse a case whose files do not serve every input.

    Raises:
        DataError: Naming the inputs without a file.
    """
    if study.missing:
        raise DataError(
            f"no file for input {', '.join(study.missing)}; files are named <case>_<input>.nii.gz, "
            "<case>_0000.nii.gz or <case>/<input>.nii.gz"
        )
