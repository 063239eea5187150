"""Runs, models and the registry: the only package of medplat that imports mlflow."""

from __future__ import annotations

import os

# MLflow reports its use to its makers unless told not to, and draws progress bars on stderr.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that went away must not hold a training up for minutes: the metrics wait anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
