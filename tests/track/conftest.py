"""A tracking store that is made once and copied, and a small model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medplat import registry
from medplat.tasks import task_of
from medplat.workflow import read as workflow_read
from medplat.workflow.schema import TrainWorkflow

torch = pytest.importorskip("torch")
pytest.importorskip("mlflow")

from medplat.track import model_folder, runs  # noqa: E402
from medplat.track.store import Store, open_store  # noqa: E402

WORKFLOW = """\
kind: train
dataset: {name: folder, root: data/here}
task:
  kind: segment
  labels: [{name: lesion, value: 1}]
model: {name: wau_unet, channels: [4, 8], up: linear}
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `.medplat` folder of a project whose store was opened once."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_store(folder)
    return folder / ".medplat"


@pytest.fixture
def store(project: Path, template: Path) -> Store:
    """An open store without runs, in the project that is the current folder."""
    shutil.copytree(template, project / ".medplat", dirs_exist_ok=True)
    return open_store(project)


@dataclass(frozen=True)
class Made:
    """A model folder, and what it was made from."""

    folder: Path
    network: torch.nn.Module
    workflow: TrainWorkflow
    sha256: str


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Made]:
    """A function that writes a model folder with weights of its own."""

    def make(name: str = "model", seed: int = 0) -> Made:
        torch.manual_seed(seed)
        workflow = workflow_read.read_text(WORKFLOW, "test.yaml", kind="train")
        assert isinstance(workflow, TrainWorkflow)
        module = registry.model("wau_unet")
        network = module.build(workflow_read.model_config(workflow), task_of(workflow))
        sha256 = model_folder.write(tmp_path / name, network, workflow, module.CARD)
        return Made(tmp_path / name, network, workflow, sha256)

    return make


@pytest.fixture
def begin(store: Store) -> Callable[..., runs.Run]:
    """A function that starts a run of the test workflow."""

    def start(digest: str = "d" * 64, kind: str = "train", text: str = WORKFLOW) -> runs.Run:
        return runs.start(store, experiment="tests", workflow_text=text, digest=digest, kind=kind)

    return start
