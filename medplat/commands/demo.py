"""`medplat demo`: the whole loop on synthetic studies, and whether it did what it had to do.

Export, convert, train, register, infer over the export of new patients. Each step is the `run` of
its own verb; what comes out is compared with the numbers that the studies were drawn from.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat import console, manifest, nifti, paths, pseudonym, registry
from medplat.commands import Outcome
from medplat.dicom import wheel
from medplat.errors import UsageError

if TYPE_CHECKING:
    from medplat.types import Array

MARK = ".medplat-demo"
MODEL = "models:/unet_phantom@candidate"
PARTS = ("export", "nifti", "new_export", "results")
TRAINING = {"patients": 8, "second_visits": 2, "seed": 0, "labels": True}
NEW = {"patients": 4, "second_visits": 0, "seed": 1, "labels": False, "real": False}
GOOD_DICE, GOOD_ML = 0.6, 0.5
REAL_GAP = "dicomdirtests/77654033/CT2/*"  # of the installed pydicom: a CT with 160 slices missing


@dataclass
class Checks:
    """What was expected, and what came."""

    failed: list[str] = field(default_factory=list)

    def expect(self, holds: bool, sentence: str) -> None:
        """Say the sentence; remember it where it does not hold."""
        console.say(f"   {'ok  ' if holds else 'FAIL'}  {sentence}")
        if not holds:
            self.failed.append(sentence)


def run(out: Path, *, project: Path) -> Outcome:
    """Run the loop in `out`, which becomes a project folder of its own.

    Args:
        out: Absent, empty, or of an earlier demo (which is then done anew).
        project: Where runs and models go, unless it is only the default: then `out`.

    Returns:
        Exit code 0 if exactly the expected things happened, else 1.

    Raises:
        UsageError: `out` holds something else.
    """
    begin = time.monotonic()
    out = _fresh(out.resolve())
    if project == paths.project():
        project = out
        paths.state(out)
    console.say("The studies of this demo are synthetic: drawn by a program, of no patient.")
    console.say("They show that the loop works; they say nothing about how well a model would do.")
    checks = Checks()
    studies = _convert(out, project, checks)
    trained = _train(out, project, checks)
    figures = _infer(out, project, checks) if trained else {}
    seconds = round(time.monotonic() - begin)
    summary = {
        "out": out,
        "seconds": seconds,
        "studies": len(studies),
        "run_id": trained.get("run_id"),
        "model": MODEL,
        "version": trained.get("version"),
        **figures,
        "unexpected": checks.failed,
        "exit_code": 1 if checks.failed else 0,
    }
    return Outcome(int(bool(checks.failed)), summary, _closing(out, project, checks, seconds))


def _fresh(out: Path) -> Path:
    """An empty folder for the demo; the parts of an earlier demo are removed, nothing else ever."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UsageError(f"{out} is not empty and no folder of a demo: name another one with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("made by medplat demo\n", encoding="utf-8")
    for part in PARTS:
        if (out / part).exists():
            shutil.rmtree(out / part)
    return out


