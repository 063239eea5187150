from __future__ import annotations

import multiprocessing
import os
import socket
import sqlite3
import sys
import traceback
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from medplat.errors import UsageError
from medplat.track import runs
from medplat.track import store as store_module
from medplat.track.store import Store, current, open_store, without_password


def test_the_store_is_where_the_design_says(store: Store, project: Path) -> None:
    database = project / ".medplat" / "tracking" / "mlflow.db"
    assert store.uri == f"sqlite:///{database.as_posix()}"
    assert database.is_file()
    assert store.artifacts == database.parent / "artifacts"


def test_the_journal_is_written_ahead(store: Store, project: Path) -> None:
    with closing(sqlite3.connect(project / ".medplat" / "tracking" / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_experiments_get_an_explicit_artifact_folder(store: Store) -> None:
    run = runs.start(store, experiment="e", workflow_text="kind: train", digest="0", kind="train")
    run.finish()
    found = store.client.get_experiment_by_name("e")
    assert found.artifact_location == (store.artifacts / "e").as_uri()


def test_an_old_file_store_in_the_current_folder_is_left_alone(store: Store, project: Path) -> None:
    old = project / "mlruns" / "0"
    old.mkdir(parents=True)
    (old / "meta.yaml").write_text("name: old\n", encoding="utf-8")
    names = [one.name for one in open_store(project).client.search_experiments()]
    assert names == ["Default"]
    assert [path.name for path in (project / "mlruns").iterdir()] == ["0"]


def test_nothing_is_left_in_the_current_folder(store: Store, project: Path) -> None:
    assert [path.name for path in project.iterdir()] == [".medplat"]


def test_a_half_made_store_is_made_anew(
    project: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = project / ".medplat" / "tracking"
    tracking.mkdir()
    (tracking / "mlflow.new").write_bytes(b"killed in the middle")
    store = open_store(project)
    assert not (tracking / "mlflow.new").exists()
    assert [one.name for one in store.client.search_experiments()] == ["Default"]


def test_a_file_that_is_no_store_is_refused(project: Path) -> None:
    tracking = project / ".medplat" / "tracking"
    tracking.mkdir()
    (tracking / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match=r"mlflow\.db: the tracking store cannot be used"):
        open_store(project)


def test_a_named_database_is_honoured(
    project: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    named = tmp_path / "elsewhere" / "named.db"
    named.write_bytes((template / "tracking" / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{named}")
    store = open_store(project)
    run = runs.start(store, experiment="e", workflow_text="kind: train", digest="0", kind="train")
    run.finish()
    assert not (project / ".medplat" / "tracking").exists()
    assert list((tmp_path / "elsewhere" / "artifacts" / "e").glob("*/artifacts/workflow.yaml"))


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_tracking_uri_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UsageError, match="no longer serves folders"):
        open_store(project)


def test_a_server_that_does_not_answer_is_named_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(UsageError, match="does not answer") as caught:
            open_store(project)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in os.environ["NO_PROXY"]


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://u:p%40ss@db:5/x") == "postgresql://u:***@db:5/x"
    assert without_password("http://host:5000") == "http://host:5000"


def test_the_current_store_of_mlflow_is_put_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with current(store):
        assert mlflow.get_tracking_uri() == store.uri
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with current(store):
        pass
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_telemetry_is_off() -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_the_lock_is_not_waited_for_in_vain(
    project: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    tracking = project / ".medplat" / "tracking"
    tracking.mkdir()
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    with FileLock(tracking / "mlflow.lock"), pytest.raises(UsageError, match="holds the lock"):
        open_store(project)


def _work(project: str, index: int) -> None:
    """One of several processes: open, log, end. Exit code 0 only if all went well."""
    try:
        store = open_store(Path(project))
        run = runs.start(
            store, experiment="shared", workflow_text="kind: train", digest=str(index), kind="train"
        )
        run.log_metrics({"index": float(index)}, 0)
        run.finish()
        assert not run._warned
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


@pytest.mark.slow
def test_eight_processes_open_a_fresh_store_at_once(project: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(str(project), index)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * 8
    store = open_store(project)
    experiment = store.client.get_experiment_by_name("shared")
    found = MlflowClient(store.uri).search_runs([experiment.experiment_id])
    assert sorted(one.data.metrics["index"] for one in found) == [float(i) for i in range(8)]
    assert {one.info.status for one in found} == {"FINISHED"}
