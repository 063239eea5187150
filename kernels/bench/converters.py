"""Other DICOM converters behind one call, for the benchmarks: a folder in, NIfTI-like arrays out.

Each function takes a folder with the files of one series and an empty folder to work in, and
returns (array, affine) pairs in RAS+ mm, or raises. What the tool says on its error streams is
read by `listened`, so that a volume with a warning is told from a silent one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Volumes = list[tuple[Array, Array]]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Answer:
    """What a converter gave for one series: volumes, and what it said.

    Attributes:
        volumes: (array, affine) pairs; empty after a refusal.
        told: It printed a warning or an error, or ended with another code than 0.
    """

    volumes: Volumes = field(default_factory=list)
    told: bool = False


def load(folder: Path) -> Volumes:
    """Every NIfTI file below a folder, by name."""
    found = []
    for path in sorted(folder.rglob("*.nii*")):
        image = nib.load(path)
        found.append((np.asarray(image.dataobj, dtype=np.float64), image.affine))
    return found


def dcm2niix(source: Path, work: Path) -> Volumes:
    """dcm2niix as users run it; `-x i` keeps the planes of the DICOM files."""
    import dcm2niix as packaged

    ended = subprocess.run(
        [packaged.bin, "-x", "i", "-b", "n", "-f", "%s_%p", "-o", str(work), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(ended.stdout + ended.stderr)
    if ended.returncode:
        sys.stderr.write(f"error: exit code {ended.returncode}\n")
    return load(work)


def dicom2nifti(source: Path, work: Path) -> Volumes:
    """dicom2nifti with its standard checks on."""
    import dicom2nifti as package

    package.dicom_series_to_nifti(str(source), str(work / "volume.nii"), reorient_nifti=False)
    return load(work)


def simpleitk(source: Path, work: Path) -> Volumes:
    """SimpleITK's series reader over the file names that GDCM lists."""
    import SimpleITK

    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(source))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(names)
    image = reader.Execute()
    size = image.GetDimension()
    lps = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    lps[:3, :3] = directions * np.array(image.GetSpacing())[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    array = SimpleITK.GetArrayFromImage(image)
    return [(array.T.astype(np.float64), LPS_TO_RAS @ lps)]


def monai(source: Path, work: Path) -> Volumes:
    """MONAI's PydicomReader on the folder."""
    from monai.data import PydicomReader

    reader = PydicomReader()
    array, meta = reader.get_data(reader.read(str(source)))
    return [(np.asarray(array, dtype=np.float64), np.asarray(meta["affine"]))]


def medplat(source: Path, work: Path) -> Volumes:
    """`medplat convert`, called in this process."""
    import json

    from medplat.commands import convert

    out = work / "out"
    convert.run(source, out, project=work / "project", workers=1, no_gzip=True)
    for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        if json.loads(line)["codes"]:
            sys.stderr.write(f"warning: {json.loads(line)['codes']}\n")
    return load(out)


CONVERTERS: dict[str, Callable[[Path, Path], Volumes]] = {
    "medplat": medplat,
    "dcm2niix": dcm2niix,
    "dicom2nifti": dicom2nifti,
    "SimpleITK": simpleitk,
    "MONAI PydicomReader": monai,
}


@contextmanager
def _error_stream() -> Iterator[Any]:
    """Everything that Python or a C++ library writes to standard error meanwhile."""
    with tempfile.TemporaryFile("w+") as heard:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            yield heard
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            heard.seek(0)


def convert(name: str, source: Path) -> Answer:
    """Run one converter on one series and listen to what it says."""
    answer = Answer()
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _error_stream() as heard:
            try:
                answer.volumes = CONVERTERS[name](source, Path(work))
            except Exception:
                answer.told = True
            sys.stderr.flush()
            heard.seek(0)
            text = heard.read().lower()
    answer.told |= bool(caught) or "warning" in text or "error" in text
    return answer
