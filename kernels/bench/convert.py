"""DICOM to NIfTI, side by side on the same data: medplat, dcm2niix, dicom2nifti, SimpleITK, MONAI.

The first two tables take whole programs, process start included, from a folder to `.nii.gz` at gzip
level 1; the third takes readers inside this process, from a folder to an array with its affine.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import harness
import machine
import nibabel as nib
import numpy as np
import tables

from medplat.dicom import read, scan, series

Commands = Sequence[Sequence[str]]
CT, MANY, MANY_SHAPE = (512, 512, 200), 20, (512, 512, 60)
READ = (512, 512, 100)
_SIMPLEITK = """
import sys, SimpleITK as sitk
reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames(sys.argv[1]))
out = sys.argv[2] + "/a.nii.gz"
sitk.WriteImage(reader.Execute(), out, useCompression=True, compressionLevel=1)
"""
_DICOM2NIFTI = """
import sys, dicom2nifti
dicom2nifti.dicom_series_to_nifti(sys.argv[1], sys.argv[2] + "/a.nii.gz", reorient_nifti=False)
"""


def _medplat(source: Path, out: Path, workers: int) -> list[str]:
    words = [sys.executable, "-m", "medplat", "convert", str(source), str(out), "-q"]
    return [*words, "--workers", str(workers), "--project", str(out)]


def _dcm2niix(source: Path, out: Path) -> list[str]:
    import dcm2niix

    words = [dcm2niix.bin, "-1", "-z", "i", "-x", "i", "-b", "n", "-f", "%s", "-o", str(out)]
    return [*words, str(source)]


# A small parent of its own: a child's peak memory begins with that of the process it is born from.
_PEAK = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
print(os.wait4(pid, 0)[2].ru_maxrss)
"""


def _installed(place: Path) -> dict[str, str]:
    """The environment of a program as users have it: its byte code is kept from run to run."""
    kept = {name: one for name, one in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(place / "bytecode")}


class Programs:
    """Commands that are run at the same time in an emptied folder."""

    def __init__(self, name: str, place: Path, cores: int, build: Callable[[Path], Commands]):
        self.name, self.out, self.build = name, place / name.replace(" ", "_"), build
        self.cores = set(sorted(os.sched_getaffinity(0))[:cores])
        self.environment = _installed(place)

    def __call__(self) -> list[Path]:
        """Run them and wait; the `.nii.gz` files that they wrote."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            commands = self.build(self.out)
            running = [subprocess.Popen(one, env=self.environment, **quiet) for one in commands]
        finally:
            os.sched_setaffinity(0, every)
        for one in running:
            if one.wait():
                raise RuntimeError(f"{self.name} ended with {one.returncode}")
        return sorted(self.out.rglob("*.nii.gz"))

    def peak_mib(self) -> float:
        """Peak memory of the largest process, in a run that is not timed."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        peaks = []
        for one in self.build(self.out):
            words = [sys.executable, "-I", "-S", "-c", _PEAK, *one]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            peaks.append(int(told.split()[-1]) / 1024)
        return max(peaks)

    def told(self) -> str:
        """What was written."""
        size = sum(path.stat().st_size for path in self.out.rglob("*.nii.gz"))
        return f"{self.name}: {size / 1e6:.1f} MB written"


