"""Phantom studies as a PACS would export them: what is wanted, what is not, and what is broken."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medplat.dicom import wheel
from medplat.dicom.write import uid, write_label, write_report, write_series
from medplat.types import Array, Geometry, Volume
from medplat.workflow.schema import Code, Label
from medplat_datasets import _breast

LABELS = (
    Label(name="lesion", value=1, code=Code(value="52988006", scheme="SCT", meaning="Lesion")),
)
IDIOMS = ("Philips-like", "Siemens-like")
REAL = (  # of the installed pydicom package: axial CT, one with a gap, scouts, projections, CR, SR
    "dicomdirtests/77654033/*/*",
    "dicomdirtests/98892001/*/*",
    "dicomdirtests/98892003/MR[27]*/*",
    "dicomdirtests/DICOMDIR",
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "test-SR.dcm",
    "rtplan.dcm",
)


@dataclass(frozen=True, eq=False)
class Study:
    """One synthetic study and its truth.

    Attributes:
        patient_id: As in the headers.
        study_uid: StudyInstanceUID.
        visit: 0, 1 ...
        broken: True where a slice of one phase was left out.
        dynamic_uid: SeriesInstanceUID of the dynamic series.
        volume: The dynamic series, (x, y, z, t) uint16, z along the slice normal.
        lesion: (x, y, z) uint8, 1 in the lesion.
    """

    patient_id: str
    study_uid: str
    visit: int
    broken: bool
    dynamic_uid: str
    volume: Volume
    lesion: Array

    @property
    def lesion_ml(self) -> float:
        """Volume of the lesion in the voxels of the dynamic series."""
        voxel_mm3 = abs(float(np.linalg.det(self.volume.geometry.affine[:3, :3])))
        return float(self.lesion.sum()) * voxel_mm3 / 1000


def simulate(seed: int, visit: int = 0) -> tuple[_breast.Breast, Volume, Array]:
    """A breast, its dynamic series and the mask of its lesion; sizes and times vary with `seed`."""
    breast = _breast.draw(seed, visit)
    rng = np.random.default_rng([seed, visit, 21])
    shape = (*rng.choice((60, 62, 64), 2), rng.choice((22, 23, 24)))
    spacing = (*[rng.uniform(1.95, 2.15)] * 2, rng.uniform(4.2, 4.8))
    geometry = _breast.grid(breast, shape, spacing, tilt_deg=tuple(rng.uniform(-4, 4, 2)))
    step = rng.uniform(62, 84)
    count = 5 if step > 74 else 6
    times = tuple(float(round(step * at, 2)) for at in range(count))
    clean = _breast.dynamic(breast, _breast.tissues(breast, geometry), geometry, times)
    array = _breast.scan(breast, clean, geometry, rng)
    volume = Volume(array, geometry, phase_times_s=times)
    return breast, volume, _breast.lesion(breast, geometry)


def write_export(
    folder: Path,
    *,
    patients: int = 8,
    second_visits: int = 2,
    seed: int = 0,
    labels: bool = True,
    broken: bool = True,
    litter: bool = True,
    real: bool = True,
) -> list[Study]:
    """Write a nested export of several synthetic patients, and return what is true of it.

    The same arguments give the same bytes. The last whole study is packed in a zip archive.

    Args:
        folder: Made if absent; its files are numbered and named as a PACS does.
        patients: How many patients have whole studies.
        second_visits: How many of them come a second time.
        seed: Other seeds give other patients.
        labels: Draw the lesion of each whole study as DICOM SEG.
        broken: Add one patient whose dynamic series lacks a slice in one phase.
        litter: Add files that are no DICOM.
        real: Add real DICOM files of other patients, out of the installed pydicom.
    """
    studies: list[Study] = []
    visits = [(nr, 0) for nr in range(patients)] + [(nr, 1) for nr in range(second_visits)]
    for nr, visit in visits:
        studies.append(_write_study(folder, seed, nr, visit, labels=labels))
    if studies:
        last = _place(folder, studies[-1])
        _pack(last, folder / "DISC2.ZIP")
    if broken:
        studies.append(_write_study(folder, seed, patients, 0, labels=False, broken=True))
    if litter:
        _write_litter(folder)
    if real:
        _copy_real(folder / "OTHER")
    return studies


def _write_study(
    folder: Path, seed: int, nr: int, visit: int, *, labels: bool, broken: bool = False
) -> Study:
    breast, volume, lesion = simulate(1000 * seed + nr, visit)
    patient_id = f"PH-{seed:02d}-{nr:03d}"
    study_uid = uid(patient_id, "study", visit)
    idiom = IDIOMS[nr % len(IDIOMS)]
    headers = _study_headers(patient_id, nr, visit, study_uid, breast.side, idiom)
    dynamic_uid = uid(study_uid, "dynamic")
    study = Study(patient_id, study_uid, visit, broken, dynamic_uid, volume, lesion)
    place = _place(folder, study)
    paths = _write_dynamic(place, headers, study, idiom)
    if broken:
        paths[2][volume.array.shape[2] // 2].unlink()
    if labels:
        _label(place, study, paths)
    _write_others(place, headers, study, breast)
    return study


def _place(folder: Path, study: Study) -> Path:
    return folder / "DICOM" / _hex(study.patient_id) / _hex(study.study_uid)


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8].upper()


def _named(series_uid: str, running: int) -> str:
    """A file name without suffix, whose order says nothing."""
    return "I" + _hex(f"{series_uid} {running}")[:7]


def _clock(seconds: float) -> str:
    """DICOM TM of seconds since midnight."""
    whole = int(seconds)
    micro = round((seconds - whole) * 1e6)
    return f"{whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{micro:06d}"


def _study_headers(
    patient_id: str, nr: int, visit: int, study_uid: str, side: int, idiom: str
) -> dict[str, Any]:
    return {
        "Modality": "MR",
        "PatientName": f"PHANTOM^NUMBER {nr}",
        "PatientID": patient_id,
        "PatientBirthDate": f"19{50 + nr % 30}0102",
        "PatientSex": "F",
        "StudyInstanceUID": study_uid,
        "StudyDate": "20000105" if visit else "19991122",
        "StudyTime": _clock(8 * 3600 + 1000 * nr),
        "AccessionNumber": f"ACC{nr:03d}{visit}",
        "StudyID": str(nr + 1),
        "StudyDescription": "MRI BREAST UNILATERAL",
        "Manufacturer": f"medplat ({idiom})",
        "ManufacturerModelName": "synthetic",
        "MagneticFieldStrength": "1.5",
        "BodyPartExamined": "BREAST",
        "Laterality": "R" if side > 0 else "L",
        "PatientPosition": "HFP",
    }


def _series(
    headers: Mapping[str, Any], what: str, number: int, description: str, start_s: float
) -> dict[str, Any]:
    """Headers of one more series of the study; `start_s` counts from the study's begin."""
    clock = _clock(_begin(headers) + start_s)
    return {
        **headers,
        "SeriesInstanceUID": uid(headers["StudyInstanceUID"], what),
        "SeriesNumber": number,
        "SeriesDescription": description,
        "AcquisitionDate": headers["StudyDate"],
        "AcquisitionTime": clock,
        "ContentDate": headers["StudyDate"],
        "ContentTime": clock,
    }


