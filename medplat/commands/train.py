"""`medplat train`: from a workflow to a tracked run and a registered model."""

from __future__ import annotations

import math
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from medplat import console, loaders, paths, pseudonym, registry, tasks
from medplat.commands import Outcome
from medplat.errors import DataError, MissingExtra, UsageError
from medplat.types import Case
from medplat.workflow import read as workflow_read
from medplat.workflow import write as workflow_write
from medplat.workflow.schema import TrainWorkflow

if TYPE_CHECKING:
    from torch import nn

    from medplat.track.runs import Run
    from medplat.train.fit import Trained
    from medplat.train.measure import Measure

PICTURES = 4
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Plan:
    """All that is known before a run begins.

    Attributes:
        workflow: Resolved.
        digest: sha256 of it.
        plugin: The model plugin's module.
        sides: Cases with their images, by side of the split.
        command: The line that resumes the run.
    """

    workflow: TrainWorkflow
    digest: str
    plugin: ModuleType
    sides: Mapping[str, list[Case]]
    command: str


def run(
    workflow: Path,
    settings: Sequence[str] = (),
    *,
    resume: bool = False,
    project: Path | None = None,
) -> Outcome:
    """Train a model plugin, track the run, register the best weights.

    Args:
        workflow: A train workflow.
        settings: `key.path=value` overrides.
        resume: Go on with the latest unfinished run of the same resolved workflow.
        project: Project folder.

    Returns:
        Exit code 0 or 130, and {run_id, run_dir, model_uri, version, metrics}.

    Raises:
        MedplatError: The workflow, the data or the machine does not allow it.
    """
    project = project or paths.project()
    plan = _plan(workflow, settings, project)
    with (
        _sigterm_interrupts(),
        _tracked(plan, project, resume) as tracked,
        console.resume_line(plan.command),
    ):
        return _train(plan, tracked, resume)


def _plan(workflow: Path, settings: Sequence[str], project: Path) -> Plan:
    read = workflow_read.read(workflow, settings, kind="train")
    assert isinstance(read, TrainWorkflow)
    plugin = registry.model(read.model.name)
    cases = registry.dataset(read.dataset.name).cases(workflow_read.dataset_config(read))
    sides = loaders.split(loaders.resolve(cases, read.inputs), read.dataset.split)
    for side in ("train", "validation"):
        if not sides[side]:
            raise DataError(
                f"dataset.split: of {len(cases)} cases none is left for {side}: "
                "give more patients or another split"
            )
    console.say(
        "cases: "
        + ", ".join(f"{len(side)} {name}" for name, side in sides.items() if side)
        + f" of {len({case.patient for side in sides.values() for case in side})} patients"
    )
    parts = ["medplat", "train", str(workflow)]
    for one in settings:
        parts += ["--set", one]
    if project.resolve() != paths.project():
        parts += ["--project", str(project)]
    command = shlex.join([*parts, "--resume"])
    return Plan(read, workflow_write.digest(read), plugin, sides, command)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the verb as Ctrl-C does; training itself obeys it between two batches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def _tracked(plan: Plan, project: Path, resume: bool) -> Iterator[Run]:
    """The run, held by this process alone, and ended as what happened tells."""
    from filelock import FileLock, Timeout

    tracked = _begin(plan, project, resume)
    lock = FileLock(tracked.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"run {tracked.run_id} is being trained by another process: wait for it or end it"
        ) from None
    ended = False
    try:
        yield tracked
        ended = True
    except KeyboardInterrupt:
        tracked.finish("KILLED")
        ended = True
        raise
    finally:
        if not ended:
            tracked.finish("FAILED")
        lock.release()


def _begin(plan: Plan, project: Path, resume: bool) -> Run:
    try:
        from medplat.track import runs, store
    except ModuleNotFoundError as error:
        raise MissingExtra("medplat train", error.name or "mlflow") from error
    opened = store.open_store(project)
    workflow = plan.workflow
    experiment = workflow.track.experiment
    if resume:
        found = runs.find_unfinished(opened, experiment, plan.digest)
        if found is None:
            from medplat.train import resume as resuming

            folder = paths.state(project) / "runs"
            raise UsageError(resuming.why_not(workflow, folder, experiment))
        console.say(f"resuming run {found.run_id}")
        return found
    started = runs.start(
        opened,
        experiment=experiment,
        workflow_text=workflow_write.dump(workflow),
        digest=plan.digest,
        kind="train",
        tags={"medplat.model": workflow.model.name, "medplat.dataset": workflow.dataset.name},
    )
    _describe(started, plan, project)
    return started


def _describe(tracked: Run, plan: Plan, project: Path) -> None:
    """Parameters and data sets, with digests."""
    from medplat.track import runs

    settings = plan.workflow.model_dump(mode="json", by_alias=True)
    sections = ("dataset", "model", "train", "infer", "task", "transforms", "augment")
    tracked.log_params({name: settings[name] for name in sections})
    salted = pseudonym.load(project).digest
    for name, side in plan.sides.items():
        if side:
            digest = runs.dataset_digest(loaders.contents(side, salted))
            context: Any = CONTEXTS[name]
            tracked.log_dataset(plan.workflow.dataset.name, digest, context)


