"""`medplat demo`: the folder it takes, and (slow) the whole loop behind a wall without network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medplat import nifti
from medplat.commands import demo
from medplat.errors import UsageError
from medplat.types import Geometry, Volume
from medplat_datasets import phantom

WALL = """
import socket

def refuse(*words, **more):
    raise OSError("a test forbids the network")

def local(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")

connect = socket.socket.connect
socket.socket.connect = lambda self, to: connect(self, to) if local(to) else refuse()
lookup = socket.getaddrinfo
socket.getaddrinfo = lambda host, *m, **k: lookup(host, *m, **k) if local((host,)) else refuse()
"""


def test_takes_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        demo._fresh(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_done_again_removes_only_its_own_parts(tmp_path: Path) -> None:
    out = demo._fresh(tmp_path / "new")
    for name in ("export", "results", "mine"):
        (out / name).mkdir()
    demo._fresh(out)
    assert sorted(path.name for path in out.iterdir()) == [demo.MARK, "mine"]


def test_truth_is_compared_voxel_by_voxel(tmp_path: Path) -> None:
    geometry = Geometry(np.diag([1.0, 2.0, 3.0, 1.0]), (3, 4, 2))
    array = np.arange(48, dtype=np.uint16).reshape(3, 4, 2, 2)
    lesion = (array[..., 0] > 9).astype(np.uint8)
    volume = Volume(array, geometry, phase_times_s=(0.0, 60.0))
    study = phantom.Study("id", "1.2", 0, False, "1.2.3", volume, lesion)
    nifti.write(volume, tmp_path / "c" / "a.nii.gz")
    nifti.write_json(tmp_path / "c" / "a.json", {"phase_times_s": [0.0, 60.0]})
    nifti.write(Volume(lesion, geometry), tmp_path / "c" / "a_label.nii.gz")
    line = {"outputs": [{"path": "c/a.nii.gz"}]}
    assert demo._is_true(tmp_path, line, study)
    assert not demo._is_true(tmp_path, None, study)
    assert not demo._is_true(tmp_path, {"outputs": []}, study)
    nifti.write(Volume(lesion[::-1], geometry), tmp_path / "c" / "a_label.nii.gz")
    assert not demo._is_true(tmp_path, line, study)


def test_dice() -> None:
    mask, truth = np.array([0, 2, 2, 0]), np.array([0, 1, 0, 1])
    assert demo._dice(mask, truth) == pytest.approx(2 / 4)
    assert demo._dice(np.zeros(3), np.zeros(3)) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loop_without_network(tmp_path: Path) -> None:
    (tmp_path / "wall").mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(WALL, encoding="utf-8")
    dead = "http://127.0.0.1:9"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "wall")}
    env |= {"HTTP_PROXY": dead, "HTTPS_PROXY": dead, "http_proxy": dead, "https_proxy": dead}
    env.pop("MLFLOW_TRACKING_URI", None)
    program = str(Path(sys.executable).with_name("medplat"))
    command = [program, "demo", "--out", "demo-out", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=850
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    assert said["unexpected"] == []
    assert said["n"] == demo.NEW["patients"]
    assert "synthetic" in done.stderr
    out = tmp_path / "demo-out"
    for page in ("nifti/report.html", "results/report.html"):
        assert (out / page).stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
