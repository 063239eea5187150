"""One MLflow run: parameters, metrics in batches, data sets, files, models.

A store that fails does not stop the work; metrics wait until it answers again (`buffer`). Only
rank 0 of a distributed run may hold a `Run`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from medplat import __version__, console, paths, pseudonym
from medplat.errors import UsageError
from medplat.track import logged, privacy
from medplat.track.buffer import MetricBuffer
from medplat.track.store import OWN_TAGS, Store, first_line
from medplat.track.system import SystemSampler

PARAMS_A_CALL = 100
DIGEST_LENGTH = 32


class Run:
    """A run of the tracking store, held open by this process.

    Attributes:
        run_id: MLflow's id; runs are never looked up by name.
        folder: `.medplat/runs/<run id>`: checkpoints and everything that stays local.
    """

    def __init__(self, store: Store, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.folder = paths.run_folder(store.project, run_id)
        self._store = store
        self._experiment_id = experiment_id
        self._warned = False
        self._buffer = MetricBuffer(self._send_metrics, self.folder / "metrics.jsonl")
        self._sampler = SystemSampler(self)
        self._sampler.start()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names, paths of files are left out."""
        flat = [Param(key, value) for key, value in _flatten(params)]
        for start in range(0, len(flat), PARAMS_A_CALL):
            batch = flat[start : start + PARAMS_A_CALL]
            self._try("parameters", partial(self._log_batch, params=batch))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        batch = [RunTag(key, str(value)) for key, value in tags.items()]
        self._try("tags", lambda: self._log_batch(tags=batch))

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, model_id: str | None = None
    ) -> None:
        """Put metrics into the buffer.

        Args:
            metrics: Name to value; NaN and infinity are left out, no store keeps them faithfully.
            step: Epoch or step that the values belong to.
            model_id: The logged model that was measured, None where none was.
        """
        self._buffer.add(metrics, step, model_id)

    def flush(self) -> None:
        """Send the metrics that wait; on an error they go on waiting."""
        self._buffer.flush()

    def log_dataset(
        self, name: str, digest: str, context: Literal["training", "validation", "test"]
    ) -> None:
        """Record the data that the run used, by name and digest (see `dataset_digest`)."""
        dataset = Dataset(name, digest[:DIGEST_LENGTH], "medplat", "{}")
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._try("data set", lambda: self._store.client.log_inputs(self.run_id, [entry]))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a copy of a file with the run.

        A file named `cases.csv` is stored with patients' ids hashed; the local one stays as it is.
        """
        if path.name == "cases.csv":
            salt = pseudonym.load(self._store.project)
            self._log_text(privacy.hash_cases(path, salt), path.name, folder)
            return
        client = self._store.client
        self._try(path.name, lambda: client.log_artifact(self.run_id, str(path), folder or None))

    def log_input_model(self, model_id: str) -> None:
        """Record the logged model that an evaluation or inference run used."""
        entry = LoggedModelInput(model_id)
        client = self._store.client
        self._try("input model", lambda: client.log_inputs(self.run_id, models=[entry]))

    def log_model(
        self,
        folder: Path,
        name: str = "best",
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
    ) -> str:
        """Store a model folder as a logged model of this run.

        Args:
            folder: What `model_folder.write` made.
            name: "best" or "last".
            metrics: The validation metrics of exactly these weights.
            step: The epoch of the weights.

        Returns:
            The model's id, `m-` and 32 hex digits.

        Raises:
            ModelError: The store did not take it.
        """
        model_id = logged.store_model(
            self._store, self._experiment_id, self.run_id, folder, name, step
        )
        self.log_metrics(metrics or {}, step, model_id)
        self.flush()
        return model_id

    def register(self, model_id: str, name: str, alias: str | None = None) -> str:
        """Make a logged model the next version of a registered model.

        Returns:
            The version's number, as text.

        Raises:
            ModelError: The registry did not take it.
        """
        return logged.register(self._store, self.run_id, model_id, name, alias)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Send what waits, write what cannot be sent, and end the run."""
        self._sampler.stop()
        self._buffer.close()
        client = self._store.client
        self._try("end of the run", lambda: client.set_terminated(self.run_id, status))

    def _log_batch(self, **batch: Any) -> None:
        self._store.client.log_batch(self.run_id, **batch, synchronous=True)

    def _send_metrics(self, batch: list[Metric]) -> bool:
        return self._try("metrics", lambda: self._log_batch(metrics=batch))

    def _log_text(self, text: str, name: str, folder: str = "") -> None:
        target = f"{folder}/{name}" if folder else name
        self._try(name, lambda: self._store.client.log_text(self.run_id, text, target))

    def _try(self, what: str, call: Callable[[], object]) -> bool:
        """Tracking must never end a training: warn once and go on."""
        try:
            call()
        except Exception as error:
            if not self._warned:
                console.warn(
                    f"{self._store.shown}: the tracking store did not take the {what} "
                    f"({first_line(error)}); the work goes on, metrics wait"
                )
            self._warned = True
            return False
        return True


def start(
    store: Store,
    *,
    experiment: str,
    workflow_text: str,
    digest: str,
    kind: str,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """Begin a run.

    Args:
        store: Where to.
        experiment: Name of the experiment, made if absent.
        workflow_text: The resolved workflow; stored with the run, without the paths of the data.
        digest: sha256 of the resolved workflow, by which `find_unfinished` finds the run again.
        kind: The verb: "train", "evaluate", "infer".
        tags: Further tags.

    Raises:
        UsageError: The store did not take it.
    """
    ours = {"medplat.kind": kind, "medplat.digest": digest, "medplat.version": __version__}
    try:
        experiment_id = _experiment(store, experiment)
        made = store.client.create_run(
            experiment_id,
            tags=OWN_TAGS | ours | dict(tags or {}),
            run_name=f"{kind}-{digest[:8]}",
        )
    except MlflowException as error:
        raise UsageError(
            f"{store.shown}: no run can be started in experiment {experiment}: {first_line(error)}"
        ) from error
    run = Run(store, made.info.run_id, experiment_id)
    (run.folder / "workflow.yaml").write_text(workflow_text, encoding="utf-8")
    run._log_text(privacy.without_paths(workflow_text), "workflow.yaml")
    return run


def find_unfinished(store: Store, experiment: str, digest: str, kind: str = "train") -> Run | None:
    """The latest run of the same resolved workflow that did not finish, taken up again."""
    found = store.client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = store.client.search_runs(
        [found.experiment_id],
        f"tags.`medplat.digest` = '{digest}' and tags.`medplat.kind` = '{kind}' "
        "and attributes.status != 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not runs:
        return None
    run_id = runs[0].info.run_id
    store.client.update_run(run_id, status="RUNNING")
    return Run(store, run_id, found.experiment_id)


def dataset_digest(cases: Iterable[tuple[str, ...]]) -> str:
    """Digest of a data set: the same cases in any order give the same one.

    Args:
        cases: A tuple a case: salted hash of its id, then sha256 of the voxels of each image and of
            the label.

    Returns:
        32 hex digits; MLflow keeps at most 36.
    """
    lines = sorted("\t".join(case) for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]


def _experiment(store: Store, name: str) -> str:
    found = store.client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None if store.artifacts is None else (store.artifacts / name).as_uri()
    try:
        return str(store.client.create_experiment(name, location))
    except MlflowException:
        # Another process made it between the two calls.
        found = store.client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{name}.")
        elif isinstance(value, Path) or (isinstance(value, str) and privacy.is_path(name, value)):
            flat.append((name, privacy.REMOVED))
        else:
            flat.append((name, str(value)))
    return flat
