"""No silent wrong volume: physically damaged series are refused by name, regular ones are not."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fault_exports import FAULTS, Export, Fault, exports

from medplat.commands import convert


def right(path: Path, export: Export) -> bool:
    """Whether a NIfTI file holds the values of the truth, in the same order of axes."""
    image = nib.load(path)
    real = np.asarray(image.dataobj, dtype=np.float64)
    real = real if real.ndim == 4 else real[..., None]
    return (
        real.shape == export.truth.shape
        and bool(np.allclose(image.affine, export.affine, atol=1e-4))
        and bool(np.allclose(real, export.truth, rtol=1e-6))
    )


def judge(lines: list[dict[str, Any]], out: Path, fault: Fault | None, export: Export) -> str:
    """What is wrong with how one series was converted; empty where nothing is."""
    codes = {code for line in lines for code in line["codes"]}
    written = [out / one["path"] for line in lines for one in line["outputs"]]
    status = {line["status"] for line in lines}
    if fault is None:
        guessed = codes <= {"PHASE_ORDER_GUESSED"}
        fine = len(written) == 1 and guessed and right(written[0], export)
    elif written:
        fine = fault.harmless and all(right(path, export) for path in written)
        fine = fine and bool(codes & fault.codes)
    else:
        fine = status == {"rejected"} and bool(codes & fault.codes)
    return "" if fine else f"{fault.name if fault else 'regular'}: {status} {codes} {written}"


def faulty(folder: Path, project: Path, n: int, seed: int) -> list[str]:
    """The verdicts over `n` exports that are not what they should be."""
    cases = {}
    for number, fault, export in exports(n, seed):
        export.write(folder / "source" / f"{number:04d}", np.random.default_rng(number))
        cases[export.uid] = (fault, export)
    out = folder / "out"
    convert.run(folder / "source", out, project=project, workers=1, gzip_level=1)
    lines = defaultdict(list)
    for text in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        lines[line["series_uid"]].append(line)
    return [found for uid, case in cases.items() if (found := judge(lines[uid], out, *case))]


def test_every_fault_is_named(tmp_path: Path, project: Path) -> None:
    assert len(FAULTS) >= 30
    assert not faulty(tmp_path, project, len(FAULTS) * 10 // 9 + 2, seed=1)


@pytest.mark.slow
def test_a_thousand_exports(tmp_path: Path, project: Path) -> None:
    seed = int(np.random.default_rng().integers(10**6))
    assert not faulty(tmp_path, project, 1000, seed), f"seed {seed}"
