"""A model as a folder: `weights.safetensors`, `workflow.yaml`, `card.json`; nothing that runs.

The network is rebuilt from the installed plugin and the stored workflow, and the weights are
checked before they are used. Every later release must read the folders of this one: `FORMAT` in the
card counts the changes, and `read_card` is the place to translate an older one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medplat import __version__, registry
from medplat.errors import MissingExtra, ModelError, PluginError, WorkflowError
from medplat.tasks import task_of
from medplat.track import privacy
from medplat.types import Card, Task
from medplat.workflow import read as workflow_read
from medplat.workflow import write as workflow_write
from medplat.workflow.schema import TrainWorkflow

if TYPE_CHECKING:
    import torch

FORMAT = 1
WEIGHTS, WORKFLOW, CARD = "weights.safetensors", "workflow.yaml", "card.json"
SHOWN_KEYS = 10


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to run, and what it must be fed.

    Attributes:
        network: In evaluation mode, on the device that was asked for.
        workflow: As it was trained; its data set's paths are not kept.
        task: What the network was built for.
        weights_sha256: Of the weights file.
        name: The plugin's name.
        card: The plugin's card at the time of training, and how the folder was made.
    """

    network: torch.nn.Module
    workflow: TrainWorkflow
    task: Task
    weights_sha256: str
    name: str
    card: dict[str, Any]


def write(
    folder: Path,
    network: torch.nn.Module,
    workflow: TrainWorkflow,
    card: Card,
    *,
    imported: Mapping[str, str] | None = None,
) -> str:
    """Write a model folder; an older one of the same name is replaced once the new one is whole.

    Args:
        folder: Where to.
        network: Its weights are written as they are, in their own types.
        workflow: The resolved train workflow; paths of the data set are left out.
        card: The plugin's card.
        imported: For weights that were not trained here: sha256 of the user's file, its licence
            and source.

    Returns:
        sha256 of the weights file.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _save_weights(network, part / WEIGHTS)
    sha256 = file_sha256(part / WEIGHTS)
    text = privacy.without_paths(workflow_write.dump(workflow))
    (part / WORKFLOW).write_text(text, encoding="utf-8")
    stored: dict[str, Any] = {
        "format": FORMAT,
        "plugin": workflow.model.name,
        "medplat_version": __version__,
        "weights_sha256": sha256,
        "parameters": sum(one.numel() for one in network.parameters()),
        "card": dataclasses.asdict(card),
    }
    if imported:
        stored["imported"] = dict(imported)
    (part / CARD).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return sha256


def read(folder: Path, device: str = "cpu") -> LoadedModel:
    """Rebuild a network from a model folder.

    Args:
        folder: The folder itself, or an MLflow model that holds it as `artifacts`.
        device: Where the network goes: "cpu", "cuda", "cuda:1" ...

    Raises:
        ModelError: The folder is not a model, was changed, or needs another plugin or release.
        MissingExtra: torch or safetensors is not installed.
    """
    folder = find(folder)
    card = read_card(folder)
    sha256 = file_sha256(folder / WEIGHTS)
    if sha256 != card["weights_sha256"]:
        raise ModelError(
            f"{folder / WEIGHTS}: the weights are not those that the card names (sha256 "
            f"{sha256[:12]}, not {card['weights_sha256'][:12]}); fetch the model again"
        )
    workflow = _read_workflow(folder)
    network = _build(folder, workflow)
    _load_weights(network, folder / WEIGHTS)
    return LoadedModel(
        network=network.to(device).eval(),
        workflow=workflow,
        task=task_of(workflow),
        weights_sha256=sha256,
        name=workflow.model.name,
        card=card,
    )


def find(folder: Path) -> Path:
    """The folder that holds the card: the one given, or `artifacts` in it.

    Raises:
        ModelError: There is none.
    """
    for place in (folder, folder / "artifacts", folder / "artifacts" / "artifacts"):
        if (place / CARD).is_file():
            return place
    raise ModelError(
        f"{folder}: not a model folder, it holds no {CARD}; give a folder that `medplat train` made"
    )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model folder.

    Raises:
        ModelError: The card cannot be read, or a newer release wrote it.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        stored, sha256, plugin = int(card["format"]), card["weights_sha256"], card["plugin"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: the card cannot be read ({type(error).__name__}: {error}); "
            "fetch the model again"
        ) from error
    if stored > FORMAT:
        raise ModelError(
            f"{path}: card format {stored} is newer than this medplat ({__version__}, format "
            f"{FORMAT}) can read; install a newer one"
        )
    if not isinstance(sha256, str) or not isinstance(plugin, str):
        raise ModelError(f"{path}: weights_sha256 and plugin must be text; fetch the model again")
    return cast(dict[str, Any], card)


def file_sha256(path: Path) -> str:
    """sha256 of a file, as hexadecimal text.

    Raises:
        ModelError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read; fetch the model again") from error


def _save_weights(network: torch.nn.Module, path: Path) -> None:
    save_file = _safetensors().save_file
    # Cloned, since safetensors refuses tensors that share memory (tied weights).
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, str(path), metadata={"format": "pt"})


def _read_workflow(folder: Path) -> TrainWorkflow:
    path = folder / WORKFLOW
    try:
        text = path.read_text(encoding="utf-8")
        workflow = workflow_read.read_text(text, str(path), kind="train")
    except (OSError, WorkflowError) as error:
        raise ModelError(f"{path}: the stored workflow cannot be read: {error}") from error
    return cast(TrainWorkflow, workflow)


def _build(folder: Path, workflow: TrainWorkflow) -> torch.nn.Module:
    try:
        module = registry.model(workflow.model.name)
        config = workflow_read.model_config(workflow)
    except (PluginError, WorkflowError) as error:
        raise ModelError(
            f"{folder}: the plugins of this installation cannot rebuild the network: {error}"
        ) from error
    return cast("torch.nn.Module", module.build(config, task_of(workflow)))


def _load_weights(network: torch.nn.Module, path: Path) -> None:
    """Compare the names and shapes of the file's header with the network's, then load."""
    safetensors = _safetensors()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        stored = _stored_shapes(path)
    except Exception as error:
        raise ModelError(
            f"{path}: not a safetensors file ({type(error).__name__}); fetch the model again"
        ) from error
    wrong = [
        f"{name} {stored.get(name, 'absent')} for {expected.get(name, 'absent')}"
        for name in sorted(expected.keys() | stored.keys())
        if expected.get(name) != stored.get(name)
    ]
    if wrong:
        raise ModelError(
            f"{path}: the weights do not fit the network, {len(wrong)} names or shapes differ "
            f"(file for network): {', '.join(wrong[:SHOWN_KEYS])}"
        )
    network.load_state_dict(safetensors.load_file(str(path)), strict=True)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _safetensors() -> Any:
    try:
        import safetensors.torch as module
    except ModuleNotFoundError as error:
        raise MissingExtra("A model folder", error.name or "safetensors") from error
    return module
