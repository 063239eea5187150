"""A real MLflow server on a real PostgreSQL, reached through MLFLOW_TRACKING_URI alone.

PostgreSQL comes from Debian's packages and runs as an unprivileged user, on the loopback only, with
all its files in a temporary folder that is removed at the end.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from medplat.errors import ModelError
from medplat.track import model_folder, registry, runs
from medplat.track.store import open_store

pytestmark = pytest.mark.slow
DEAD_PROXY = "http://127.0.0.1:9"


@dataclass
class Server:
    """A running MLflow server; `stop` ends it."""

    uri: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _postgres_programs() -> Path:
    """Folder of initdb and postgres; Debian's package is installed where root may do so."""
    for attempt in range(2):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if found:
            return found[-1].parent
        elsewhere = shutil.which("initdb")
        if elsewhere:
            return Path(elsewhere).parent
        if (
            attempt
            or not hasattr(os, "geteuid")
            or os.geteuid() != 0
            or not shutil.which("apt-get")
        ):
            break
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "postgresql"]):
            subprocess.run(command, check=False, capture_output=True, timeout=280)
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def _as_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() == 0:
        return ["runuser", "-u", "postgres", "--", *command]
    return command


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[str, str]]:
    """Address of an empty database, and the password that it wants."""
    programs = _postgres_programs()
    # Not under tmp_path, whose parents no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="medplat-postgres-"))
    password = secrets.token_urlsafe(16)
    (folder / "password").write_text(password, encoding="ascii")
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    port, data = _free_port(), folder / "data"
    init = ["-A", "scram-sha-256", "--pwfile", str(folder / "password"), "-U", "medplat"]
    command = [str(programs / "initdb"), "-D", str(data), "--no-sync", "-E", "UTF8", *init]
    subprocess.run(_as_user(command), check=True, capture_output=True, cwd=folder)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
    started = [*control, "-l", str(folder / "log"), "-o", " ".join(map(_quoted, options)), "start"]
    subprocess.run(_as_user(started), check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        _create_database(port, password)
        yield f"postgresql+psycopg2://medplat@127.0.0.1:{port}/mlflow", password
    finally:
        stopped = [*control, "-m", "immediate", "stop"]
        subprocess.run(_as_user(stopped), check=False, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


def _quoted(option: str) -> str:
    return f"'{option}'"


def _create_database(port: int, password: str) -> None:
    import psycopg2

    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user="medplat", password=password, dbname="postgres"
    )
    try:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
    finally:
        connection.close()


@pytest.fixture
def server(database: tuple[str, str], tmp_path: Path) -> Iterator[Server]:
    """An MLflow server that keeps the artifacts itself; the password is not on its command line."""
    port = _free_port()
    uri, password = database
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(tmp_path / "objects"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "server.log"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    environment["PGPASSWORD"] = password
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment
        )
    running = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _await_health(running)
        yield running
    finally:
        running.stop()


def _await_health(server: Server) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        if server.process.poll() is not None:
            break
        try:
            with opener.open(f"{server.uri}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no server: {server.log.read_text(encoding='utf-8')[-3000:]}")


@pytest.fixture
def behind_a_dead_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server is named by the variable alone; proxies point nowhere."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, DEAD_PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    return server


def test_logging_registering_and_fetching(
    project: Path,
    tmp_path: Path,
    behind_a_dead_proxy: Server,
    make_model: Callable[..., Any],
) -> None:
    store = open_store(project)
    assert store.artifacts is None
    run = runs.start(
        store, experiment="tests", workflow_text="kind: train\n", digest="0" * 64, kind="train"
    )
    run.log_params({"train": {"epochs": 2}})
    for step in range(2500):
        run.log_metrics({"loss": 1 / (step + 1)}, step)
    run.log_dataset("folder", "a" * 32, "training")
    made = make_model()
    model_id = run.log_model(made.folder, "best", {"dice": 0.9}, step=3)
    assert run.register(model_id, "lesions", "candidate") == "1"
    run.finish()
    assert not run._warned
    history = store.client.get_metric_history(run.run_id, "loss")
    assert len(history) == 2500

    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    for form in ("models:/lesions@candidate", "models:/lesions/1", f"runs:/{run.run_id}"):
        fetched = registry.fetch(form, elsewhere)
        assert elsewhere in fetched.folder.parents
        loaded = model_folder.read(fetched.folder)
        assert loaded.weights_sha256 == made.sha256
        for name, tensor in made.network.state_dict().items():
            assert torch.equal(loaded.network.state_dict()[name], tensor)
    assert [row.aliases for row in registry.list_models(elsewhere)] == [("candidate",)]
    with pytest.raises(ModelError, match="not found"):
        registry.fetch("models:/lesions@champion", elsewhere)
    assert not (project / ".medplat" / "tracking").exists()
    # The server keeps the artifacts; nothing landed in the client's own folders.
    assert list((tmp_path / "objects").rglob("weights.safetensors"))


def test_a_server_that_dies_does_not_stop_the_training(
    project: Path, behind_a_dead_proxy: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.start(
        open_store(project),
        experiment="dies",
        workflow_text="kind: train\n",
        digest="1",
        kind="train",
    )
    run.log_metrics({"loss": 1.0}, 0)
    run.flush()
    behind_a_dead_proxy.stop()
    began = time.monotonic()
    run.log_metrics({"loss": 0.5}, 1)
    run.flush()
    run.finish()
    assert time.monotonic() - began < 60
    assert capsys.readouterr().err.count("did not take") == 1
    left = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["value"] for line in left if '"loss"' in line] == [0.5]