def _wall(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """As `harness.wall`, with the CPU time of the programs that were started."""
    before, started = os.times(), time.perf_counter()
    for _ in range(repeat):
        call()
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    return (time.perf_counter() - started) / repeat, used / repeat


def _same(ours: list[Path], theirs: list[Path]) -> bool:
    """Whether two programs wrote the same volumes, whatever way their axes run."""

    def volumes(paths: list[Path]) -> list[tuple[bytes, Any]]:
        images = [nib.as_closest_canonical(nib.load(path)) for path in paths]
        arrays = [np.asarray(one.dataobj).astype(np.int32).tobytes() for one in images]
        return sorted(zip(arrays, (one.affine for one in images), strict=True), key=lambda v: v[0])

    one, other = volumes(ours), volumes(theirs)
    return [a for a, _ in one] == [b for b, _ in other] and all(
        np.allclose(a, b, atol=1e-3) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def _table(
    title: str, programs: list[Programs], goal: float, cores: int, largest: int, rounds: int
) -> tuple[dict[str, Any], str]:
    measured = harness.compare({one.name: one for one in programs}, _same, rounds, _wall)
    peaks = {one.name: one.peak_mib() for one in programs}
    rows = [replace(row, peak_mib=peaks[row.name]) for row in measured.rows]
    goals = {"dcm2niix": goal}
    memory = {"medplat": 1.5 * largest / 2**20 + 300}
    measured = replace(measured, rows=rows)
    kept = tables.record(title, measured, goals=goals, memory=memory, threads=cores)
    pairs = zip(programs, rows, strict=True)
    return kept, "\n".join(f"{one.told()}, CPU {row.cpu_s:.2f} s" for one, row in pairs)


def _single(place: Path, rounds: int) -> tuple[dict[str, Any], str]:
    source = place / "single"
    exports.series(source, CT)
    script = [sys.executable, "-c"]
    programs = [
        Programs("medplat", place, 1, lambda out: [_medplat(source, out, 1)]),
        Programs("dcm2niix", place, 1, lambda out: [_dcm2niix(source, out)]),
        Programs("SimpleITK", place, 1, lambda out: [[*script, _SIMPLEITK, str(source), str(out)]]),
        Programs(
            "dicom2nifti", place, 1, lambda out: [[*script, _DICOM2NIFTI, str(source), str(out)]]
        ),
    ]
    title = f"one CT of {' x '.join(map(str, CT))}, one core, process start included"
    return _table(title, programs, 1 / 1.5, 1, 2 * math.prod(CT), rounds)


def _export(place: Path, rounds: int) -> tuple[dict[str, Any], str]:
    whole = place / "export"
    for number in range(MANY):
        exports.series(whole / str(number % 2) / f"{number:02d}", MANY_SHAPE, number + 1)
    halves = [whole / "0", whole / "1"]

    def two(out: Path) -> Commands:
        for half in halves:
            (out / half.name).mkdir()
        return [_dcm2niix(half, out / half.name) for half in halves]

    programs = [
        Programs("medplat", place, 2, lambda out: [_medplat(whole, out, 2)]),
        Programs("dcm2niix", place, 2, two),
    ]
    shape = " x ".join(map(str, MANY_SHAPE))
    title = f"an export of {MANY} series of {shape}, two cores; dcm2niix as two processes"
    return _table(title, programs, 1 / 0.8, 2, 2 * math.prod(MANY_SHAPE), rounds)


def _readers(place: Path) -> dict[str, Any]:
    import SimpleITK
    from monai.data import PydicomReader

    folder = place / "read"
    exports.series(folder, READ)

    def medplat() -> Any:
        return read.read_volume(read.plan(series.group(scan.scan(folder))[0])[0]).array

    def sitk() -> Any:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)

    def monai() -> Any:
        reader = PydicomReader()
        return reader.get_data(reader.read(str(folder)))[0]

    variants = {"medplat": medplat, "SimpleITK": sitk, "MONAI PydicomReader": monai}
    measured = harness.compare(variants, np.array_equal)
    title = f"reading a CT of {' x '.join(map(str, READ))} into memory"
    return tables.record(title, measured, goals={"MONAI PydicomReader": 8})


def main() -> str:
    """The tables."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        single, said = _single(place, 5)
        export, also = _export(place, 3)
        kept = [single, export, _readers(place)]
    told = tables.write(harness.RESULTS / "convert.json", kept, machine.describe())
    return f"{told}\n\none CT\n{said}\nexport\n{also}"
