"""`medplat import-checkpoint`: a user's weights, checked name by name, into the model registry.

A plugin may export `import_keys(state) -> state`, which turns the names of its authors' files into
its own. What then differs from the network by name or shape is listed whole, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from medplat import console, paths, registry, tasks
from medplat.commands import Outcome
from medplat.errors import MissingExtra, ModelError, UsageError
from medplat.types import Card, Task
from medplat.workflow import read as workflow_read
from medplat.workflow import write as workflow_write
from medplat.workflow.schema import TrainWorkflow

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 10


@dataclass(frozen=True)
class Fit:
    """How the names and shapes of a file compare with those of a network.

    Attributes:
        matched: Tensors that fit.
        missing: Names that the network has and the file has not.
        extra: Names that the file has and the network has not.
        wrong_shape: "name: shape in the file, shape in the network".
    """

    matched: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    @property
    def differences(self) -> int:
        """How many names or shapes do not fit."""
        return len(self.missing) + len(self.extra) + len(self.wrong_shape)


def run(
    plugin: str,
    file: Path,
    *,
    workflow: Path | None = None,
    settings: Sequence[str] = (),
    register: str | None = None,
    alias: str | None = None,
    licence: str = "not stated",
    source: str = "not stated",
    project: Path | None = None,
) -> Outcome:
    """Bring a user's weights into the registry as a new version of a model.

    Args:
        plugin: The model plugin that they belong to.
        file: `.safetensors`, or what `torch.save` wrote; read without running anything in it.
        workflow: A train workflow whose inputs, transforms, task and model the weights were made
            for. None: the published configuration of the plugin's card that fits, with inputs and
            labels named by number.
        settings: `key.path=value` overrides of the workflow.
        register: Registered name; None: the plugin's.
        alias: Alias of the new version.
        licence: Of the weights, as their authors state it.
        source: Where the file came from.
        project: Project folder.

    Returns:
        Exit code 0 and {run_id, model_uri, version, sha256, licence, matched, renamed, ...}.

    Raises:
        ModelError: The file cannot be read safely, or its names and shapes are not the network's.
        UsageError: The workflow is of another plugin.
    """
    project = project or paths.project()
    module = registry.model(plugin)
    if settings and workflow is None:
        raise UsageError("--set changes a workflow: give one by --workflow FILE")
    candidates = [_given(workflow, settings, plugin)] if workflow else _published(module, plugin)
    try:
        from medplat.track import model_folder, weights_file
    except ModuleNotFoundError as error:
        raise MissingExtra("medplat import-checkpoint", error.name or "torch") from error
    stored = weights_file.read(file)
    state = module.import_keys(stored) if hasattr(module, "import_keys") else stored
    chosen, fit = _choose(module, candidates, state)
    if fit.differences:
        raise ModelError(_refusal(file, plugin, fit, published=workflow is None))
    network = _load(module, chosen, state)

    name = register or plugin
    about = {
        "file_sha256": model_folder.file_sha256(file),
        "licence": licence,
        "source": source,
    }
    run_id, version = _store(network, chosen, module, about, (name, alias), project)
    renamed = len(stored.keys() - state.keys())
    console.say(
        f"{fit.matched} tensors fit {plugin}, {renamed} of them renamed or left out by its map; "
        f"registered {name} version {version}: models:/{name}/{version}"
    )
    if workflow is None:
        console.say(
            "inputs and labels are named by number, and nothing prepares the images: "
            "give --workflow FILE for what the weights were trained on"
        )
    summary = {
        "run_id": run_id,
        "model_uri": f"models:/{name}/{version}",
        "version": version,
        "sha256": about["file_sha256"],
        "licence": licence,
        "matched": fit.matched,
        "renamed": renamed,
        "parameters": sum(one.numel() for one in network.parameters()),
    }
    return Outcome(0, summary)


def _store(
    network: nn.Module,
    workflow: TrainWorkflow,
    module: ModuleType,
    about: Mapping[str, str],
    registered: tuple[str, str | None],
    project: Path,
) -> tuple[str, str]:
    """Log the network as a model of a run of its own and register it; the run and the version."""
    from medplat.track import model_folder, runs, store

    tags = {"model": workflow.model.name} | dict(about)
    tracked = runs.start(
        store.open_store(project),
        experiment=workflow.track.experiment,
        workflow_text=workflow_write.dump(workflow),
        digest=workflow_write.digest(workflow),
        kind="import",
        tags={f"medplat.{key}": value for key, value in tags.items()},
    )
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        folder = tracked.folder / "models" / "best"
        folder.parent.mkdir(exist_ok=True)
        model_folder.write(folder, network, workflow, module.CARD, imported=about)
        version = tracked.register(tracked.log_model(folder), *registered)
        status = "FINISHED"
    finally:
        tracked.finish(status)
    return tracked.run_id, version


def compare(state: Mapping[str, Tensor], network: nn.Module) -> Fit:
    """Names and shapes of a state dict beside those of a network."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = tuple(
        f"{name}: {list(given[name])} in the file, {list(wanted[name])} in the network"
        for name in sorted(wanted.keys() & given.keys())
        if given[name] != wanted[name]
    )
    return Fit(
        matched=len(wanted.keys() & given.keys()) - len(wrong),
        missing=tuple(sorted(wanted.keys() - given.keys())),
        extra=tuple(sorted(given.keys() - wanted.keys())),
        wrong_shape=wrong,
    )


