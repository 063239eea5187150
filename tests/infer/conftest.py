"""A model that finds bright voxels and, on marked cases, fails in a way of its own choosing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLUGIN = '''
"""Bright voxels are the lesion; a voxel of 9001 raises, 9002 sleeps, 9003 kills the process."""
import os, signal, time
import torch
from pydantic import BaseModel, ConfigDict, Field
from medplat.types import Card

CARD = Card(title="trouble", paper="none", fidelity="inspired", why="a test",
            upstream_licence="none", counts=(), kinds=("segment",), spatial_dims=(2, 3))

class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    diary: str = Field("", description="A file that gets a line for each load and each case.")

TINY = Config()
TWIN = None

class Net(torch.nn.Module):
    def __init__(self, diary, channels):
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(500.0))
        self.channels = channels
        self.diary = diary
        self.note("load")

    def note(self, text):
        if self.diary:
            with open(self.diary, "a") as file:
                file.write(text + "\\n")

    def forward(self, x):
        marks = {int(one) for one in (9001, 9002, 9003) if (x == one).any()}
        if float(x.max()) > 0:
            self.note("case")
        if 9001 in marks:
            raise ValueError("a voxel of 9001")
        if 9002 in marks:
            time.sleep(600)
        if 9003 in marks:
            os.kill(os.getpid(), signal.SIGKILL)
        if "SLOW_CASES" in os.environ:
            time.sleep(float(os.environ["SLOW_CASES"]))
        bright = (x[:, :1] - self.threshold) / 100
        return torch.cat([-bright, bright], 1)

def build(config, task):
    return Net(config.diary, task.in_channels)
'''


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the plugin for this process and for those it starts; returns its folder."""
    folder = tmp_path / "site"
    info = folder / "trouble-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "trouble_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medplat.models]\ntrouble = trouble_plugin\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.delitem(sys.modules, "trouble_plugin", raising=False)
    return folder


def workflow_text(
    diary: Path | str = "", inputs: str = "", transforms: str = "", dims: int = 3, window: int = 16
) -> str:
    return f"""
kind: train
{inputs or "inputs: [{name: image}]"}
dataset: {{name: folder, root: nowhere}}
{transforms}
task:
  kind: segment
  spatial_dims: {dims}
  labels: [{{name: lesion, value: 3, code: {{value: '52988006', meaning: Lesion}}}}]
model: {{name: trouble, diary: '{diary}'}}
train: {{patch_size: {[window, window, 8][:dims]}}}
infer: {{batch_size: 2}}
"""


@pytest.fixture
def make_model(trouble: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder of the plugin, as training would."""

    def make(**options: Any) -> Path:
        from medplat import registry, tasks
        from medplat.track import model_folder
        from medplat.workflow import read
        from medplat.workflow.schema import TrainWorkflow

        flow = read.read_text(workflow_text(**options), "test.yaml", kind="train", plugins=False)
        assert isinstance(flow, TrainWorkflow)
        plugin = registry.model("trouble")
        config = plugin.Config(**flow.model.options)
        folder = tmp_path / "model"
        model_folder.write(folder, plugin.build(config, tasks.task_of(flow)), flow, plugin.CARD)
        return folder

    return make


@pytest.fixture
def write_study() -> Callable[..., list[Path]]:
    """Writes one MR series of a study as DICOM; a box of 900 is what the model finds."""

    def write(
        folder: Path,
        study: int,
        *,
        series: int = 1,
        mark: int | None = None,
        shape: tuple[int, int, int] = (18, 14, 6),
        **headers: Any,
    ) -> list[Path]:
        from medplat.dicom.write import uid, write_series
        from medplat.types import Geometry, Volume

        array = np.random.default_rng([study, series]).integers(0, 200, shape).astype(np.int16)
        array[4:9, 3 : 6 + study % 3, 2:4] = 900
        if mark is not None:
            array[0, 0, 0] = mark
        affine = np.diag([-1.2, -0.9, 3.0, 1.0])
        affine[:3, 3] = (11, 8, -20)
        study_uid = uid("study", study)
        common = {
            "Modality": "MR",
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": uid(study_uid, series),
            "SeriesNumber": series,
            "SeriesDescription": "T1",
            "PatientID": f"P{study}",
            "PatientName": f"Secret^Name{study}",
            "StudyDate": "20200101",
            "StudyTime": "101010",
        }
        paths = write_series(
            Volume(array, Geometry(affine, shape)),
            folder / f"study{study}" / f"series{series}",
            common | headers,
        )
        return [path for phase in paths for path in phase]

    return write
