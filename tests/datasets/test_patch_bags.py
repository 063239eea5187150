"""patch_bags: which pixels a patch holds, one bag a picture, nothing written twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from safetensors.numpy import load_file

from medplat.errors import DataError
from medplat_datasets import patch_bags


@pytest.fixture
def config(tmp_path: Path) -> patch_bags.Config:
    rng = np.random.default_rng(0)
    lines = ["file,class,copy_of"]
    for number in range(3):
        Pillow.fromarray(rng.integers(0, 256, (36, 41, 3)).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        lines.append(f"{number}.png,{'ab'[number % 2]},x{number // 2}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return patch_bags.Config(
        file=tmp_path / "table.csv",
        images={"bag": "file"},
        case_column=None,
        patient_column="copy_of",
        target_column="class",
        bags=tmp_path / "bags",
    )


def test_a_bag_for_each_picture(config: patch_bags.Config) -> None:
    found = patch_bags.cases(config)
    assert [(case.case, case.patient, case.target) for case in found] == [
        ("0", "x0", "a"),
        ("1", "x0", "b"),
        ("2", "x1", "a"),
    ]
    for case in found:
        features = load_file(case.images["bag"].path)["features"]
        assert features.shape == (16, patch_bags.FEATURES)
        assert np.isfinite(features).all()
        assert features.std(0).max() > 0
    path = found[0].images["bag"].path
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert patch_bags.cases(config) == found
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    patch_bags.cases(config)
    assert path.read_bytes() == before[1]


def test_patches_go_from_left_to_right(config: patch_bags.Config) -> None:
    case = patch_bags.table.cases(config)[0]
    patches = patch_bags._patches(case, config).numpy()
    with Pillow.open(case.images["bag"].path) as opened:
        pixels = np.asarray(opened)
    assert patches.shape == (16, 3, 9, 10)
    wanted = pixels[9:18, 20:30].transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(patches[4 + 2], wanted, atol=1e-6)


def test_other_settings_and_other_folders_are_refused(config: patch_bags.Config) -> None:
    patch_bags.cases(config)
    with pytest.raises(DataError, match="bags of other settings"):
        patch_bags.cases(config.model_copy(update={"side": 2}))
    with pytest.raises(DataError, match="not empty and holds no bags"):
        patch_bags.cases(config.model_copy(update={"bags": config.file.parent}))
    small = config.model_copy(update={"side": 5, "bags": config.file.parent / "more"})
    with pytest.raises(DataError, match="case 0: the picture is too small for 5 patches"):
        patch_bags.cases(small)
