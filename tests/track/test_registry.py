from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medplat.errors import ModelError, UsageError
from medplat.track import model_folder, registry, runs
from medplat.track.store import Store, open_store

Begin = Callable[..., runs.Run]
Make = Callable[..., Any]


@pytest.fixture
def registered(store: Store, begin: Begin, make_model: Make) -> tuple[str, str, Any]:
    """Run id, id of the best model, and its folder; `last` is another model of the run."""
    run = begin()
    made = make_model("best")
    best = run.log_model(made.folder, "best", {"dice": 0.9}, step=3)
    run.log_model(make_model("last", seed=5).folder, "last", {"dice": 0.8}, step=9)
    run.register(best, "lesions", "candidate")
    run.finish()
    return run.run_id, best, made


def test_every_form_leads_to_the_same_weights(
    project: Path, registered: tuple[str, str, Any]
) -> None:
    run_id, best, made = registered
    forms = {
        "models:/lesions@candidate": ("lesions", "1"),
        "models:/lesions/1": ("lesions", "1"),
        f"models:/{best}": ("wau_unet", None),
        f"runs:/{run_id}": ("wau_unet", None),
        f"runs:/{run_id}/best": ("wau_unet", None),
    }
    for form, (name, version) in forms.items():
        fetched = registry.fetch(form, project)
        assert (fetched.name, fetched.version) == (name, version)
        assert (fetched.model_id, fetched.run_id) == (best, run_id)
        assert fetched.weights_sha256 == made.sha256
        assert model_folder.read(fetched.folder).weights_sha256 == made.sha256
    local = registry.fetch(str(made.folder), project)
    assert (local.folder, local.name, local.model_id) == (made.folder, "wau_unet", None)


def test_the_last_model_of_a_run_can_be_asked_for(
    project: Path, registered: tuple[str, str, Any]
) -> None:
    run_id, best, made = registered
    last = registry.fetch(f"runs:/{run_id}/last", project)
    assert last.model_id != best
    assert last.weights_sha256 != made.sha256


def test_a_run_that_went_on_gives_its_newest_best(
    store: Store, begin: Begin, make_model: Make, project: Path
) -> None:
    run = begin()
    run.log_model(make_model("a").folder, "best")
    newest = run.log_model(make_model("b", seed=2).folder, "best")
    run.finish()
    assert registry.fetch(f"runs:/{run.run_id}", project).model_id == newest


def test_versions_count_up_and_an_alias_moves(
    store: Store, begin: Begin, make_model: Make, project: Path
) -> None:
    run = begin()
    first = run.log_model(make_model("a").folder)
    second = run.log_model(make_model("b", seed=2).folder)
    assert run.register(first, "lesions", "candidate") == "1"
    assert run.register(second, "lesions", "candidate") == "2"
    assert run.register(second, "other") == "1"
    run.finish()
    assert registry.fetch("models:/lesions@candidate", project).model_id == second
    rows = registry.list_models(project)
    shown = [(row.name, row.version, row.aliases, row.plugin) for row in rows]
    assert shown == [
        ("lesions", "2", ("candidate",), "wau_unet"),
        ("lesions", "1", (), "wau_unet"),
        ("other", "1", (), "wau_unet"),
    ]
    assert {row.run_id for row in rows} == {run.run_id}
    links = json.loads(store.client.get_logged_model(second).tags["mlflow.modelVersions"])
    assert [link["name"] for link in links] == ["lesions", "other"]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("models:/nobody@candidate", ModelError, "not found"),
        ("models:/nobody/1", ModelError, "not found"),
        ("runs:/" + "0" * 32, ModelError, "not found"),
        ("models:/m-" + "0" * 32, ModelError, "not found"),
        ("models:/lesions", UsageError, "not understood"),
        ("models:/lesions/Production", UsageError, "not understood"),
        ("runs:/a/b/c", UsageError, "not understood"),
        ("no-such-folder", UsageError, "no such folder"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_sentence(
    store: Store, project: Path, model: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        registry.fetch(model, project)
    assert len(str(caught.value).splitlines()) == 1
    assert model in str(caught.value)


def test_a_run_without_a_model_is_named(store: Store, begin: Begin, project: Path) -> None:
    run = begin()
    run.finish()
    with pytest.raises(ModelError, match="has no `best` model"):
        registry.fetch(f"runs:/{run.run_id}", project)


def test_changed_weights_of_a_registered_model_are_refused(
    project: Path, registered: tuple[str, str, Any]
) -> None:
    fetched = registry.fetch("models:/lesions@candidate", project)
    path = fetched.folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not those that the card names"):
        model_folder.read(registry.fetch("models:/lesions@candidate", project).folder)


def test_a_whole_other_model_in_its_place_is_refused(
    project: Path, registered: tuple[str, str, Any], make_model: Make
) -> None:
    fetched = registry.fetch("models:/lesions@candidate", project)
    shutil.rmtree(fetched.folder)
    shutil.copytree(make_model("forged", seed=9).folder, fetched.folder)
    with pytest.raises(ModelError, match="not the one that was registered"):
        registry.fetch("models:/lesions@candidate", project)


def test_a_moved_project_still_finds_its_models(
    project: Path, registered: tuple[str, str, Any], tmp_path: Path
) -> None:
    _, best, made = registered
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    shutil.rmtree(project / ".medplat" / "tracking" / "artifacts")
    fetched = registry.fetch("models:/lesions@candidate", moved)
    assert moved in fetched.folder.parents
    assert model_folder.read(fetched.folder).weights_sha256 == made.sha256
    assert fetched.model_id == best


def test_a_version_that_others_registered_is_refused(store: Store, project: Path) -> None:
    store.client.create_registered_model("foreign")
    store.client.create_model_version("foreign", "s3://bucket/model")
    with pytest.raises(ModelError, match="not a model that medplat registered"):
        registry.fetch("models:/foreign/1", project)
    assert open_store(project).client.search_registered_models()[0].name == "foreign"
