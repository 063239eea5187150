"""`medplat evaluate`: a registered model on a data set, with intervals by patient."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat import console, loaders, paths, pseudonym, registry
from medplat.commands import Outcome
from medplat.errors import DataError, MedplatError, MissingExtra
from medplat.types import Case
from medplat.workflow import read as workflow_read
from medplat.workflow import write as workflow_write
from medplat.workflow.schema import ClassifyTask, EvaluateWorkflow, RestoreTask, TrainWorkflow

if TYPE_CHECKING:
    from medplat.commands.evaluate_numbers import Numbers
    from medplat.track.model_folder import LoadedModel
    from medplat.track.registry import Fetched
    from medplat.track.runs import Run

CONTEXTS = {"train": "training", "validation": "validation"}


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured."""

    case: Case
    error: MedplatError


@dataclass(frozen=True)
class Plan:
    """What is measured on what.

    Attributes:
        workflow: The evaluate workflow.
        fetched: Where the model is.
        model: The model.
        cases: The cases of the chosen side.
        failures: Cases of that side that lack an input of the model.
    """

    workflow: EvaluateWorkflow
    fetched: Fetched
    model: LoadedModel
    cases: list[Case]
    failures: list[Failure]


def run(workflow: Path, settings: Sequence[str] = (), *, project: Path | None = None) -> Outcome:
    """Measure a model on a data set.

    Args:
        workflow: An evaluate workflow.
        settings: `key.path=value` overrides.
        project: Project folder.

    Returns:
        Exit code 0, 3 (some cases failed) or 4 (all did), and {run_id, run_dir, model, version,
        metrics, counts, cases, failed}.

    Raises:
        MedplatError: The workflow, the model or the data cannot be used, or a case failed and
            `evaluate.missing` is `fail`.
    """
    project = project or paths.project()
    plan = _plan(workflow, settings, project)
    with _tracked(plan, project) as tracked:
        rows, failures = _measure(plan)
        return _deliver(plan, tracked, rows, failures)


def _plan(workflow: Path, settings: Sequence[str], project: Path) -> Plan:
    read = workflow_read.read(workflow, settings, kind="evaluate")
    assert isinstance(read, EvaluateWorkflow)
    try:
        from medplat.track import model_folder
        from medplat.track import registry as models
    except ModuleNotFoundError as error:
        raise MissingExtra("medplat evaluate", error.name or "mlflow") from error
    fetched = models.fetch(read.evaluate.model, project)
    model = model_folder.read(fetched.folder)
    cases = registry.dataset(read.dataset.name).cases(workflow_read.dataset_config(read))
    chosen, failures = choose(cases, model.workflow, read)
    console.say(
        f"model: {fetched.name} {fetched.version or ''}, weights {fetched.weights_sha256[:12]}; "
        f"cases: {len(chosen) + len(failures)} ({read.evaluate.split})"
    )
    return Plan(read, fetched, model, chosen, failures)


def choose(
    cases: Sequence[Case], model: TrainWorkflow, workflow: EvaluateWorkflow
) -> tuple[list[Case], list[Failure]]:
    """Cases of the side that is evaluated, and those of it that lack an input of the model.

    The split is made as `train` makes it: among the cases that have every input.

    Raises:
        DataError: No case is on that side.
    """
    side, rule = workflow.evaluate.split, workflow.dataset.split
    usable = loaders.resolve(cases, model.inputs)
    chosen = usable if side == "all" else loaders.split(usable, rule)[side]
    if not chosen:
        raise DataError(
            f"dataset.split: none of the {len(usable)} cases is on the side {side!r}: set "
            "evaluate.split, or a dataset.split that gives it some"
        )
    known = {case.case for case in usable}
    patients = {case.patient for case in chosen}
    lost = [
        case
        for case in cases
        if case.case not in known and (side in ("all", case.split) or case.patient in patients)
    ]
    reason = DataError("lacks an input of the model")
    return chosen, [Failure(case, reason) for case in lost]


def _measure(plan: Plan) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Every case, one after the other; a case that fails is handled as `missing` says."""
    import torch

    from medplat.commands.evaluate_numbers import with_errors
    from medplat.loaders import batches
    from medplat.train import measure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = plan.model.network.to(device)
    prepare = batches.Prepare(plan.model.workflow, training=False)
    judge = _judge(plan, measure)
    missing = plan.workflow.evaluate.missing
    rows: list[dict[str, Any]] = []
    failures = list(plan.failures)
    if failures and missing == "fail":
        raise _stop(failures[0])
    for case in console.track(plan.cases, "evaluate", len(plan.cases)):
        try:
            prepared = prepare(case)
            prediction = judge.predict(network, prepared, device)
        except MedplatError as error:
            failures.append(Failure(case, error))
            if missing == "fail":
                raise _stop(failures[-1]) from error
            console.warn(f"case {case.case}: {error}")
            continue
        numbers = judge.metrics(prediction, prepared, distances=True)
        rows.append({"case": case.case, "patient": case.patient, **with_errors(numbers)})
    return rows, failures


def _judge(plan: Plan, measure: Any) -> Any:
    from medplat.infer import restore

    card = registry.model(plan.model.name).CARD
    return measure.Measure(plan.model.workflow, card.multiple, restore.restore)


def _stop(failure: Failure) -> DataError:
    text = str(failure.error)
    where = "" if failure.case.case in text else f"case {failure.case.case}: "
    return DataError(f"{where}{text}: mend the case, or set evaluate.missing to worst or exclude")


def has_truth(workflow: TrainWorkflow, case: Case) -> bool:
    """Whether the case has a label, a reference or a class of the model to be scored with."""
    task = workflow.task
    if isinstance(task, ClassifyTask):
        return case.target in task.classes
    return case.label is not None or (isinstance(task, RestoreTask) and task.reference == "image")


def worst_row(
    workflow: TrainWorkflow, case: Case, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The row of a case that failed and scores the worst value.

    Shares (Dice, surface Dice, correct) are 0; distances, losses, PSNR and SSIM are the worst of
    the other cases; volumes stay undefined. The true class gets the probability 0.
    """
    row: dict[str, Any] = {"case": case.case, "patient": case.patient}
    names = dict.fromkeys(name for other in rows for name in other if name not in row)
    for name in names:
        if name.startswith(("dice_", "nsd_")) or name == "correct":
            row[name] = 0.0
        elif name.startswith(("hd95_", "log_loss", "mae", "psnr", "ssim")):
            known = [other[name] for other in rows if not math.isnan(other.get(name, math.nan))]
            worst = min if name.startswith(("psnr", "ssim")) else max
            row[name] = worst(known, default=math.nan)
    if workflow.task.kind == "classify" and case.target is not None:
        classes = workflow.task.classes
        row["target"] = float(classes.index(case.target))
        share = 1 / (len(classes) - 1)
        row |= {f"probability_{name}": 0.0 if name == case.target else share for name in classes}
    return row