def _write_export(folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    console.say(f"\nDrawing {settings['patients']} patients and a broken study: {folder}")
    studies: list[Any] = registry.dataset("phantom").write_export(folder, **settings)
    return studies


def _convert(out: Path, project: Path, checks: Checks) -> list[Any]:
    from medplat.commands import convert

    studies = _write_export(out / "export", TRAINING)
    _announce(1, f"medplat convert {out / 'export'} {out / 'nifti'}")
    outcome = convert.run(
        out / "export", out / "nifti", project=project, workers=min(2, os.cpu_count() or 1)
    )
    lines = {line["series_uid"]: line for line in manifest.read_all(out / "nifti")}
    _go_on(outcome)
    checks.expect(outcome.exit_code == 3, "exit code 3: something was refused, the rest went on")
    with (out / "nifti" / "files.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    named = {row["path"] for row in rows}
    found = {
        path.relative_to(out / "export").as_posix()
        for path in (out / "export").rglob("*")
        if path.is_file()
    }
    once = len(named) == len(rows) and found <= named
    checks.expect(once, f"{len(rows)} files, each exactly once in files.csv")
    broken = {study.dynamic_uid for study in studies if study.broken}
    refused = {uid for uid, line in lines.items() if line["status"] in ("rejected", "failed")}
    real = 1 if wheel.files(REAL_GAP) else 0
    checks.expect(
        broken <= refused and len(refused) == len(broken) + real,
        "refused: the study that lacks a slice"
        + (", and a real CT in the pydicom package that lacks many" if real else ""),
    )
    codes = {code for uid in broken & lines.keys() for code in lines[uid]["codes"]}
    checks.expect("MISSING_SLICE" in codes, f"with the code {', '.join(sorted(codes)) or 'none'}")
    whole = [study for study in studies if not study.broken]
    equal = [one for one in whole if _is_true(out / "nifti", lines.get(one.dynamic_uid), one)]
    checks.expect(
        len(equal) == len(whole),
        f"{len(equal)} of {len(whole)} dynamic series equal what was drawn: "
        "voxels, affine, phase times, lesion label",
    )
    return studies


def _is_true(folder: Path, line: Mapping[str, Any] | None, study: Any) -> bool:
    """Whether the converted series and its label are the drawn ones."""
    if line is None or not line["outputs"]:
        return False
    path = folder / line["outputs"][0]["path"]
    volume = nifti.read(path)
    truth = study.volume
    labels = sorted(path.parent.glob("*_label.nii.gz"))
    return (
        np.array_equal(volume.array, truth.array)
        and np.allclose(volume.geometry.affine, truth.geometry.affine, atol=1e-3)
        and np.allclose(volume.phase_times_s or (), truth.phase_times_s, atol=1e-3)
        and len(labels) == 1
        and np.array_equal(nifti.read(labels[0]).array, study.lesion)
    )


def _train(out: Path, project: Path, checks: Checks) -> dict[str, Any]:
    from medplat.commands import train

    workflow = paths.workflows() / "train" / "unet_phantom.yaml"
    root = json.dumps(str(out / "nifti"))
    _announce(2, f"medplat train {workflow} --set dataset.root={root}")
    outcome = train.run(workflow, (f"dataset.root={root}",), resume=False, project=project)
    _go_on(outcome)
    version = outcome.summary.get("version")
    good = outcome.exit_code == 0 and version is not None
    checks.expect(good, f"registered as unet_phantom, version {version}, alias candidate")
    return dict(outcome.summary) if good else {}


def _infer(out: Path, project: Path, checks: Checks) -> dict[str, Any]:
    from medplat.commands import infer

    studies = _write_export(out / "new_export", NEW)
    _announce(3, f"medplat infer -m {MODEL} -i {out / 'new_export'} -o {out / 'results'}")
    outcome = infer.run(MODEL, out / "new_export", out / "results", project=project)
    _go_on(outcome)
    checks.expect(outcome.exit_code == 3, "exit code 3: the broken study did not stop the others")
    case = pseudonym.load(project).case
    with (out / "results" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    for study in (one for one in studies if one.broken):
        row = rows.get(case(study.study_uid), {})
        sentence = f"the broken study is {row.get('status')}, {row.get('code')}"
        checks.expect(row.get("code") == "MISSING_INPUT", sentence)
    checks.expect(len(rows) == len(studies), f"{len(rows)} studies of {len(studies)} in the table")
    whole = [study for study in studies if not study.broken]
    return _judge(out / "results", [(case(one.study_uid), one) for one in whole], rows, checks)


def _judge(
    results: Path,
    studies: Sequence[tuple[str, Any]],
    rows: Mapping[str, Mapping[str, str]],
    checks: Checks,
) -> dict[str, Any]:
    """Compare masks and volumes with the truth of the new patients."""
    dices: list[float] = []
    errors: list[float] = []
    for case, study in studies:
        row = rows.get(case, {})
        folder = results / case
        if row.get("status") != "done" or not (folder / "seg.dcm").is_file():
            continue
        mask = nifti.read(folder / "seg.nii.gz")
        if not np.allclose(mask.geometry.affine, study.volume.geometry.affine, atol=1e-3):
            continue
        dices.append(_dice(mask.array, study.lesion))
        predicted = float(row["lesion_ml"])
        errors.append(abs(predicted - study.lesion_ml) / study.lesion_ml)
        console.say(
            f"         {case}: lesion {predicted:.1f} ml, drawn {study.lesion_ml:.1f} ml, "
            f"Dice {dices[-1]:.2f}"
        )
    checks.expect(len(dices) == len(studies), f"{len(dices)} of {len(studies)} new studies done")
    if not dices:
        return {"n": 0}
    dice, error = float(np.mean(dices)), float(np.median(errors))
    checks.expect(dice >= GOOD_DICE, f"mean Dice {dice:.2f} on n = {len(dices)} new patients")
    checks.expect(error <= GOOD_ML, f"median error of the lesion's volume {100 * error:.0f} %")
    return {"n": len(dices), "dice": dice, "dice_each": dices, "volume_error": error}


def _dice(mask: Array, truth: Array) -> float:
    total = int((mask > 0).sum()) + int((truth > 0).sum())
    return 2.0 * int(((mask > 0) & (truth > 0)).sum()) / total if total else 1.0


def _go_on(outcome: Outcome) -> None:
    """A verb that was interrupted ends the demo too."""
    if outcome.exit_code == 130:
        raise KeyboardInterrupt


def _announce(step: int, command: str) -> None:
    console.say(f"\nStep {step} of 3: {command}")


def _closing(out: Path, project: Path, checks: Checks, seconds: int) -> str:
    lines = [f"\nThe demo took {seconds} s. Everything in it is synthetic."]
    if checks.failed:
        lines += ["Unexpected:", *(f"  {sentence}" for sentence in checks.failed)]
    else:
        lines.append("Exactly the expected things happened.")
    lines += [
        "Where to look:",
        f"  {out / 'nifti' / 'report.html'}    every series, why it was taken or refused",
        f"  {out / 'results' / 'report.html'}    the new patients, with the lesions found",
        f"  medplat ui --project {project}    the training run and the registered model",
        "What is next: medplat convert YOUR_EXPORT nifti",
    ]
    return "\n".join(lines)
