from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from medplat import paths
from medplat.track import buffer, registry, runs, system
from medplat.track.store import Store, open_store

Begin = Callable[..., runs.Run]


def test_a_run_keeps_what_was_logged(store: Store, begin: Begin, tmp_path: Path) -> None:
    run = begin(digest="a" * 64)
    run.log_params({"train": {"epochs": 3}, "seed": 0, **{f"p{i}": i for i in range(150)}})
    run.log_metrics({"loss": 0.5, "undefined": float("nan")}, 0)
    run.log_metrics({"loss": 0.25}, 1)
    run.set_tags({"medplat.fidelity": "verified"})
    picture = tmp_path / "picture.svg"
    picture.write_text("<svg/>", encoding="utf-8")
    run.log_file(picture, "pictures")
    run.finish()

    found = store.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"loss": 0.25}
    assert found.data.params["train.epochs"] == "3"
    assert len(found.data.params) == 152
    assert found.data.tags["medplat.fidelity"] == "verified"
    history = store.client.get_metric_history(run.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(0, 0.5), (1, 0.25)]
    names = [one.path for one in store.client.list_artifacts(run.run_id)]
    assert sorted(names) == ["pictures", "workflow.yaml"]
    assert run.folder == paths.run_folder(store.project, run.run_id)


def test_user_and_source_are_not_the_login_name(store: Store, begin: Begin) -> None:
    run = begin()
    run.finish()
    found = store.client.get_run(run.run_id)
    assert found.info.user_id == "medplat"
    assert found.data.tags["mlflow.user"] == "medplat"
    assert found.data.tags["mlflow.source.name"] == "medplat"
    assert "mlflow.source.git.commit" not in found.data.tags


