"""Mutated real files: whatever the damage, `convert` refuses by name and accounts for each file."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medplat.dicom import wheel
from medplat.dicom.codes import CODES

SYNTAXES = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless,
    DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless,
)  # fmt: skip
LARGEST = 300_000
SETS = ("dicom2nifti", "dcmqi", "dcm_qa_ts", "dcm_qa_12bit", "dcm_qa_agfa", "dcm_qa_enh")


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    reach = min(len(data), 4000 if rng.random() < 0.7 else len(data))
    for place in rng.integers(0, reach, int(rng.integers(1, 30))):
        data[place] ^= 1 << int(rng.integers(8))


def wrong_length(data: bytearray, rng: np.random.Generator) -> None:
    """Random bytes where a length field of an element is likely: after a value representation."""
    places = [
        place
        for name in (b"UI", b"DS", b"CS", b"SQ", b"OW", b"OB", b"US", b"LO")
        if (place := data.find(name, int(rng.integers(132, max(133, len(data) - 8))))) >= 0
    ]
    place = int(rng.choice(places)) if places else len(data) // 2
    data[place + 2 : place + 2 + int(rng.choice([2, 4, 6]))] = rng.bytes(4)


def swap_syntax(data: bytearray, rng: np.random.Generator) -> None:
    """Name another transfer syntax in the file meta group, in the same number of bytes."""
    start = data.find(b"1.2.840.10008.1.2")
    if start < 0:
        return flip_bits(data, rng)
    length = int.from_bytes(data[start - 2 : start], "little")
    fits = [one.encode() for one in SYNTAXES if len(one) <= length]
    data[start : start + length] = fits[int(rng.integers(len(fits)))].ljust(length, b"\0")
    return None


def zero_run(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    data[start : start + int(rng.integers(1, 2000))] = b""


MUTATIONS = (truncate, flip_bits, wrong_length, swap_syntax, zero_run)


def originals(realdata: Path) -> list[list[Path]]:
    """Folders of small real files, and the files of the pydicom wheel one by one."""
    folders: dict[Path, list[Path]] = {}
    for name in SETS:
        for path in sorted((realdata / "dicom" / name).rglob("*")):
            if path.is_file() and path.stat().st_size < LARGEST and path.suffix != ".gz":
                folders.setdefault(path.parent, []).append(path)
    alone = [[path] for path in wheel.files("*.dcm") if path.stat().st_size < LARGEST]
    return [files[:12] for files in folders.values()] + alone


def plant(folder: Path, sets: list[list[Path]], n: int, rng: np.random.Generator) -> None:
    """Copy sets until `n` files are mutated; each copy is a series of its own."""
    mutated = number = 0
    while mutated < n:
        files = sets[int(rng.integers(len(sets)))]
        place = folder / f"{number:04d}"
        place.mkdir(parents=True)
        number += 1
        for path in files:
            data = bytearray(renumbered(path, number))
            if mutated < n and (len(files) == 1 or rng.random() < 0.5):
                MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
                mutated += 1
            (place / path.name).write_bytes(data)


def renumbered(path: Path, number: int) -> bytes:
    """The bytes with another series UID of the same length."""
    data = path.read_bytes()
    try:
        uid = str(dcmread(path, stop_before_pixels=True, force=True).SeriesInstanceUID)
    except Exception:
        return data
    return data.replace(uid.encode(), (uid[:-4] + f"{number:04d}").encode()) if uid else data


def tree(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in sorted(folder.rglob("*")):
        about = path.stat()
        yield path.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns


def check(folder: Path, sets: list[list[Path]], n: int, seed: int) -> None:
    source, out = folder / "source", folder / "out"
    plant(source, sets, n, np.random.default_rng(seed))
    before = list(tree(source))
    command = [sys.executable, "-c", "from medplat.cli import main; main()", "convert",
               str(source), str(out), "--json", "--project", str(folder / "project"),
               "--workers", "1"]  # fmt: skip
    if seed % 4 == 0:
        command += ["--deidentify", str(folder / "copies")]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode in (0, 3, 4), f"seed {seed}: {ended.stderr[-2000:]}"
    lines = [json.loads(one) for one in (out / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["status"] != "failed", f"seed {seed}: {line}"
        assert set(line["codes"]) <= set(CODES), f"seed {seed}: {line}"
        assert line["codes"] or line["status"] == "converted", f"seed {seed}: {line}"
    with (out / "files.csv").open(newline="", encoding="utf-8") as file:
        listed = [row["path"] for row in csv.DictReader(file)]
    there = [name for name, _, _ in before if (source / name).is_file()]
    assert sorted(one for one in listed if "!" not in one) == there, f"seed {seed}"
    assert list(tree(source)) == before, f"seed {seed}: SOURCE was changed"
    assert {one.name for one in folder.iterdir()} <= {"source", "out", "project", "copies"}


def test_two_hundred_mutated_files(realdata: Path, tmp_path: Path) -> None:
    check(tmp_path, originals(realdata), 200, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_five_thousand_mutated_files(realdata: Path, tmp_path: Path) -> None:
    sets = originals(realdata)
    first = int(np.random.default_rng().integers(10**6))
    for seed in range(first, first + 20):
        check(tmp_path / str(seed), sets, 250, seed)
