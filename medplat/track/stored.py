"""Runs that have ended, read back: what they were, and their table of cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from medplat import paths
from medplat.errors import DataError, UsageError
from medplat.track.store import Store, first_line

CASES = "cases.csv"


@dataclass(frozen=True)
class Stored:
    """A run in the tracking store.

    Attributes:
        run_id: MLflow's id.
        experiment: Name of its experiment.
        kind: The verb that made it.
        model: Plugin or registered model that it is about.
        parameters: Of the network, where known.
        local: Its `cases.csv` with the cases' own ids, on this machine only.
    """

    run_id: str
    experiment: str
    kind: str
    model: str
    parameters: int | None
    local: Path | None


def find(store: Store, text: str) -> Stored:
    """A run by its id, `runs:/ID`, or the beginning of the id of a run made in this project.

    Raises:
        UsageError: There is no such run, or several begin like that.
    """
    run_id = _whole_id(store, text.removeprefix("runs:/"))
    try:
        run = store.client.get_run(run_id)
        experiment = store.client.get_experiment(run.info.experiment_id).name
    except MlflowException as error:
        raise UsageError(
            f"run {text}: not found in {store.shown} ({first_line(error)}); "
            "`medplat ui` lists the runs"
        ) from error
    tags = run.data.tags
    count = tags.get("medplat.parameters", "")
    local = _folder(store) / run_id / CASES
    return Stored(
        run_id=run_id,
        experiment=experiment,
        kind=tags.get("medplat.kind", ""),
        model=tags.get("medplat.model", ""),
        parameters=int(count) if count.isdigit() else None,
        local=local if local.is_file() else None,
    )


def fetch_cases(store: Store, run: Stored, folder: Path) -> Path:
    """The run's `cases.csv` as it was stored, with patients hashed by the salt of its project.

    Raises:
        DataError: The run has none.
    """
    try:
        return Path(store.client.download_artifacts(run.run_id, CASES, str(folder)))
    except (MlflowException, OSError) as error:
        raise DataError(
            f"run {run.run_id}: has no {CASES} ({first_line(error)}); runs of `medplat train` and "
            "`medplat evaluate` that came to their end have one"
        ) from error


def _folder(store: Store) -> Path:
    return paths.state(store.project) / "runs"


def _whole_id(store: Store, text: str) -> str:
    if len(text) < 4 or not text.isalnum():
        raise UsageError(f"run {text!r}: give a run id, or at least its first four characters")
    folder = _folder(store)
    known = [one.name for one in folder.glob(f"{text}*")] if folder.is_dir() else []
    if len(known) > 1:
        raise UsageError(f"run {text}: {len(known)} runs begin like that; give more of the id")
    return known[0] if known else text
