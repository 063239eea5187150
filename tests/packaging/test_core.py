"""The core alone, from the wheel in an empty environment: it converts, and says what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = "Scripts" if os.name == "nt" else "bin"
DEAD = "http://127.0.0.1:9"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WRITE = """
from pathlib import Path
from medplat_datasets import phantom
phantom.write_selection_study(Path("export"))
"""


@dataclass(frozen=True)
class Core:
    """An environment with the core, and a current folder outside the repository."""

    programs: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def core(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    root = tmp_path_factory.mktemp("core")
    venv.create(root / "venv", with_pip=True)
    programs = root / "venv" / BIN
    [wheel] = built.glob("*.whl")
    command = [str(programs / "python"), "-m", "pip", "install", "-q"]
    command += ["-c", str(ROOT / "constraints.txt"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (root / "work").mkdir()
    yield Core(programs, root / "work")
    shutil.rmtree(root / "venv", ignore_errors=True)


def test_the_core_brings_no_deep_learning(core: Core) -> None:
    listed = core.run("python", "-m", "pip", "list", "--format", "json")
    names = {one["name"].lower() for one in json.loads(listed.stdout)}
    assert names & {"torch", "monai", "lightning", "mlflow", "scikit-learn", "numba"} == set()
    assert {"medplat", "pydicom", "highdicom"} <= names


def test_the_core_converts(core: Core) -> None:
    written = core.run("python", "-c", WRITE)
    assert written.returncode == 0, written.stderr[-2000:]
    done = core.run("medplat", "convert", "export", "nifti", "--json")
    assert done.returncode in (0, 3), done.stderr[-2000:]
    counts = json.loads(done.stdout)["counts"]
    assert counts["converted"] + counts["warned"] >= 3
    images = sorted((core.folder / "nifti").rglob("*.nii.gz"))
    assert len(images) >= 3
    assert all(min(nibabel.load(path).shape) > 1 for path in images)
    assert (core.folder / "nifti" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    "command",
    [
        ("train", "WORKFLOW"),
        ("infer", "-m", "models:/any@candidate", "-i", "export", "-o", "out"),
        ("list", "models", "--json"),
        ("ui",),
    ],
)
def test_what_needs_more_says_how_to_get_it(core: Core, command: tuple[str, ...]) -> None:
    (core.folder / "export").mkdir(exist_ok=True)
    workflow = str(ROOT / "workflows" / "train" / "unet_phantom.yaml")
    words = [workflow if one == "WORKFLOW" else one for one in command]
    done = core.run("medplat", *words)
    if command[0] == "list":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert "pip install 'medplat[ml]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workflow_is_checked_without_torch(core: Core) -> None:
    workflow = str(ROOT / "workflows" / "train" / "unet_phantom.yaml")
    done = core.run("medplat", "check", workflow)
    assert done.returncode == 0, done.stderr
    assert "not checked" in done.stderr + done.stdout


def test_shipped_workflows_are_found_by_name(core: Core) -> None:
    listed = core.run("medplat", "list", "workflows", "--json")
    assert "train/unet_phantom" in listed.stdout, listed.stderr
    shown = core.run("medplat", "show", "train/unet_phantom")
    assert shown.returncode == 0, shown.stderr
    assert "kind: train" in shown.stdout
    copied = core.run("medplat", "copy", "train/unet_phantom", "mine.yaml")
    assert copied.returncode == 0, copied.stderr
    assert (core.folder / "mine.yaml").is_file()


def test_the_doctor_says_what_is_missing(core: Core) -> None:
    done = core.run("medplat", "doctor")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout + done.stderr
