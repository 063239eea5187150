"""One series of a conversion: its stacks read, written, pictured; its manifest lines."""

from __future__ import annotations

import hashlib
import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import medplat
from medplat import manifest, nifti
from medplat.dicom import read as dicom_read
from medplat.dicom import scan as dicom_scan
from medplat.dicom import sidecar
from medplat.dicom.codes import CODES
from medplat.dicom.plans import pair_up
from medplat.errors import DataError, MedplatError, Refused
from medplat.report import convert as report
from medplat.types import Volume

if TYPE_CHECKING:
    from medplat.commands.convert_labels import Label, Placed
    from medplat.commands.decisions import Decision
    from medplat.commands.label_pairs import Drawing
    from medplat.dicom.deidentify import Deidentifier
    from medplat.dicom.header import Entry
    from medplat.dicom.read import SeriesPlan
    from medplat.pseudonym import Pseudonyms


@dataclass(frozen=True)
class Options:
    """How series are converted; part of what decides whether a series must be done again."""

    split_phases: bool = False
    allow_shear: bool = False
    resample: bool = False
    gzip_level: int = 1
    suffix: str = ".nii.gz"
    keep: tuple[str, ...] = ()
    transforms: tuple[dict[str, dict[str, Any]], ...] = ()
    deidentify: Path | None = None

    def digest(self) -> str:
        """sha256 over the options and the version of medplat."""
        text = json.dumps([asdict(self), medplat.__version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One series.

    Attributes:
        plans: All its stacks.
        labels: Labels that were drawn on it, in the order of their output names.
        digest: Of its input, see `input_digest`.
        positions_mm: Where its slices lie along their normal, for the picture of a refused one.
        decisions: What a person decided on it.
    """

    plans: tuple[SeriesPlan, ...]
    labels: tuple[Drawing, ...] = ()
    digest: str = ""
    positions_mm: tuple[float, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID, or what stands in for it."""
        return self.plans[0].series.study_uid


@dataclass
class _Written:
    """What one stack has become so far."""

    status: str
    codes: list[str]
    messages: list[str]
    outputs: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    deidentified: dict[str, Any] | None = None


def input_digest(
    plans: Sequence[SeriesPlan],
    files: Sequence[Entry],
    decisions: Sequence[Decision],
    pseudonyms: Pseudonyms,
) -> str:
    """A digest that changes when a file, the verdict or the study's clock changes.

    Args:
        plans: All stacks of the series.
        files: Its files and those of its labels; path, size and time of change count.
        decisions: What a person decided on it.
        pseudonyms: Salts it, so that it gives no path away.
    """
    entries = sorted(f"{one.path}|{one.size}|{one.mtime_ns}" for one in files)
    verdicts = [
        [plan.key, plan.series.status, plan.series.codes, plan.series.study_time_s]
        for plan in plans
    ]
    return pseudonyms.digest(json.dumps([entries, verdicts, decisions]))


def unchanged(
    job: Job,
    lines: Mapping[tuple[str, ...], manifest.Line],
    out: Path,
    how: str,
    copies: Deidentifier | None = None,
) -> bool:
    """True when every stack was done with this input and these options, and its outputs still hold.

    Args:
        job: The series.
        lines: Of the manifest.
        out: Output folder.
        how: Digest of the options.
        copies: Writes de-identified copies, which have to be there too.
    """
    for plan in job.plans:
        line = lines.get((plan.series.study_uid, plan.series.series_uid, plan.key))
        if line is None or line["status"] == "failed":
            return False
        if line.get("input_digest") != job.digest or line.get("options_digest") != how:
            return False
        if not all(_intact(out / one["path"], one["sha256"]) for one in line["outputs"]):
            return False
        if line["outputs"] and not report.picture_path(out, line["case"], plan.key).is_file():
            return False
        if copies is not None and line["outputs"] and not copies.holds(line.get("deidentified")):
            return False
    return True


def _intact(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
    return whole and nifti.sidecar_path(path).is_file()


def convert(
    job: Job, out: Path, options: Options, copies: Deidentifier | None = None
) -> list[manifest.Line]:
    """Do one series anew: old outputs go first, then each stack is written or refused.

    Args:
        job: The series.
        out: Output folder.
        options: How.
        copies: Writes de-identified copies of what was converted.

    Returns:
        One manifest line a stack. Nothing is raised for what is wrong with the series.
    """
    clear(job, out)
    waiting: list[Label] = []
    bearer: _Written | None = None
    if job.labels and any(plan.convertible for plan in job.plans):
        from medplat.commands import convert_labels
        from medplat.commands.decisions import SPLIT_LABEL

        split = any(one.action == SPLIT_LABEL for one in job.decisions)
        waiting = convert_labels.load(job.labels, split=split)
    lines = []
    for plan in job.plans:
        started = time.perf_counter()
        done = _guarded(plan, out, options, waiting, job.decisions, copies)
        if done.status == "rejected" and job.positions_mm:
            report.keep_positions(out, plan.series.case, plan.key, job.positions_mm)
        if bearer is None and done.outputs:
            bearer = done
        seconds = round(time.perf_counter() - started, 3)
        lines.append((plan, done, seconds))
    _unplaced(waiting, bearer or lines[0][1])
    return [_line(job, plan, done, seconds, options) for plan, done, seconds in lines]


def clear(job: Job, out: Path) -> None:
    """Delete whatever an earlier run wrote for this series, torn files too."""
    stem = manifest.series_stem(job.plans[0].key)
    for folder in _folders(job, out):
        if folder.is_dir():
            for path in sorted(folder.glob("*")):
                if re.match(rf"\.?{re.escape(stem)}[._]", path.name):
                    path.unlink(missing_ok=True)


def _folders(job: Job, out: Path) -> tuple[Path, Path]:
    case = job.plans[0].series.case
    return out / case, out / report.FOLDER / case


def tidy(jobs: Sequence[Job], out: Path) -> None:
    """Delete folders of cases that have come to hold nothing; only after all series have ended."""
    for folder in {folder for job in jobs for folder in _folders(job, out)}:
        with suppress(OSError):
            folder.rmdir()


def _guarded(
    plan: SeriesPlan,
    out: Path,
    options: Options,
    waiting: list[Label],
    decisions: Sequence[Decision],
    copies: Deidentifier | None,
) -> _Written:
    """Convert one stack; whatever is raised becomes its verdict, and its outputs are withdrawn."""
    series = plan.series
    done = _Written(series.status, list(series.codes), list(series.messages))
    if not plan.convertible:
        return done
    try:
        _write(plan, out, options, waiting, decisions, done)
        if copies is not None:
            done.deidentified = copies.write(plan)
    except Refused as error:
        status = "failed" if CODES[error.code].verdict == "failed" else "rejected"
        return _withdrawn(done, out, status, error.code, error.message)
    except DataError as error:
        return _withdrawn(done, out, "failed", "WRITE_FAILED", str(error))
    except MedplatError:
        raise
    except MemoryError:
        return _withdrawn(done, out, "failed", "OOM", "memory did not suffice for this series")
    except OSError as error:
        reason = f"a file could not be read or written: {error.strerror or type(error).__name__}"
        return _withdrawn(done, out, "failed", "WRITE_FAILED", reason)
    except Exception as error:
        return _withdrawn(done, out, "failed", "INTERNAL", f"a bug in medplat: {where(error)}")
    return done


def where(error: BaseException) -> str:
    """Kind of an error and the line that raised it, without its text, which may hold a path."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"


def _withdrawn(done: _Written, out: Path, status: str, code: str, message: str) -> _Written:
    for one in done.outputs:
        for path in (out / one["path"], nifti.sidecar_path(out / one["path"])):
            path.unlink(missing_ok=True)
    done.outputs.clear()
    done.labels.clear()
    done.status = status
    pair_up(done.codes, done.messages, code, message)
    return done


def _write(
    plan: SeriesPlan,
    out: Path,
    options: Options,
    waiting: list[Label],
    decisions: Sequence[Decision],
    done: _Written,
) -> None:
    volume = dicom_read.read_volume(plan)
    labels: list[Placed] = []
    if waiting:
        from medplat.commands import convert_labels

        labels = convert_labels.place(waiting, plan)
    if options.transforms:
        from medplat.commands import convert_transforms

        volume, labels = convert_transforms.apply(options.transforms, volume, labels)
    for phase, part in _parts(volume, plan, options):
        stem = plan.key if phase is None else f"{plan.key}_p{phase:02d}"
        path = out / plan.series.case / f"{stem}{options.suffix}"
        described = sidecar.describe(
            plan,
            part,
            keep=options.keep,
            options={"split_phases": options.split_phases, "allow_shear": options.allow_shear,
                     "resample": options.resample,
                     "decisions": [one._asdict() for one in decisions],
                     "transforms": list(options.transforms)},
            compressor=nifti.compressor(options.gzip_level, path),
            phase=phase,
        )  # fmt: skip
        nifti.write_json(nifti.sidecar_path(path), described)
        sha256 = nifti.write(part, path, gzip_level=options.gzip_level)
        done.outputs.append(_output(out, path, part, described["phase_times_s"], sha256))
    done.shape = volume.array.shape
    if labels:
        _write_labels(plan, labels, out, options, done)
    inverted = plan.frames[0][0].photometric == "MONOCHROME1"
    mask = labels[0].array if labels and not labels[0].fraction else None
    report.keep_pictures(out, plan.series.case, plan.key, volume, invert=inverted, mask=mask)


def _parts(
    volume: Volume, plan: SeriesPlan, options: Options
) -> Iterator[tuple[int | None, Volume]]:
    """The output files: the volume, or each of its phases.

    Phases whose rescale differs only from one to the next keep their stored integers.
    """
    if volume.array.ndim == 3 or not options.split_phases:
        yield None, volume
        return
    for t in range(volume.array.shape[3]):
        if "RESCALE_VARIES" in plan.series.codes and not options.transforms:
            yield t, dicom_read.read_volume(dicom_read.one_phase(plan, t))
        else:
            yield t, replace(volume, array=volume.array[..., t], phase_times_s=None)


def _output(
    out: Path, path: Path, volume: Volume, times: Sequence[float] | None, sha256: str
) -> dict[str, Any]:
    return {
        "path": path.relative_to(out).as_posix(),
        "kind": "volume",
        "shape": list(volume.array.shape),
        "dtype": volume.array.dtype.name,
        "spacing_mm": sidecar.spacing(volume),
        "phase_times_s": None if times is None else list(times),
        "sha256": sha256,
    }


def _write_labels(
    plan: SeriesPlan, labels: Sequence[Placed], out: Path, options: Options, done: _Written
) -> None:
    """Write labels as `<stem>_label`, `_label2` ..., fractions as `<stem>_fraction` ..."""
    texts = dicom_scan.identity(plan.frames[0][0]).texts
    numbers: Counter[str] = Counter()
    for one in labels:
        described = one.described(plan.series, texts)
        kind = described["kind"]
        numbers[kind] += 1
        number = "" if numbers[kind] == 1 else str(numbers[kind])
        path = out / plan.series.case / f"{plan.key}_{kind}{number}{options.suffix}"
        volume = Volume(one.array, one.geometry)
        nifti.write_json(nifti.sidecar_path(path), described)
        sha256 = nifti.write(volume, path, gzip_level=options.gzip_level)
        done.outputs.append(_output(out, path, volume, None, sha256) | {"kind": kind})
        if any(verdict["index"] == one.label.index for verdict in done.labels):
            continue
        done.labels.append(
            {"index": one.label.index, "status": "used", "output": done.outputs[-1]["path"]}
        )
        for code, message in one.label.notes:
            _remark(done, code, message)


def _unplaced(waiting: Sequence[Label], done: _Written) -> None:
    """Labels that fit no stack are rejected; the series that they name carries the reason."""
    for label in waiting:
        if label.placed:
            continue
        code, message = label.refused or ("LABEL_WRONG_SERIES", "its series was not converted")
        done.labels.append({"index": label.index, "status": "rejected", "code": code})
        _remark(done, code, message)


def _remark(done: _Written, code: str, message: str) -> None:
    """A code that a label gives its series."""
    pair_up(done.codes, done.messages, code, message)
    if done.status == "converted":
        done.status = "warned"


def _line(
    job: Job, plan: SeriesPlan, done: _Written, seconds: float, options: Options
) -> manifest.Line:
    series = plan.series
    line: manifest.Line = {
        "series_uid": series.series_uid,
        "study_uid": series.study_uid,
        "case": series.case,
        "patient": series.patient,
        "modality": series.modality,
        "status": done.status,
        "codes": done.codes,
        "messages": done.messages,
        "outputs": done.outputs,
        "n_files": len(plan.fates),
        "seconds": seconds,
        "stack": plan.key,
        "stacks": [one.key for one in job.plans],
        "number": series.number,
        "description": series.description,
        "orientation": series.orientation,
        "phase_times_s": None if plan.phase_times_s is None else list(plan.phase_times_s),
        "study_time_s": series.study_time_s,
        "labels": done.labels,
        "decisions": [one._asdict() for one in job.decisions],
        **({"deidentified": done.deidentified} if done.deidentified else {}),
        "input_digest": job.digest,
        "options_digest": options.digest(),
    }
    if "patient-id" in options.keep and plan.frames:
        line["patient_id"] = plan.frames[0][0].identity.patient_id
    return {name: _number(value) for name, value in line.items()}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
