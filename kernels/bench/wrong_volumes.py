"""Which converter is right, refuses, or is silently wrong: the same damaged and regular series.

Damaged series come from the generator of the tests (`tests/dicom/fault_exports.py`), which writes
them with pydicom alone and knows the truth. Real series are those of `../shared/realdata/dicom`
that an oracle beside it, in float64 from the headers, finds regular. A volume is right when it
holds the truth's values at the truth's places, whatever the order of its axes; a wrong one counts
as told when the converter printed any warning or error at all.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import nibabel as nib
import numpy as np
from converters import CONVERTERS, Answer, Array, convert
from nibabel import orientations

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "dicom"))
import fault_exports  # noqa: E402
import regular_series  # noqa: E402

N_GENERATED = 300
COLUMNS = ("right", "refused", "wrong, told", "wrong, silent")


def same(array: Array, affine: Array, truth: Array, place: Array) -> bool:
    """Whether two 3-D volumes agree in the world: affine within 1e-2, values within 1e-4."""
    if array.size != truth.size or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return False
    turn = orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(place))
    turned = orientations.apply_orientation(array, turn)
    moved = affine @ orientations.inv_ornt_aff(turn, array.shape)
    scale = max(1.0, float(np.abs(truth).max()))
    return (
        turned.shape == truth.shape
        and bool(np.allclose(moved, place, atol=1e-2))
        and bool(np.abs(turned - truth).max() <= 1e-4 * scale)
    )


def right(answer: Answer, truth: Array, affine: Array) -> bool:
    """All phases and nothing else: as one 4-D volume in time order, or a 3-D volume a phase."""
    phases = truth.shape[-1]
    if not all(np.isfinite(place).all() for _, place in answer.volumes):
        return False
    found = [
        (array.reshape(*array.shape[:3], -1)[..., t], place)
        for array, place in answer.volumes
        for t in range(array[0, 0, 0].size if array.ndim > 3 else 1)
    ]
    if len(found) != phases:
        return False
    ordered = len(answer.volumes) == 1
    left = list(range(phases))
    for t, (array, place) in enumerate(found):
        fits = [
            other for other in ([t] if ordered else left)
            if same(array, place, truth[..., other], affine)
        ]  # fmt: skip
        if not fits:
            return False
        left.remove(fits[0])
    return True


def verdict(answer: Answer, truth: Array, affine: Array) -> str:
    """One of `COLUMNS`."""
    if not answer.volumes:
        return "refused"
    if right(answer, truth, affine):
        return "right"
    return "wrong, told" if answer.told else "wrong, silent"


def generated(n: int = N_GENERATED, seed: int = 0) -> dict[str, dict[str, Counter[str]]]:
    """Verdicts over generated series: kind ("regular" or "damaged") to converter to counts."""
    counts = {
        kind: {name: Counter[str]() for name in CONVERTERS} for kind in ("regular", "damaged")
    }
    with tempfile.TemporaryDirectory() as place:
        for number, fault, export in fault_exports.exports(n, seed):
            folder = Path(place) / str(number)
            export.write(folder, np.random.default_rng(number))
            for name in CONVERTERS:
                found = verdict(convert(name, folder), export.truth, export.affine)
                counts["damaged" if fault else "regular"][name][found] += 1
    return counts


def real(root: Path) -> dict[str, Counter[str]]:
    """Verdicts over the real series that the oracle finds regular."""
    counts = {name: Counter[str]() for name in CONVERTERS}
    with tempfile.TemporaryDirectory() as place:
        for number, series in enumerate(regular_series.find(root)):
            folder = series.link(Path(place) / str(number))
            for name in CONVERTERS:
                counts[name][verdict(convert(name, folder), series.truth, series.affine)] += 1
    return counts


def _table(title: str, counts: dict[str, Counter[str]]) -> list[str]:
    total = sum(next(iter(counts.values())).values())
    lines = [f"{title} (n = {total})", f"{'':22s}" + "".join(f"{one:>15s}" for one in COLUMNS)]
    for name, found in counts.items():
        lines.append(f"{name:22s}" + "".join(f"{found[one]:15d}" for one in COLUMNS))
    return lines


def main() -> str:
    """The tables; also written as JSON."""
    logging.disable(logging.CRITICAL)
    tables: dict[str, Any] = {f"generated, {kind}": found for kind, found in generated().items()}
    root = HERE.parents[2] / "shared" / "realdata" / "dicom"
    if root.is_dir():
        tables["real, regular by the oracle"] = real(root)
    text = "\n\n".join("\n".join(_table(title, found)) for title, found in tables.items())
    (harness.RESULTS / "wrong_volumes.json").write_text(
        json.dumps(tables, indent=1) + "\n", encoding="utf-8"
    )
    return text if root.is_dir() else f"{text}\n\nreal data not found at {root}"