def _train(plan: Plan, tracked: Run, resume: bool) -> Outcome:
    import torch

    from medplat.infer import restore
    from medplat.loaders import batches
    from medplat.train import fit, measure

    workflow = plan.workflow
    task = tasks.task_of(workflow)
    torch.manual_seed(workflow.train.seed)
    network = plan.plugin.build(workflow_read.model_config(workflow), task)
    count = sum(one.numel() for one in network.parameters())
    tracked.set_tags({"medplat.parameters": str(count)})
    device = fit.pick_device()
    console.say(f"model: {workflow.model.name}, {count:,} parameters, on {device}")
    counts = batches.class_counts(plan.sides["train"], workflow)
    loss = tasks.get(task.kind).loss(workflow, counts)
    judge = measure.Measure(workflow, plan.plugin.CARD.multiple, restore.restore)
    _probe(plan, network, loss, judge, device)
    prepared = {
        side: batches.prepare(plan.sides[side], workflow, training=side == "train")
        for side in ("train", "validation")
    }
    trained = fit.fit(
        network,
        loss,
        judge,
        workflow,
        prepared["train"],
        prepared["validation"],
        folder=tracked.folder,
        sink=tracked,
        digest=plan.digest,
        resume=resume,
        device=device,
    )
    if trained.interrupted is not None:
        console.say(f"stopped by {trained.interrupted}; the last whole epoch is kept")
        tracked.finish("KILLED")
        return Outcome(130, _summary(tracked, None, None, trained.best))
    return _deliver(plan, tracked, network, judge, prepared["validation"], trained)


def _probe(plan: Plan, network: nn.Module, loss: Any, judge: Measure, device: Any) -> None:
    """One batch and one case, before anything is cached; says what the training will need."""
    import torch

    from medplat.loaders import batches
    from medplat.train import fit, memory, probe

    workflow = plan.workflow
    lazy = [
        batches.prepare(plan.sides[side], workflow, training=side == "train", cache=False)
        for side in ("train", "validation")
    ]
    cpu_free = memory.free_bytes(torch.device("cpu"))
    cache = probe.cache_bytes(lazy[0], lazy[1], workflow)
    probe.check_cache(cache, cpu_free)
    estimate = probe.probe(
        network,
        loss,
        judge,
        workflow,
        lazy[0],
        lazy[1],
        device=device,
        autocast=fit.autocast_type(workflow.train.precision, device),
        cache=cache,
        free=cpu_free - cache if device.type == "cpu" else None,
    )
    console.say(estimate.sentence())


def _deliver(
    plan: Plan,
    tracked: Run,
    network: nn.Module,
    judge: Measure,
    validation: Sequence[Mapping[str, Any]],
    trained: Trained,
) -> Outcome:
    """Model folders of the last and the best weights, logged and registered; pictures."""
    from medplat.track import model_folder
    from medplat.train import fit

    network.cpu().eval()
    found = {
        "last": (fit.last_weights(tracked.folder), trained.last, trained.last_epoch),
        "best": (fit.best_weights(tracked.folder), trained.best, trained.best_epoch),
    }
    model_id = ""
    for name, (weights, metrics, epoch) in found.items():
        network.load_state_dict(weights)
        folder = tracked.folder / "models" / name
        folder.parent.mkdir(exist_ok=True)
        model_folder.write(folder, network, plan.workflow, plan.plugin.CARD)
        measured = {f"val_{key}": value for key, value in metrics.items()}
        model_id = tracked.log_model(folder, name=name, metrics=measured, step=epoch)
    tracked.log_file(tracked.folder / "cases.csv")
    _log_pictures(plan, tracked, network, judge, validation)
    version = None
    register = plan.workflow.track.register_
    if register is not None:
        version = tracked.register(model_id, register, plan.workflow.track.alias)
    tracked.finish("FINISHED")
    _say_result(plan, tracked, trained, register, version)
    return Outcome(0, _summary(tracked, register, version, trained.best))


def _log_pictures(
    plan: Plan,
    tracked: Run,
    network: nn.Module,
    judge: Measure,
    validation: Sequence[Mapping[str, Any]],
) -> None:
    """The best model's masks of the first validation cases, beside the truth, on their images."""
    first = plan.workflow.inputs[0]
    if plan.workflow.task.kind != "segment" or first.channels != 1:
        return
    from medplat.report import pictures

    folder = tracked.folder / "pictures"
    folder.mkdir(exist_ok=True)
    cases = plan.sides["validation"][:PICTURES]
    for number, case in enumerate(cases, start=1):
        prepared = validation[number - 1]
        volume = loaders.read_image(case.images[first.name])
        masks = {"truth": prepared["truth"], "model": judge.predict(network, prepared, "cpu")}
        for name, mask in masks.items():
            shown = mask.reshape(volume.geometry.shape)
            path = folder / f"{number}_{name}.png"
            pictures.triptych(volume, mask=shown).save(path)
            tracked.log_file(path, "pictures")


def _say_result(
    plan: Plan, tracked: Run, trained: Trained, register: str | None, version: str | None
) -> None:
    primary = tasks.get(plan.workflow.task.kind).PRIMARY
    value = trained.best.get(primary, math.nan)
    console.say(f"best: epoch {trained.best_epoch}, {primary} {value:.4f} on the validation cases")
    console.say(f"run folder: {tracked.folder}")
    if register is not None:
        alias = plan.workflow.track.alias
        named = f"models:/{register}@{alias}" if alias else f"models:/{register}/{version}"
        console.say(
            f"registered {register} version {version}; use it with: medplat infer -m {named}"
        )


def _summary(
    tracked: Run, register: str | None, version: str | None, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """What `--json` prints; an undefined metric is null."""
    uri = f"models:/{register}/{version}" if register and version else f"runs:/{tracked.run_id}"
    return {
        "run_id": tracked.run_id,
        "run_dir": str(tracked.folder),
        "model_uri": uri,
        "version": version,
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in metrics.items()
        },
    }