def _begin(headers: Mapping[str, Any]) -> float:
    time = str(headers["StudyTime"])
    return int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:])


def _write_dynamic(
    place: Path, headers: Mapping[str, Any], study: Study, idiom: str
) -> list[list[Path]]:
    """All phases in one series, with the headers that the idiom is known for."""
    times, slices = study.volume.phase_times_s or (), study.volume.array.shape[2]
    begin = _begin(headers) + 600
    step_mm = float(np.linalg.norm(study.volume.geometry.affine[:3, 2]))
    clocks = [{"AcquisitionTime": _clock(begin + time)} for time in times]
    if idiom == "Philips-like":
        # Phases from 0, one fewer announced than present, a trigger time without meaning, an index
        # for a slice location, the time of processing for content, and slices in a row of phases.
        series = _series(headers, "dynamic", 401, "Dyn eTHRIVE ax DCE", 600)
        series |= {"NumberOfTemporalPositions": len(times) - 1, "TriggerTime": 0}
        series |= {"SliceLocation": lambda k: str(k), "ContentTime": _clock(begin + 2000)}
        phases = [clock | {"TemporalPositionIdentifier": t} for t, clock in enumerate(clocks)]
        number = lambda t, k: k * len(times) + t + 1  # noqa: E731
    else:
        # An acquisition number a phase, and instance numbers that start again, against space.
        series = _series(headers, "dynamic", 6, "t1_fl3d_tra_dyna DCE", 600)
        series |= {"SliceLocation": lambda k: f"{k * step_mm:.6f}"}
        phases = [clock | {"AcquisitionNumber": t + 1} for t, clock in enumerate(clocks)]
        number = lambda t, k: slices - k  # noqa: E731
    series |= {"ContrastBolusAgent": "GADOLINIUM", "ScanOptions": "FS"}
    name = partial(_named, series["SeriesInstanceUID"])
    return write_series(study.volume, place, series, phases=phases, number=number, name=name)


