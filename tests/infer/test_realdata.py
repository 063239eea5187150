"""A real CT in, a SEG out, and its voxels at the same place in the world."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import real_ct

from medplat import nifti, pseudonym, registry, transforms
from medplat.commands import infer_overlay
from medplat.infer import batch, case, sources
from medplat.infer.jobs import ModelName
from medplat.infer.worker import Setup
from medplat.manifest import CASE_KEY, Manifest
from medplat.track import model_folder

pytestmark = pytest.mark.slow


def predict(folder: Path, source: Path, project: Path, kind: Any) -> tuple[Path, case.Result]:
    """One case in this process."""
    loaded = model_folder.read(folder)
    name = ModelName("bone", "1", loaded.weights_sha256)
    setup = Setup(
        folder, name, loaded.workflow.inputs, kind, True, 1, model_folder.read, infer_overlay.draw
    )
    work = batch.Batch(setup, project / kind, Manifest(project / "m", CASE_KEY), "w", 60.0)
    (study,) = sources.find(source, setup.inputs, pseudonym.load(project)).studies
    job = batch.with_digests(work, batch.choose(work, study))
    multiple = registry.model("trouble").CARD.multiple
    compose = transforms.compose(())
    model = case.Model(loaded, compose, name, "cpu", multiple, kind, infer_overlay.draw)
    return job.folder, case.run(job, case.read(job, setup.inputs), model)


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_real_ct_and_back(
    kind: str, realdata: Path, make_model: Callable[..., Path], project: Path, tmp_path: Path
) -> None:
    images = real_ct.with_uids(realdata / "dicom" / "totalseg_ct", tmp_path / "ct")
    folder, result = predict(make_model(window=256), tmp_path / "ct", project, kind)
    assert result.status == "done", result.message
    truth = []
    for one in images:
        hu = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
        truth.append(real_ct.points(one, hu > 500, one.ImagePositionPatient))
    there = np.vstack(truth)
    assert len(there) > 1000
    here = real_ct.seg_points(folder / "seg.dcm")
    assert len(here) == len(there)
    assert np.abs(here.mean(0) - there.mean(0)).max() < 0.01
    volume = nifti.read(folder / "seg.nii.gz")
    affine = volume.geometry.affine
    ras = (np.argwhere(volume.array == 3) @ affine[:3, :3].T + affine[:3, 3]).mean(0)
    assert np.abs(ras * (-1, -1, 1) - there.mean(0)).max() < 0.01
    tool = shutil.which("dciodvfy")
    if kind == "binary" and tool:
        done = subprocess.run([tool, str(folder / "seg.dcm")], capture_output=True, text=True)
        said = (done.stdout + done.stderr).splitlines()
        assert [line for line in said if line.startswith("Error")] == []


def test_real_ct_without_uids(
    realdata: Path, make_model: Callable[..., Path], project: Path
) -> None:
    source = realdata / "dicom" / "totalseg_ct"
    folder, result = predict(make_model(window=256), source, project, "labelmap")
    assert result.status == "done", result.message
    assert result.notes == ["seg.dcm is not written: study or series UID of the source is empty"]
    assert (folder / "seg.nii.gz").is_file()
    assert not (folder / "seg.dcm").exists()
    reference = nifti.read(
        realdata / "volumes" / "totalseg_examples" / "example_seg_dicom.nii.gz"
    ).geometry
    ours = nifti.read(folder / "seg.nii.gz").geometry
    corners = np.array([(x, y, z, 1) for x in (0, 511) for y in (0, 511) for z in (0, 19)], float)
    mine = (corners @ ours.affine.T)[:, :3]
    theirs = (corners @ reference.affine.T)[:, :3]
    far = [float(np.linalg.norm(theirs - one, axis=1).min()) for one in mine]
    assert max(far) < 1e-2
