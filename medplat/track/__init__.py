"""Runs, models and the registry: the only package of medplat that imports mlflow."""

from __future__ import annotations

import os

# MLflow reports its use to its makers unless told not to, and draws progress bars on stderr.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that went away must not hold a training up for minutes: the metrics wait anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
# `medplat ui` needs none of the job runners that a server would start, 230 MB each.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