def test_metrics_wait_and_go_in_batches(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    sizes: list[int] = []
    monkeypatch.setattr(run._buffer, "_send", lambda batch: sizes.append(len(batch)) or True)
    for step in range(2500):
        run.log_metrics({"loss": 1.0}, step)
    assert sizes == [1000, 1000]
    run.flush()
    assert sizes == [1000, 1000, 500]
    run.finish()


def test_a_class_of_any_name_does_not_hold_up_the_metrics(store: Store, begin: Begin) -> None:
    run = begin()
    run.log_metrics({"val_n_HER2+": 3.0, "val_n_HER2-": 4.0, "val_n_(größer)": 5.0, "auc": 0.5}, 1)
    run.finish()
    found = store.client.get_run(run.run_id).data.metrics
    wanted = {"val_n_HER2_": 3.0, "val_n_HER2-": 4.0, "val_n__gr__er_": 5.0, "auc": 0.5}
    assert found == wanted


def test_metrics_do_not_wait_longer_than_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(buffer.time, "monotonic", lambda: clock.now)
    sizes: list[int] = []
    waiting = buffer.MetricBuffer(lambda batch: sizes.append(len(batch)) or True, tmp_path / "left")
    waiting.add({"a": 1.0}, 0, None)
    assert sizes == []
    clock.now += buffer.FLUSH_SECONDS + 1
    waiting.add({"a": 1.0}, 1, None)
    assert sizes == [2]


def test_a_store_that_fails_does_not_stop_the_work(
    store: Store, begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()

    def broken(*args: Any, **named: Any) -> None:
        raise MlflowException("the disk is full\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.client), "log_batch", broken)
        for step in range(3):
            run.log_metrics({"loss": float(step)}, step)
            run.flush()
        run.finish("KILLED")
    told = capsys.readouterr().err
    assert told.count("the disk is full") == 1
    left = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["value"] for line in left] == [0.0, 1.0, 2.0]

    again = runs.find_unfinished(store, "tests", "d" * 64)
    assert again is not None
    assert again.run_id == run.run_id
    again.finish()
    history = store.client.get_metric_history(run.run_id, "loss")
    assert [one.value for one in history] == [0.0, 1.0, 2.0]
    assert not (run.folder / "metrics.jsonl").exists()


def test_the_latest_unfinished_run_of_the_same_workflow_is_found(
    store: Store, begin: Begin
) -> None:
    assert runs.find_unfinished(store, "no such experiment", "x") is None
    begin(digest="same").finish("FINISHED")
    assert runs.find_unfinished(store, "tests", "same") is None
    begin(digest="other").finish("KILLED")
    begin(digest="same", kind="evaluate").finish("KILLED")
    begin(digest="same").finish("KILLED")
    latest = begin(digest="same")  # kill -9: never finished
    found = runs.find_unfinished(store, "tests", "same")
    assert found is not None
    assert found.run_id == latest.run_id
    assert store.client.get_run(found.run_id).info.status == "RUNNING"
    found.finish()
    latest._sampler.stop()


def test_the_digest_of_a_data_set_knows_voxels_and_no_order() -> None:
    cases = [(f"case{i}", f"voxels{i}", f"label{i}") for i in range(20)]
    digest = runs.dataset_digest(cases)
    assert len(digest) == 32
    shuffled = list(cases)
    random.Random(0).shuffle(shuffled)
    assert runs.dataset_digest(shuffled) == digest
    changed = [*cases[:7], ("case7", "voxels7 one voxel changed", "label7"), *cases[8:]]
    assert runs.dataset_digest(changed) != digest
    assert runs.dataset_digest(cases[1:]) != digest


def test_data_sets_are_inputs_of_the_run(store: Store, begin: Begin) -> None:
    run = begin()
    run.log_dataset("folder", "f" * 64, "training")
    run.log_dataset("folder", "e" * 64, "validation")
    run.finish()
    inputs = store.client.get_run(run.run_id).inputs.dataset_inputs
    logged = {(one.dataset.digest, one.tags[0].value) for one in inputs}
    assert logged == {("f" * 32, "training"), ("e" * 32, "validation")}


def test_earlier_metrics_do_not_stick_to_a_later_model(
    store: Store, begin: Begin, make_model: Callable[..., Any]
) -> None:
    run = begin()
    run.log_metrics({"dice": 0.1, "loss": 9.0}, 0)
    run.flush()
    best = run.log_model(make_model("best").folder, "best", {"dice": 0.8}, step=4)
    run.log_metrics({"dice": 0.2}, 5)
    last = run.log_model(make_model("last", seed=1).folder, "last", {"dice": 0.7}, step=9)
    run.finish()

    def metrics_of(model_id: str) -> list[tuple[str, float, int]]:
        found = store.client.get_logged_model(model_id)
        return [(one.key, one.value, one.step) for one in found.metrics]

    assert metrics_of(best) == [("dice", 0.8, 4)]
    assert metrics_of(last) == [("dice", 0.7, 9)]
    outputs = store.client.get_run(run.run_id).outputs.model_outputs
    assert {(one.model_id, one.step) for one in outputs} == {(best, 4), (last, 9)}


def test_an_evaluation_names_the_model_that_it_used(
    store: Store, begin: Begin, make_model: Callable[..., Any], project: Path
) -> None:
    training = begin()
    model_id = training.log_model(make_model().folder)
    training.register(model_id, "lesions", "candidate")
    training.finish()
    fetched = registry.fetch("models:/lesions@candidate", project)
    assert fetched.model_id == model_id
    evaluation = begin(kind="evaluate")
    evaluation.log_input_model(fetched.model_id)
    evaluation.finish()
    inputs = store.client.get_run(evaluation.run_id).inputs.model_inputs
    assert [one.model_id for one in inputs] == [model_id]


def test_the_load_of_the_machine_goes_through_the_buffer() -> None:
    seen: list[dict[str, float]] = []
    sampler = system.SystemSampler(
        SimpleNamespace(log_metrics=lambda metrics, step: seen.append(dict(metrics))), seconds=0.02
    )
    sampler.start()
    while not seen:
        pass
    sampler.stop()
    assert seen[0]["system/process_memory_usage_megabytes"] > 10
    assert all(name.startswith("system/") for name in seen[0])


def test_two_runs_of_one_workflow_stay_two(store: Store, begin: Begin) -> None:
    first, second = begin(), begin()
    first.finish()
    second.finish()
    assert first.run_id != second.run_id
    reopened = open_store(store.project)
    names = {reopened.client.get_run(one.run_id).info.run_name for one in (first, second)}
    assert names == {"train-dddddddd"}
