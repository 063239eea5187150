"""Synthetic breast MRI with contrast agent: for the demonstration and for tests, never for claims.

As a dataset plugin it writes NIfTI volumes and label maps and gives the phases pre, early and late.
`write_export` and `write_selection_study` write DICOM studies as a PACS would export them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medplat import nifti
from medplat.dicom.write import uid, write_series
from medplat.errors import DataError
from medplat.types import Case, Image, Volume
from medplat_datasets import _breast
from medplat_datasets._export import LABELS, Study, simulate, write_export

__all__ = ["LABELS", "Config", "Study", "cases", "write_export", "write_selection_study"]

EARLY_S, LATE_S = 120.0, 400.0
SETTINGS = "phantom.json"


class Config(BaseModel):
    """Where the phantom is written and how large it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path = Field(description="Folder for the volumes; made and filled when absent.")
    patients: int = Field(8, gt=0, description="Patients; each has one lesion.")
    second_visits: int = Field(2, ge=0, description="Patients that come a second time.")
    seed: int = Field(0, ge=0, description="Other seeds give other patients.")


def cases(config: Config) -> list[Case]:
    """One case a visit, with the inputs pre, early (near 120 s), late (near 400 s) and a label.

    Raises:
        DataError: `root` holds a phantom of other settings, or other files.
    """
    _claim(config)
    found = []
    visits = [(nr, 0) for nr in range(config.patients)]
    visits += [(nr, 1) for nr in range(min(config.patients, config.second_visits))]
    for nr, visit in visits:
        name = f"phantom{config.seed:02d}_{nr:03d}_{visit}"
        image = config.root / f"{name}.nii.gz"
        label = config.root / f"{name}_label.nii.gz"
        if not (image.is_file() and label.is_file()):
            _, volume, lesion = simulate(1000 * config.seed + nr, visit)
            nifti.write(Volume(lesion, volume.geometry), label)
            times = {"phase_times_s": list(volume.phase_times_s or ())}
            nifti.write_json(nifti.sidecar_path(image), times)
            nifti.write(volume, image)
        times_s = np.array(nifti.read_sidecar(image)["phase_times_s"])
        early, late = (int(np.abs(times_s - at).argmin()) for at in (EARLY_S, LATE_S))
        images = {"pre": Image(image, 0), "early": Image(image, early), "late": Image(image, late)}
        columns = {"visit": str(visit)}
        found.append(
            Case(name, f"phantom{config.seed:02d}_{nr:03d}", images, label=label, columns=columns)
        )
    return found


def _claim(config: Config) -> None:
    """Fill no folder that holds something else."""
    settings = {"seed": config.seed, "version": 1}
    path = config.root / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise DataError(f"{config.root}: holds a phantom of another seed; name another root")
    elif config.root.is_dir() and any(config.root.iterdir()):
        raise DataError(f"{config.root}: is not empty and holds no phantom; name another root")
    else:
        nifti.write_json(path, settings)


def write_selection_study(
    folder: Path, *, seed: int = 7, second: bool = False, thick: bool = True
) -> dict[str, str]:
    """Write a study from which a workflow's `inputs` have to choose.

    T1, T1 with contrast agent, a localizer, a coronal reformat (DERIVED) and a T1 of thicker
    slices; all are static.

    Args:
        folder: Made if absent.
        seed: Of the breast and the UIDs.
        second: Add a repeat of the T1 that fits wherever the first one does.
        thick: Add the T1 of thicker slices.

    Returns:
        SeriesInstanceUID by role: t1, t1_contrast, localizer, reformat, t1_thick, t1_second.
    """
    breast = _breast.draw(seed)
    rng = np.random.default_rng([seed, 23])
    study = uid("selection", seed)
    agent = {"ContrastBolusAgent": "GADOLINIUM"}
    derived = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}
    survey = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    rows = [
        _Row("localizer", 1, "LOC", tuple(_breast.PLANES), (24, 24, 1), (6, 6, 10), survey),
        _Row("t1", 2, "T1 ax", ("axial",), (40, 36, 16), (3.2, 3.2, 4.0), {}),
        _Row("t1_contrast", 5, "T1 ax post GD", ("axial",), (40, 36, 16), (3.2, 3.2, 4.0), agent),
        _Row("reformat", 6, "T1 reformat", ("coronal",), (40, 24, 12), (3.2, 3.2, 8.0), derived),
    ]
    if thick:
        rows.append(_Row("t1_thick", 3, "T1 ax", ("axial",), (40, 36, 10), (3.2, 3.2, 8.0), {}))
    if second:
        rows.append(_Row("t1_second", 4, "T1 ax", ("axial",), (40, 36, 16), (3.2, 3.2, 4.0), {}))
    for row in rows:
        headers = {
            "Modality": "MR",
            "PatientName": "PHANTOM^SELECTION",
            "PatientID": f"PH-SEL-{seed}",
            "PatientBirthDate": "19600101",
            "PatientSex": "F",
            "StudyInstanceUID": study,
            "StudyID": "1",
            "StudyDate": "20000203",
            "StudyTime": "100000",
            "SeriesInstanceUID": uid(study, row.role),
            "SeriesNumber": row.number,
            "SeriesDescription": row.description,
            "AcquisitionDate": "20000203",
            "AcquisitionTime": f"10{row.number:02d}00",
            **row.headers,
        }
        time_s = 120.0 if row.role == "t1_contrast" else 0.0
        name = f"{row.number:02d}{{:03d}}.dcm".format
        for nr, plane in enumerate(row.planes):
            grid = _breast.grid(breast, row.shape, row.spacing_mm, plane=plane)
            clean = _breast.dynamic(breast, _breast.tissues(breast, grid), grid, [time_s])
            volume = Volume(_breast.scan(breast, clean[..., 0], grid, rng), grid)
            write_series(volume, folder, headers, first=1 + nr, name=name)
    return {row.role: str(uid(study, row.role)) for row in rows}


class _Row(NamedTuple):
    """One series of the selection study."""

    role: str
    number: int
    description: str
    planes: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    headers: dict[str, Any]
