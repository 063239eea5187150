"""MONAI transforms between reading and writing, against the same transforms in a MONAI pipeline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "dicom"))
sys.path.insert(0, str(Path(__file__).parent.parent / "datasets"))
import breastdcedl_exports as cohorts
import regular_exports as regular

from medplat.commands import convert

monai = pytest.importorskip("monai.transforms")

FLOW = """kind: convert
transforms:
  - Orientationd: {keys: [image, label], axcodes: RAS}
  - Spacingd: {keys: [image, label], pixdim: [1.5, 1.5, 3.0], mode: [bilinear, nearest]}
  - CenterSpatialCropd: {keys: [image, label], roi_size: [8, 7, 5]}
"""


def run(source: Path, project: Path, flow: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Convert with a workflow; the manifest line, the image and its sidecar."""
    path = project / "flow.yaml"
    path.write_text(flow)
    out = project.parent / "out"
    convert.run(source, out, project=project, workflow=path, workers=1)
    (text,) = (out / "manifest.jsonl").read_text().splitlines()
    line = json.loads(text)
    if not line["outputs"]:
        return line, None, {}
    image = nib.load(out / line["outputs"][0]["path"])
    sidecar = (out / line["outputs"][0]["path"]).with_suffix("").with_suffix(".json")
    return line, image, json.loads(sidecar.read_text())


@pytest.mark.filterwarnings("ignore:NvImgCodec")
@pytest.mark.parametrize("phases", [1, 3])
def test_the_same_as_in_a_monai_pipeline(tmp_path: Path, project: Path, phases: int) -> None:
    from medplat.dicom.monai_reader import DicomSeriesReader

    rng = np.random.default_rng(phases)
    source = tmp_path / "export"
    regular.make(rng, phases=phases).write(source, rng)
    line, image, sidecar = run(source, project, FLOW)
    assert line["status"] == "converted"
    keys = ["image"]
    pipeline = monai.Compose([
        monai.LoadImaged(keys, reader=DicomSeriesReader()),
        monai.EnsureChannelFirstd(keys),
        monai.Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        monai.Spacingd(keys, pixdim=(1.5, 1.5, 3.0)),
        monai.CenterSpatialCropd(keys, roi_size=(8, 7, 5)),
    ])  # fmt: skip
    wanted = pipeline({"image": str(source)})["image"]
    expected = np.moveaxis(wanted.numpy(), 0, -1)[..., 0 if phases == 1 else slice(None)]
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(image.dataobj), expected, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(image.affine, wanted.affine.numpy(), atol=1e-4)
    assert sidecar["spacing_mm"] == pytest.approx([1.5, 1.5, 3.0], abs=1e-4)
    assert sidecar["shape"][:3] == list(expected.shape[:3])
    assert sidecar["phase_times_s"] == line["phase_times_s"]
    assert sidecar["made_by"]["options"]["transforms"][0] == {
        "Orientationd": {"keys": ["image", "label"], "axcodes": "RAS"}
    }


def test_moved_voxels_stay_the_stored_integers(tmp_path: Path, project: Path) -> None:
    rng = np.random.default_rng(11)
    made = regular.make(rng)
    made.write(tmp_path / "export", rng)
    flow = (
        "kind: convert\ntransforms:\n  - Orientationd: {keys: [image], axcodes: RAS}\n"
        "  - SpatialCropd: {keys: [image], roi_start: [1, 2, 0], roi_end: [7, 8, 9]}\n"
    )
    _, image, sidecar = run(tmp_path / "export", project, flow)
    assert image.get_data_dtype() == np.uint16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    reference = nib.as_closest_canonical(nib.Nifti1Image(made.truth[..., 0], made.affine))
    cut = reference.slicer[1:7, 2:8, 0:9]
    np.testing.assert_array_equal(image.get_fdata(), cut.get_fdata())
    np.testing.assert_allclose(image.affine, cut.affine, atol=1e-4)
    assert sidecar["rescale"]["intercept"] in (0.0, -1024.0)


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ("  - Spacingd: {keys: [image, label], pixdim: [0.9, 0.9, 1.1]}\n", "mode: [bilinear, nea"),
        ("  - SpatialCropd: {keys: [image], roi_start: [90, 0, 0], roi_end: [99, 9, 9]}\n",
         "SpatialCropd leaves no voxel"),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_refused_by_name(
    tmp_path: Path, project: Path, flow: str, said: str
) -> None:
    study = cohorts.ispy1()
    mask = np.zeros((16, 16, 6), bool)
    mask[3:8, 5:9, 1:4] = True
    study.images.append(cohorts.segmentation(study, mask))
    source = study.write(tmp_path / "export")
    line, image, _ = run(source, project, "kind: convert\ntransforms:\n" + flow)
    assert line["codes"][-1] == "TRANSFORM_FAILED", line["messages"]
    assert said in line["messages"][-1]
    assert image is None