def _label(place: Path, study: Study, paths: list[list[Path]]) -> None:
    path = place / _named(study.dynamic_uid, -1)
    write_label(study.lesion, paths[0], LABELS, path, author="phantom truth")


def _write_others(
    place: Path, headers: Mapping[str, Any], study: Study, breast: _breast.Breast
) -> None:
    """Series that no model asked for: localizer, T2, a reformat, and a report."""
    rng = np.random.default_rng([len(study.volume.array), study.visit, 22])
    survey = _series(headers, "survey", 1, "Survey", 0)
    survey["ImageType"] = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    for nr, plane in enumerate(_breast.PLANES):
        grid = _breast.grid(breast, (32, 32, 3), (4.5, 4.5, 20), plane=plane)
        _write_image(place, survey, breast, grid, _breast.T1, rng, first=1 + 3 * nr)
    t2 = _series(headers, "t2", 301, "T2W TSE ax", 240)
    t2 |= {"ScanningSequence": "SE", "SequenceVariant": "SK", "MRAcquisitionType": "2D"}
    t2 |= {"RepetitionTime": 4500, "EchoTime": 90, "EchoTrainLength": 14}
    grid = _breast.grid(breast, (60, 60, 16), (2.2, 2.2, 6.5))
    _write_image(place, t2, breast, grid, _breast.T2, rng)
    reformat = _series(headers, "reformat", 402, "DCE reformat sag", 1500)
    reformat |= {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}
    reformat |= {"ContrastBolusAgent": "GADOLINIUM"}
    grid = _breast.grid(breast, (48, 40, 16), (2.8, 2.8, 8), plane="sagittal")
    _write_image(place, reformat, breast, grid, None, rng)
    report_uid = uid(study.study_uid, "report")
    report = {key: headers[key] for key in headers if key.startswith(("Patient", "Study"))}
    del report["PatientPosition"]
    write_report(
        place / _named(report_uid, 1),
        report | {"SeriesInstanceUID": report_uid, "SeriesNumber": 900},
        "Synthetic study, drawn by a program: no patient was examined.",
    )


def _write_image(
    place: Path,
    headers: Mapping[str, Any],
    breast: _breast.Breast,
    grid: Geometry,
    signal: Mapping[str, float] | None,
    rng: np.random.Generator,
    first: int = 1,
) -> None:
    """One series of one phase; without `signal` what the dynamic series shows after two minutes."""
    layers = _breast.tissues(breast, grid)
    if signal is None:
        clean = _breast.dynamic(breast, layers, grid, [120.0])[..., 0]
    else:
        clean = _breast.image(layers, signal)
    volume = Volume(_breast.scan(breast, clean, grid, rng), grid)
    name = partial(_named, headers["SeriesInstanceUID"])
    write_series(volume, place, headers, first=first, name=name)


def _pack(folder: Path, archive: Path) -> None:
    """Move a folder into a zip archive whose bytes depend on its content only."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in sorted(folder.rglob("*")):
            member = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())
            member.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(member, path.read_bytes())
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _write_litter(folder: Path) -> None:
    """What disks from hospitals hold beside images."""
    texts = {"README.TXT": "Start VIEWER.EXE to see your images.\r\n", "AUTORUN.INF": "[autorun]\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / "VIEWER.EXE").write_bytes(b"MZ" + bytes(range(256)) * 16)
    (folder / "DICOM" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(300))
    (folder / "DICOM" / "EMPTY").write_bytes(b"")


def _copy_real(folder: Path) -> None:
    folder.mkdir()
    for nr, path in enumerate(wheel.files(*REAL)):
        shutil.copyfile(path, folder / f"{nr:04d}")
