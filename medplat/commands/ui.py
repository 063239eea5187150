"""`medplat ui`: the MLflow web page on the tracking store in use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from medplat import console
from medplat.commands import Outcome
from medplat.errors import UsageError

HOST = "127.0.0.1"
PORT = 5000


def run(*, project: Path) -> Outcome:
    """Serve the page on the loopback address until Ctrl-C; a server that was named is only told.

    Raises:
        UsageError: The page cannot be served.
        MissingExtra: MLflow is not installed.
    """
    from medplat.track import store

    opened = store.open_store(project)
    if opened.uri.startswith(("http://", "https://")):
        return Outcome(0, {"url": opened.shown, "store": opened.shown}, opened.shown)
    port = free_port()
    url = f"http://{HOST}:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
        "--backend-store-uri", opened.uri, "--workers", "1",
    ]  # fmt: skip
    if opened.artifacts is not None:
        command += ["--default-artifact-root", opened.artifacts.as_uri()]
    # A page to look at runs no jobs of its own and tells nobody.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    console.say(f"serving {opened.shown}")
    console.say(f"open {url} in a browser; Ctrl-C ends it")
    try:
        code = subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode
    except KeyboardInterrupt:
        return Outcome(130, {"url": url, "store": opened.shown})
    if code:
        raise UsageError(f"mlflow server on {url} ended with exit code {code}")
    return Outcome(0, {"url": url, "store": opened.shown})


def free_port(wanted: int = PORT) -> int:
    """The wanted port on the loopback address, or any other that is free."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UsageError(f"no port is free on {HOST}")