def _given(path: Path, settings: Sequence[str], plugin: str) -> TrainWorkflow:
    workflow = workflow_read.read(path, settings, kind="train")
    assert isinstance(workflow, TrainWorkflow)
    if workflow.model.name != plugin:
        raise UsageError(
            f"{path}: model.name is {workflow.model.name}, the weights are to be {plugin}'s"
        )
    return workflow


def _published(module: ModuleType, plugin: str) -> list[TrainWorkflow]:
    """A bare workflow for each configuration that the plugin's card counts.

    One logit without a background, as some originals have, is no task of a workflow.
    """
    card: Card = module.CARD
    return [
        _bare(plugin, count.task, count.options)
        for count in card.counts
        if count.task.kind != "segment" or count.task.out_channels > 1
    ]


def _bare(plugin: str, task: Task, options: Mapping[str, Any]) -> TrainWorkflow:
    if task.kind == "segment":
        labels = [{"name": f"label_{one}", "value": one} for one in range(1, task.out_channels)]
        section: dict[str, Any] = {"labels": labels}
    elif task.kind == "classify":
        section = {"classes": [f"class_{one}" for one in range(task.out_channels)]}
    else:
        section = {"upscale": task.upscale}
    document = {
        "kind": "train",
        "inputs": [{"name": f"image_{one}"} for one in range(1, task.in_channels + 1)],
        "dataset": {"name": "folder", "root": "not-stored"},
        "task": {"kind": task.kind, "spatial_dims": task.spatial_dims} | section,
        "model": {"name": plugin} | dict(options),
        "track": {"experiment": "imported"},
    }
    return TrainWorkflow.model_validate(document)


def _choose(
    module: ModuleType, candidates: Sequence[TrainWorkflow], state: Mapping[str, Tensor]
) -> tuple[TrainWorkflow, Fit]:
    """The candidate whose network fits the file best; built without memory for its weights."""
    import torch

    fits = []
    for workflow in candidates:
        with torch.device("meta"):
            network = module.build(workflow_read.model_config(workflow), tasks.task_of(workflow))
        fits.append((workflow, compare(state, network)))
    return min(fits, key=lambda one: one[1].differences)


def _load(module: ModuleType, workflow: TrainWorkflow, state: Mapping[str, Tensor]) -> nn.Module:
    network: nn.Module = module.build(workflow_read.model_config(workflow), tasks.task_of(workflow))
    network.load_state_dict(state, strict=True)
    return network.eval()


def _refusal(file: Path, plugin: str, fit: Fit, *, published: bool) -> str:
    lines = [
        f"{file}: {fit.differences} names or shapes are not those of {plugin}"
        + (" in any published configuration" if published else "")
        + f", {fit.matched} fit; nothing was imported"
    ]
    for title, names in (
        ("missing in the file", fit.missing),
        ("unknown to the network", fit.extra),
        ("of another shape", fit.wrong_shape),
    ):
        if names:
            more = f" ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"  {len(names)} {title}: {', '.join(names[:SHOWN])}{more}")
    if published:
        lines.append("  for another configuration give --workflow FILE, a train workflow of it")
    return "\n".join(lines)