@contextmanager
def _tracked(plan: Plan, project: Path) -> Iterator[Run]:
    """A run of its own, with the model and the data as its inputs; ended as what happened tells."""
    from medplat.track import runs, store

    workflow = plan.workflow
    tracked = runs.start(
        store.open_store(project),
        experiment=workflow.track.experiment,
        workflow_text=workflow_write.dump(workflow),
        digest=workflow_write.digest(workflow),
        kind="evaluate",
        tags={
            "medplat.model": plan.fetched.name,
            "medplat.model_version": plan.fetched.version or "",
            "medplat.weights_sha256": plan.fetched.weights_sha256,
            "medplat.parameters": str(plan.model.card["parameters"]),
            "medplat.dataset": workflow.dataset.name,
        },
    )
    status: Any = "FAILED"
    try:
        tracked.log_params({"evaluate": workflow.evaluate.model_dump(mode="json")})
        if plan.fetched.model_id is not None:
            tracked.log_input_model(plan.fetched.model_id)
        salted = pseudonym.load(project).digest
        digest = runs.dataset_digest(loaders.contents(plan.cases, salted))
        context: Any = CONTEXTS.get(workflow.evaluate.split, "test")
        tracked.log_dataset(workflow.dataset.name, digest, context)
        yield tracked
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.finish(status)


def _deliver(
    plan: Plan, tracked: Run, rows: list[dict[str, Any]], failures: Sequence[Failure]
) -> Outcome:
    from medplat.commands import evaluate_numbers
    from medplat.train.measure import write_cases

    section, model = plan.workflow.evaluate, plan.model.workflow
    if section.missing == "worst" and rows:
        rows += [worst_row(model, one.case, rows) for one in failures if has_truth(model, one.case)]
    code = (3 if rows else 4) if failures else 0
    summary: dict[str, Any] = {
        "run_id": tracked.run_id,
        "run_dir": str(tracked.folder),
        "model": plan.fetched.uri,
        "version": plan.fetched.version,
        "cases": len(rows),
        "failed": len(failures),
        "missing": section.missing,
    }
    if not rows:
        return Outcome(code, summary | {"metrics": {}}, "every case failed: no number was made")
    numbers = evaluate_numbers.measure(
        model, rows, replicates=section.replicates, seed=section.seed
    )
    write_cases(rows, tracked.folder / "cases.csv")
    tracked.log_file(tracked.folder / "cases.csv")
    found = evaluate_numbers.as_json(numbers)
    path = tracked.folder / "metrics.json"
    _write_metrics(path, plan, found | {"cases": len(rows), "failed": len(failures)})
    _log(tracked, plan, numbers, path)
    return Outcome(code, summary | found, _text(plan, tracked, numbers, len(rows), failures))


def _write_metrics(path: Path, plan: Plan, found: Mapping[str, Any]) -> None:
    """`metrics.json` goes to the tracking store: no paths, no ids of cases or patients."""
    section = plan.workflow.evaluate
    made = {
        "model": plan.fetched.name,
        "version": plan.fetched.version,
        "weights_sha256": plan.fetched.weights_sha256,
        "dataset": plan.workflow.dataset.name,
        "split": section.split,
        "missing": section.missing,
        "seed": section.seed,
    }
    path.write_text(json.dumps(made | dict(found), indent=1) + "\n", encoding="utf-8")


def _log(tracked: Run, plan: Plan, numbers: Numbers, path: Path) -> None:
    """Value, ends and n of every metric, on the run and on the model that was measured."""
    flat = dict(numbers.counts)
    for name, one in numbers.metrics.items():
        flat |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        flat[f"{name}_n"] = float(one.n)
    tracked.log_metrics(flat, 0, plan.fetched.model_id)
    tracked.log_file(path)


def _text(
    plan: Plan, tracked: Run, numbers: Numbers, count: int, failures: Sequence[Failure]
) -> str:
    from medplat.commands import evaluate_numbers

    section = plan.workflow.evaluate
    excluded = len(plan.cases) + len(plan.failures) - count
    lines = [
        f"{count} cases" + (f" ({excluded} excluded)" if excluded else "")
        + f", 95 % intervals by bootstrap over patients, {section.replicates} replicates",
        evaluate_numbers.as_text(numbers),
        *(f"failed: case {one.case.case}: {one.error}" for one in failures),
        f"run folder: {tracked.folder}",
    ]  # fmt: skip
    return "\n".join(lines)
