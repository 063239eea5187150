"""From a model's name (`models:/name@alias`, `models:/name/3`, `runs:/ID`, path) to its folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from medplat import paths
from medplat.errors import ModelError, UsageError
from medplat.track import model_folder
from medplat.track.store import Store, first_line, open_store

_MODEL_ID = re.compile(r"^m-[0-9a-f]{32}$")
_ALIAS = re.compile(r"^models:/([^/@]+)@([^/@]+)$")
_VERSION = re.compile(r"^models:/([^/@]+)/(\d+)$")
_LOGGED = re.compile(r"^models:/(m-[0-9a-f]{32})$")
_RUN = re.compile(r"^runs:/([^/]+)(?:/(best|last))?$")
FORMS = "models:/name@alias, models:/name/3, runs:/ID or a model folder"


@dataclass(frozen=True)
class Fetched:
    """A model on this machine.

    Attributes:
        folder: The model folder, for `model_folder.read`.
        uri: As it was asked for.
        name: Registered name, else the plugin's name.
        version: Registered version, None for a run or a folder.
        model_id: MLflow's id of the logged model, None for a folder.
        run_id: The run that made it, None for a folder.
        weights_sha256: What the weights must have; `model_folder.read` checks it.
    """

    folder: Path
    uri: str
    name: str
    version: str | None
    model_id: str | None
    run_id: str | None
    weights_sha256: str


@dataclass(frozen=True)
class Registered:
    """One version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    plugin: str
    run_id: str
    weights_sha256: str


def fetch(model: str, project: Path) -> Fetched:
    """Find a model and bring its folder to this machine.

    Args:
        model: One of the forms of `FORMS`.
        project: The project folder, whose tracking store is asked.

    Raises:
        ModelError: There is no such model, or it is not one of medplat's.
        UsageError: `model` has none of the forms, or the store cannot be opened.
    """
    if not model.startswith(("models:", "runs:")):
        return _from_folder(model)
    store = open_store(project)
    try:
        name, version, model_id = _resolve(model, store)
        logged = store.client.get_logged_model(model_id)
    except MlflowException as error:
        raise ModelError(
            f"{model}: not found in {store.shown} ({first_line(error)}); see `medplat list models`"
        ) from error
    folder = _bring(store, model, logged)
    card = model_folder.read_card(folder)
    promised = logged.tags.get("medplat.weights_sha256", card["weights_sha256"])
    if promised != card["weights_sha256"]:
        raise ModelError(
            f"{model}: the stored folder is not the one that was registered (weights sha256 "
            f"{card['weights_sha256'][:12]}, registered as {promised[:12]}); do not use it"
        )
    return Fetched(
        folder=folder,
        uri=model,
        name=name or card["plugin"],
        version=version,
        model_id=model_id,
        run_id=logged.source_run_id,
        weights_sha256=promised,
    )


def list_models(project: Path) -> list[Registered]:
    """All versions of all registered models, the newest version of each first."""
    client = open_store(project).client
    found = []
    for model in _pages(client.search_registered_models):
        # An alias is kept with the model; the versions of a search come without.
        aliases: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(model.name).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        versions = _pages(client.search_model_versions, filter_string=f"name='{model.name}'")
        for version in sorted(versions, key=lambda one: -int(one.version)):
            found.append(
                Registered(
                    name=model.name,
                    version=str(version.version),
                    aliases=tuple(sorted(aliases.get(str(version.version), ()))),
                    plugin=version.tags.get("medplat.plugin", ""),
                    run_id=version.run_id or "",
                    weights_sha256=version.tags.get("medplat.weights_sha256", ""),
                )
            )
    return found


def _from_folder(model: str) -> Fetched:
    folder = Path(model)
    if not folder.is_dir():
        raise UsageError(f"model {model}: no such folder; a model is {FORMS}")
    folder = model_folder.find(folder)
    card = model_folder.read_card(folder)
    return Fetched(folder, model, card["plugin"], None, None, None, card["weights_sha256"])


def _resolve(model: str, store: Store) -> tuple[str | None, str | None, str]:
    """Registered name, version and id of the logged model."""
    client = store.client
    if match := _LOGGED.match(model):
        return None, None, match[1]
    if match := _ALIAS.match(model):
        version = client.get_model_version_by_alias(match[1], match[2])
        return match[1], str(version.version), _model_id(version, model)
    if match := _VERSION.match(model):
        version = client.get_model_version(match[1], match[2])
        return match[1], match[2], _model_id(version, model)
    if match := _RUN.match(model):
        return None, None, _of_run(client, match[1], match[2] or "best", model)
    raise UsageError(f"model {model}: not understood; a model is {FORMS}")


def _model_id(version: Any, model: str) -> str:
    """Taken from the source: MLflow gives no id of its own for a version."""
    model_id = str(version.source).rpartition("/")[2]
    if not _MODEL_ID.match(model_id):
        raise ModelError(f"{model}: not a model that medplat registered; train or import one")
    return model_id


def _of_run(client: Any, run_id: str, name: str, model: str) -> str:
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment_id],
        f"source_run_id = '{run_id}' AND name = '{name}'",
        max_results=1,
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    if not found:
        raise ModelError(f"{model}: the run has no `{name}` model; did its training finish?")
    return str(found[0].model_id)


def _bring(store: Store, model: str, logged: Any) -> Path:
    """The logged model's folder: in place where the store is local, else a copy in the project."""
    local = _local_folder(store, logged.artifact_location)
    if local is not None:
        return model_folder.find(local)
    kept = paths.state(store.project) / "models" / logged.model_id
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as folder:
            _download(store, model, logged, Path(folder))
    return model_folder.find(kept)


def _download(store: Store, model: str, logged: Any, folder: Path) -> None:
    kept = folder.parent / logged.model_id
    try:
        got = download_artifacts(
            artifact_uri=logged.artifact_location, dst_path=str(folder), tracking_uri=store.uri
        )
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"{model}: could not be downloaded from {store.shown}: {first_line(error)}"
        ) from error
    whole = folder / "whole"
    shutil.copytree(model_folder.find(Path(got)), whole)
    try:
        whole.replace(kept)
    except OSError:
        if not kept.is_dir():  # else another process was faster
            raise


def _local_folder(store: Store, location: str) -> Path | None:
    parts = urlsplit(location)
    if parts.scheme not in ("", "file") or store.artifacts is None:
        return None
    folder = Path(url2pathname(parts.path))
    if folder.is_dir():
        return folder
    # The project was moved since: the artifacts still lie beside the database.
    tail = folder.as_posix().rpartition("/tracking/artifacts/")[2]
    moved = store.artifacts / tail
    return moved if moved.is_dir() else folder


def _pages(search: Any, **arguments: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found
