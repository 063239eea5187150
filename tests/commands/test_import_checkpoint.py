"""`medplat import-checkpoint`: what fits is registered and runs, what does not is named whole."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medplat.commands import import_checkpoint
from medplat.errors import ModelError, UsageError
from medplat.models import unet
from medplat.track import model_folder, registry, store, weights_file

TINY_3D = unet.CARD.counts[2]
WORKFLOW = """
kind: train
inputs: [{name: t1, modality: MR}]
dataset: {name: folder, root: data}
task:
  kind: segment
  spatial_dims: 2
  labels: [{name: lesion, value: 7}]
model: {name: unet, channels: [4, 8], residual_units: 0}
"""


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return unet.build(unet.Config.model_validate(dict(TINY_3D.options)), TINY_3D.task)


@pytest.mark.parametrize("wrap", ["bare", "lightning", "nnunet", "parallel", "safetensors"])
def test_weights_are_found_wherever_programs_keep_them(
    tmp_path: Path, network: torch.nn.Module, wrap: str
) -> None:
    state = network.state_dict()
    path = tmp_path / "weights.pth"
    if wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file({name: one.clone() for name, one in state.items()}, str(path))
    else:
        held: dict[str, Any] = {
            "bare": state,
            "lightning": {"epoch": 3, "state_dict": state},
            "nnunet": {
                "network_weights": state,
                "logging": {"dice": [np.float64(0.5)], "curve": np.zeros(3, np.float32)},
            },
            "parallel": {"model": {f"module.{name}": one for name, one in state.items()}},
        }
        torch.save(held[wrap], path)
    found = weights_file.read(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_published_configuration_is_found_and_runs(
    project: Path, tmp_path: Path, network: torch.nn.Module
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    outcome = import_checkpoint.run(
        "unet", path, licence="CC-BY-4.0", source="a colleague", alias="theirs", project=project
    )
    summary = outcome.summary
    assert outcome.exit_code == 0
    assert summary["model_uri"] == "models:/unet/1"
    assert summary["parameters"] == TINY_3D.parameters
    assert summary["sha256"] == model_folder.file_sha256(path)
    json.dumps(summary)
    fetched = registry.fetch("models:/unet@theirs", project)
    model = model_folder.read(fetched.folder)
    assert model.card["imported"] == {
        "file_sha256": summary["sha256"],
        "licence": "CC-BY-4.0",
        "source": "a colleague",
    }
    x = torch.randn(1, 1, 9, 8, 5)
    with torch.no_grad():
        assert torch.equal(model.network(x), network.eval()(x))
    run = store.open_store(project).client.get_run(summary["run_id"])
    assert run.data.tags["medplat.kind"] == "import"
    assert run.data.tags["medplat.licence"] == "CC-BY-4.0"
    assert run.info.status == "FINISHED"


def test_another_configuration_by_its_workflow(project: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(WORKFLOW)
    config = unet.Config(channels=(4, 8), residual_units=0)
    theirs = unet.build(config, unet.Task("segment", 2, 1, 2))
    torch.save(theirs.state_dict(), tmp_path / "own.pt")
    with pytest.raises(ModelError, match="in any published configuration"):
        import_checkpoint.run("unet", tmp_path / "own.pt", project=project)
    outcome = import_checkpoint.run(
        "unet", tmp_path / "own.pt", workflow=tmp_path / "own.yaml", project=project
    )
    folder = registry.fetch(outcome.summary["model_uri"], project).folder
    stored = model_folder.read(folder).workflow
    assert stored.inputs[0].name == "t1"
    assert stored.dataset.options["root"] == "not-stored"
    with pytest.raises(UsageError, match=r"model\.name is unet"):
        import_checkpoint.run(
            "wau_unet", tmp_path / "own.pt", workflow=tmp_path / "own.yaml", project=project
        )


def test_what_does_not_fit_is_named_and_nothing_is_registered(
    project: Path, tmp_path: Path, network: torch.nn.Module
) -> None:
    state = dict(network.state_dict())
    names = sorted(state)
    lost = state.pop(names[0])
    state["head.of.another"] = lost
    state[names[1]] = state[names[1]].unsqueeze(0)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ModelError) as caught:
        import_checkpoint.run("unet", tmp_path / "odd.pt", project=project)
    text = str(caught.value)
    assert "3 names or shapes" in text
    assert f"1 missing in the file: {names[0]}\n" in text
    assert "1 unknown to the network: head.of.another\n" in text
    assert f"1 of another shape: {names[1]}: [1, " in text
    assert f"{len(names) - 2} fit; nothing was imported" in text
    assert registry.list_models(project) == []


def test_a_plugin_may_rename_and_leave_out(
    project: Path,
    tmp_path: Path,
    network: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def import_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix("theirs."): one for name, one in state.items() if name != "theirs.ema"
        }

    monkeypatch.setattr(unet, "import_keys", import_keys, raising=False)
    state = {f"theirs.{name}": one for name, one in network.state_dict().items()}
    torch.save(state | {"theirs.ema": torch.zeros(3)}, tmp_path / "theirs.pt")
    outcome = import_checkpoint.run("unet", tmp_path / "theirs.pt", project=project)
    assert outcome.summary["matched"] == len(network.state_dict())
    assert outcome.summary["renamed"] == len(network.state_dict()) + 1


class Opener:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_hostile_and_broken_files_are_refused_and_run_nothing(
    tmp_path: Path, network: torch.nn.Module
) -> None:
    path, trace = tmp_path / "file.pt", tmp_path / "trace"
    for held, sentence in (
        ({"state_dict": network.state_dict(), "x": Opener(trace)}, "holds more than weights"),
        ({"model": network.state_dict(), "args": Namespace(lr=1)}, r"argparse\.Namespace"),
        (network, "holds more than weights"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.zeros(1)], "holds no state dict"),
    ):
        torch.save(held, path)
        with pytest.raises(ModelError, match=sentence):
            weights_file.read(path)
    assert not trace.exists()
    torch.save(network.state_dict(), path)
    whole = path.read_bytes()
    for text in (b"", b"hello world", whole[: len(whole) // 2], b"\x80\x02." + whole):
        path.write_bytes(text)
        with pytest.raises(ModelError, match=r"not a whole torch file|holds"):
            weights_file.read(path)
    damaged = tmp_path / "file.safetensors"
    shutil.copy(path, damaged)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        weights_file.read(damaged)
