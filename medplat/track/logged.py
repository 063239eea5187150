"""Model folders as MLflow's logged models, and logged models as versions of registered ones."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from medplat import __version__
from medplat.errors import ModelError
from medplat.track import model_folder
from medplat.track.store import OWN_TAGS, Store, current, first_line

_VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's page links a model to its versions


def store_model(
    store: Store, experiment_id: str, run_id: str, folder: Path, name: str, step: int
) -> str:
    """Store a model folder; gives the id of the logged model.

    Raises:
        ModelError: The store did not take it.
    """
    card = model_folder.read_card(folder)
    ours = {
        "medplat.weights_sha256": card["weights_sha256"],
        "medplat.plugin": card["plugin"],
        "medplat.step": str(step),
    }
    client = store.client
    try:
        made = client.create_logged_model(
            experiment_id, name, run_id, tags=OWN_TAGS | ours, model_type="medplat"
        )
        with tempfile.TemporaryDirectory() as head:
            _write_head(Path(head), made.model_id, run_id)
            client.log_model_artifacts(made.model_id, head)
        client.log_model_artifacts(made.model_id, str(folder), "artifacts")
        client.finalize_logged_model(made.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"{store.shown}: the model could not be stored ({first_line(error)}); "
            f"it still lies in {folder}"
        ) from error
    return str(made.model_id)


def register(store: Store, run_id: str, model_id: str, name: str, alias: str | None) -> str:
    """Make a logged model the next version of a registered one; gives the version.

    Raises:
        ModelError: The registry did not take it.
    """
    client = store.client
    try:
        _make_registered(client, name)
        made = client.get_logged_model(model_id)
        ours = {key: value for key, value in made.tags.items() if key.startswith("medplat.")}
        with current(store):
            version = client.create_model_version(
                name, f"models:/{model_id}", run_id, ours, model_id=model_id
            )
        links = json.loads(made.tags.get(_VERSIONS_TAG, "[]"))
        links.append({"name": name, "version": version.version})
        client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps(links)})
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        raise ModelError(
            f"{store.shown}: {name} could not be registered: {first_line(error)}"
        ) from error
    return str(version.version)


def _make_registered(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _write_head(folder: Path, model_id: str, run_id: str) -> None:
    """The files by which `mlflow models serve` finds medplat; they hold no path and no code."""
    prompt = ColSpec(DataType.string, "prompt", required=False)
    signature = ModelSignature(inputs=Schema([ColSpec(DataType.string, "uri"), prompt]))
    head = Model(artifact_path="artifacts", run_id=run_id, model_id=model_id, signature=signature)
    head.add_flavor(
        "python_function",
        loader_module="medplat.track.pyfunc_entry",
        data="artifacts",
        env={"virtualenv": "python_env.yaml"},
    )
    head.save(folder / "MLmodel")
    (folder / "requirements.txt").write_text(f"medplat[ml]=={__version__}\n", encoding="utf-8")
    (folder / "python_env.yaml").write_text(
        "build_dependencies: [pip]\ndependencies: [-r requirements.txt]\n", encoding="utf-8"
    )
