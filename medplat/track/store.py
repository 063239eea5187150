"""The tracking store: an SQLite file in the project folder, or the server that the user named.

A fresh SQLite store is destroyed when several processes create it at once, and stays broken for all
that come later. So every first use in a process happens under a file lock, and the journal is
switched to write-ahead logging, which lets several processes write.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import mlflow
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from medplat import paths
from medplat.errors import UsageError

LOCK_SECONDS = 300.0
ANSWER_SECONDS = 10.0
# Instead of the login name and the command line, which MLflow would store.
OWN_TAGS = {
    "mlflow.user": "medplat",
    "mlflow.source.name": "medplat",
    "mlflow.source.type": "LOCAL",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_opened: set[str] = set()


@dataclass(frozen=True)
class Store:
    """An open tracking store and registry.

    Attributes:
        uri: What MLflow is told: `sqlite:////...` or the address of a server.
        client: Talks to it; tracking and registry are the same store.
        artifacts: Local folder of the artifacts, None where a server keeps them.
        project: The project folder.
    """

    uri: str
    client: MlflowClient
    artifacts: Path | None
    project: Path

    @property
    def shown(self) -> str:
        """The address without a password."""
        return without_password(self.uri)


def open_store(project: Path) -> Store:
    """Open the store of a project, or the server named by `MLFLOW_TRACKING_URI`.

    Args:
        project: The project folder; the embedded store lies in its `.medplat/tracking`.

    Raises:
        UsageError: The server does not answer, or the store cannot be opened.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a server that is gone is told of once
    named = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if named:
        return _open_named(named, project)
    return _open_file(paths.state(project) / "tracking" / "mlflow.db", project)


@contextmanager
def current(store: Store) -> Iterator[None]:
    """Make the store MLflow's current one for a while; MLflow asks for it in a few places."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def without_password(uri: str) -> str:
    """The address with its password, if it has one, replaced by stars."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    netloc = parts.netloc.replace(f":{parts.password}@", ":***@")
    return urlunsplit(parts._replace(netloc=netloc))


def _open_file(database: Path, project: Path) -> Store:
    """An SQLite store, with its artifacts beside it."""
    database.parent.mkdir(parents=True, exist_ok=True)
    database = database.resolve()
    artifacts = database.parent / "artifacts"
    uri = f"sqlite:///{database.as_posix()}"
    if uri not in _opened:
        _first_open(database, uri, artifacts)
        _opened.add(uri)
    return Store(uri, MlflowClient(uri, uri), artifacts, project)


def _first_open(database: Path, uri: str, artifacts: Path) -> None:
    lock = FileLock(str(database.with_suffix(".lock")))
    try:
        with lock.acquire(timeout=LOCK_SECONDS):
            if not database.exists():
                _create(database, artifacts)
            _first_use(uri)
    except Timeout as error:
        raise UsageError(
            f"{database}: another process holds the lock of the tracking store for more than "
            f"{LOCK_SECONDS:.0f} s; end it, then run the command again"
        ) from error
    except (MlflowException, sqlite3.Error, OSError) as error:
        raise UsageError(
            f"{database}: the tracking store cannot be made: {first_line(error)}"
        ) from error


def _create(database: Path, artifacts: Path) -> None:
    """Make the tables in a temporary file: a process killed half-way leaves nothing behind."""
    fresh = database.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{fresh.as_posix()}", artifacts.as_uri())
    store.engine.dispose()
    with closing(sqlite3.connect(fresh)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    fresh.replace(database)


def _open_named(uri: str, project: Path) -> Store:
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise UsageError(
            f"MLFLOW_TRACKING_URI is {uri}, but MLflow no longer serves folders; name a server "
            "(http://...) or a database (sqlite:///...), or unset it for the embedded store"
        )
    if scheme == "sqlite":
        return _open_file(Path(uri.removeprefix("sqlite:///")), project)
    server = scheme in ("http", "https")
    if uri not in _opened:
        if server:
            _await_answer(uri)
        _first_use(uri)
        _opened.add(uri)
    artifacts = None if server else paths.state(project).resolve() / "tracking" / "artifacts"
    return Store(uri, MlflowClient(uri, uri), artifacts, project)


def _first_use(uri: str) -> None:
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    except Exception as error:
        raise UsageError(
            f"{without_password(uri)}: the tracking store cannot be used: {first_line(error)}"
        ) from error


def _await_answer(uri: str) -> None:
    """One short question first: MLflow itself would retry for minutes."""
    import requests

    host = urlsplit(uri).hostname or ""
    if host in LOOPBACK:
        _leave_out_of_proxies(host)
    address = uri.rstrip("/") + "/health"
    try:
        requests.get(address, timeout=ANSWER_SECONDS)
    except requests.RequestException as error:
        raise UsageError(
            f"MLFLOW_TRACKING_URI {without_password(uri)}: the tracking server does not answer "
            f"({type(error).__name__}); start it, or unset the variable for the embedded store"
        ) from error


def _leave_out_of_proxies(host: str) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        if host not in known:
            os.environ[name] = ",".join([*known, host])


def first_line(error: BaseException) -> str:
    """The first line of an error's text, shortened."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
